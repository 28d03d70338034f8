use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A time as JWT claims carry it: seconds since 1970-01-01T00:00:00Z without leap seconds, fractions allowed
/// (RFC 7519 section 2, "NumericDate").
///
/// Prints as RFC 3339 in UTC to the second, such as `2026-03-01T12:00:00Z`; a time outside the years 0 to 9999 prints
/// as its number of seconds.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct NumericDate(f64);

impl NumericDate {
    /// The date that is `seconds` after 1970-01-01T00:00:00Z.
    pub fn from_seconds(seconds: f64) -> Self {
        Self(seconds)
    }

    /// Seconds since 1970-01-01T00:00:00Z; negative before it.
    pub fn seconds(self) -> f64 {
        self.0
    }

    /// How far this date is from `now`, for people: `in 59m 58s`, `2h 3m ago`, `now`.
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
        /// 0000-01-01T00:00:00Z and 10000-01-01T00:00:00Z.
        const YEARS_0_TO_9999: std::ops::Range<f64> = -62_167_219_200.0..253_402_300_800.0;
        const DAY: i64 = 86_400;

        let seconds = self.0.floor();
        if !YEARS_0_TO_9999.contains(&seconds) {
            return write!(f, "{} seconds since 1970", self.0);
        }
        let seconds = seconds as i64;
        let (year, month, day) = civil(seconds.div_euclid(DAY));
        let time = seconds.rem_euclid(DAY);
        let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

/// Year, month and day of the proleptic Gregorian calendar, `days` after 1970-01-01.
///
/// The years are counted from March so that the leap day is a year's last, and in eras of 400 years, which all have
/// 146,097 days.
fn civil(days: i64) -> (i64, i64, i64) {
    const MARCH_OF_YEAR_0: i64 = 719_468;
    const ERA: i64 = 146_097;

    let days = days + MARCH_OF_YEAR_0;
    let era = days.div_euclid(ERA);
    let day_of_era = days.rem_euclid(ERA);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
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
