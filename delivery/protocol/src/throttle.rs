// SPDX-License-Identifier: MIT OR Apache-2.0

//! Rate-limited log lines, for events that strangers can cause: at most one line of a kind in an interval, with the
//! number of omitted lines.

use std::{
    fmt::Display,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The shortest interval between two lines of one kind.
const INTERVAL: Duration = Duration::from_secs(10);

/// A kind of log line.
#[derive(Debug)]
pub struct Throttle(Mutex<State>);

#[derive(Debug)]
struct State {
    last: Option<Instant>,
    left_out: u64,
}

impl Throttle {
    /// Returns a kind without any logged line.
    #[expect(clippy::new_without_default, reason = "a constant of the program, made in a static")]
    pub const fn new() -> Self {
        Self(Mutex::new(State {
            last: None,
            left_out: 0,
        }))
    }

    /// Logs a line of a program to stderr, unless one of this kind was logged within the last 10 seconds.
    pub fn log(&self, program: &str, line: impl Display) {
        if let Some(left_out) = self.turn(Instant::now()) {
            match left_out {
                0 => eprintln!("{program}: {line}"),
                count => eprintln!("{program}: {line} (omitted {count} similar lines before)"),
            }
        }
    }

    /// Returns the number of lines that were omitted, if one may be logged now.
    fn turn(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| now.duration_since(last) < INTERVAL) {
            state.left_out += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_lines_becomes_one_line_in_ten_seconds_that_counts_the_others() {
        let (kind, begin) = (Throttle::new(), Instant::now());
        assert_eq!(kind.turn(begin), Some(0));
        for _ in 0..1000 {
            assert_eq!(kind.turn(begin + Duration::from_secs(9)), None);
        }
        assert_eq!(kind.turn(begin + INTERVAL), Some(1000));
        assert_eq!(kind.turn(begin + INTERVAL * 2), Some(0));
    }
}
