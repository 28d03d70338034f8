// SPDX-License-Identifier: MIT OR Apache-2.0

//! Times, for people and for programs.

use askama::{Template, filters::HtmlSafe};
use jiff::Timestamp;

/// The units of relative times, in seconds.
const UNITS: [(u64, &str); 3] = [(86400, "day"), (3600, "hour"), (60, "minute")];

/// A time, in UTC and relative to now.
#[derive(Template)]
#[template(path = "moment.html")]
pub(super) struct Moment {
    /// The time in the format of RFC 3339, or `None` if it is too far away.
    exact: Option<String>,
    text: String,
    relative: String,
}

impl HtmlSafe for Moment {}

impl Moment {
    /// Returns a time. Both are in seconds since 1970-01-01T00:00:00Z.
    pub fn new(at: u64, now: u64) -> Self {
        let known = i64::try_from(at).ok().and_then(|at| Timestamp::from_second(at).ok());
        Self {
            exact: known.map(|at| at.to_string()),
            text: known.map_or("never".to_owned(), |at| at.strftime("%-d %b %Y, %H:%M UTC").to_string()),
            relative: match at >= now {
                true => format!("in {}", span(at - now)),
                false => format!("{} ago", span(now - at)),
            },
        }
    }
}

/// Returns a duration in words, rounded down.
pub(super) fn span(seconds: u64) -> String {
    let unit = UNITS.into_iter().find(|(length, _)| seconds >= *length);
    match unit.map(|(length, name)| (seconds / length, name)) {
        Some((1, name)) => format!("1 {name}"),
        Some((number, name)) => format!("{number} {name}s"),
        None => "less than a minute".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_for_people_and_programs() {
        let at = |at, now| Moment::new(at, now).render().unwrap();
        assert_eq!(
            at(1_800_000_000, 1_800_000_000 - 7300),
            r#"<time datetime="2027-01-15T08:00:00Z">15 Jan 2027, 08:00 UTC</time> (in 2 hours)"#
        );
        assert!(at(0, 59).ends_with("(less than a minute ago)"));
        assert!(at(0, 60).ends_with("(1 minute ago)"));
        assert!(at(0, 3 * 86400).ends_with("(3 days ago)"));
        assert_eq!(at(u64::MAX, 0), "never");
    }
}
