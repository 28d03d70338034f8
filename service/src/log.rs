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
pub struct Kind(Mutex<State>);

struct State {
    last: Option<Instant>,
    left_out: u64,
}

impl Kind {
    /// Returns a kind without any logged line.
    pub const fn new() -> Self {
        Self(Mutex::new(State {
            last: None,
            left_out: 0,
        }))
    }

    /// Logs a line, unless one of this kind was logged within the last 10 seconds.
    pub fn log(&self, line: impl Display) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| last.elapsed() < INTERVAL) {
            state.left_out += 1;
            return;
        }
        match state.left_out {
            0 => eprintln!("workflow-tokend: {line}"),
            count => eprintln!("workflow-tokend: {line} (omitted {count} similar lines before)"),
        }
        *state = State {
            last: Some(Instant::now()),
            left_out: 0,
        };
    }
}
