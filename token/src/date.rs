// SPDX-License-Identifier: MIT OR Apache-2.0

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::SignedDuration;
use jiff::civil::DateTime;

/// A time as JWT claims carry it: seconds since 1970-01-01T00:00:00Z without leap seconds, fractions allowed
/// (RFC 7519 section 2, "NumericDate").
///
/// Prints as RFC 3339 in UTC to the second, such as `2026-03-01T12:00:00Z`; a time outside the years 0 to 9999 prints
/// as its number of seconds.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct NumericDate(f64);

impl NumericDate {
    /// The date that is `seconds` after 1970-01-01T00:00:00Z.
    ///
    /// ```
    /// assert_eq!(token::NumericDate::from_seconds(1_772_366_400.5).to_string(), "2026-03-01T12:00:00Z");
    /// ```
    pub fn from_seconds(seconds: f64) -> Self {
        Self(seconds)
    }

    /// Seconds since 1970-01-01T00:00:00Z; negative before it.
    ///
    /// ```
    /// use std::time::SystemTime;
    /// use token::NumericDate;
    ///
    /// assert_eq!(NumericDate::from(SystemTime::UNIX_EPOCH).seconds(), 0.0);
    /// ```
    pub fn seconds(self) -> f64 {
        self.0
    }

    /// Returns the distance from `now`, for people: `in 59m 58s`, `2h 3m ago`, `now`.
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    /// use token::NumericDate;
    ///
    /// let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
    /// assert_eq!(NumericDate::from_seconds(1090.0).relative_to(now), "in 1m 30s");
    /// assert_eq!(NumericDate::from_seconds(993.0).relative_to(now), "7s ago");
    /// ```
    pub fn relative_to(self, now: SystemTime) -> String {
        let ahead = self.0 - Self::from(now).0;
        let span = Span(ahead.abs());
        match ahead {
            _ if ahead.abs() < 1.0 => "now".to_owned(),
            _ if ahead > 0.0 => format!("in {span}"),
            _ => format!("{span} ago"),
        }
    }
}

impl From<SystemTime> for NumericDate {
    fn from(time: SystemTime) -> Self {
        Self(match time.duration_since(UNIX_EPOCH) {
            Ok(after) => after.as_secs_f64(),
            Err(before) => -before.duration().as_secs_f64(),
        })
    }
}

impl fmt::Display for NumericDate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const EPOCH: DateTime = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);

        // What does not fit is cut to the ends of an i64, which are in no year.
        let date = EPOCH.checked_add(SignedDuration::from_secs(self.0.floor() as i64));
        match date {
            Ok(date) if date.year() >= 0 && !self.0.is_nan() => write!(f, "{date:.0}Z"),
            _ => write!(f, "{} seconds since 1970", self.0),
        }
    }
}

/// A length of time in seconds, printed in its two largest units: `2d 3h`, `3m 20s`, `7s`.
struct Span(f64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = Duration::try_from_secs_f64(self.0).map_or(u64::MAX, |span| span.as_secs());
        let (d, h, m, s) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        match (d, h, m, s) {
            (0, 0, 0, s) => write!(f, "{s}s"),
            (0, 0, m, s) => write!(f, "{m}m {s}s"),
            (0, h, m, _) => write!(f, "{h}h {m}m"),
            (d, h, _, _) => write!(f, "{d}d {h}h"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_utc_as_date_does() {
        // Each pair as `date -u -d @SECONDS +%FT%TZ` prints it.
        for (seconds, printed) in [
            (0.0, "1970-01-01T00:00:00Z"),
            (951_782_400.0, "2000-02-29T00:00:00Z"),
            (951_868_799.9, "2000-02-29T23:59:59Z"),
            (1_300_819_380.0, "2011-03-22T18:43:00Z"),
            (4_107_542_399.0, "2100-02-28T23:59:59Z"),
            (4_107_542_400.0, "2100-03-01T00:00:00Z"),
            (-1.0, "1969-12-31T23:59:59Z"),
            (253_402_300_799.0, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(NumericDate(seconds).to_string(), printed);
        }
    }

    #[test]
    fn prints_seconds_where_no_calendar_year_fits() {
        assert_eq!(
            NumericDate(253_402_300_800.0).to_string(),
            "253402300800 seconds since 1970"
        );
        assert_eq!(
            NumericDate(f64::MAX).to_string(),
            format!("{} seconds since 1970", f64::MAX)
        );
    }

    #[test]
    fn tells_how_far_away_it_is() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        for (seconds, relative) in [
            (1_000_000.5, "now"),
            (1_000_007.0, "in 7s"),
            (999_800.0, "3m 20s ago"),
            (1_007_380.0, "in 2h 3m"),
            (1_000_000.0 - 86_400.0 * 40.0, "40d 0h ago"),
        ] {
            assert_eq!(NumericDate(seconds).relative_to(now), relative);
        }
        assert!(NumericDate(f64::MAX).relative_to(now).starts_with("in "));
    }
}
