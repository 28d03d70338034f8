// SPDX-License-Identifier: MIT OR Apache-2.0

//! Flux Standard Duration (Flux RFC 23): a number and one of the units `ms`, `s` (the default), `m`, `h`, `d`.

use std::time::Duration;

/// The longest duration, 365 days. Adding it to a clock cannot overflow.
const MAX: Duration = Duration::from_secs(365 * 86_400);

/// Parses a Flux Standard Duration, from 1 ms to 365 days.
///
/// # Errors
/// Returns a description of the mistake.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!(
            "`{}` is not a duration: use a number and a unit, as in 500ms, 60s or 5m",
            text.escape_debug()
        )
    };
    let digits = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let scale = match unit {
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return Err(wrong()),
    };
    let duration = Duration::try_from_secs_f64(number * scale).map_err(|_| wrong())?;
    if duration < Duration::from_millis(1) {
        return Err(format!("`{text}` is too short: use at least 1ms"));
    }
    if duration > MAX {
        return Err(format!("`{text}` is too long: use at most 365d"));
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        for (text, seconds) in [
            ("60s", 60.0),
            ("60", 60.0),
            ("500ms", 0.5),
            ("1.5m", 90.0),
            ("2h", 7200.0),
            ("1d", 86400.0),
        ] {
            assert_eq!(
                parse_duration(text).unwrap(),
                Duration::from_secs_f64(seconds),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_finite_positive_duration_is_refused() {
        for bad in [
            "", "s", "-1s", "0", "0s", "inf", "infinity", "nan", "1 s", "1w", "1e400", "60S", "366d", "2e14d", "1e19",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
