// SPDX-License-Identifier: MIT OR Apache-2.0

//! Rate-limited log lines of the service.

use std::fmt::Display;

use protocol::Throttle;

/// A kind of log line.
pub struct Kind(Throttle);

impl Kind {
    /// Returns a kind without any logged line.
    pub const fn new() -> Self {
        Self(Throttle::new())
    }

    /// Logs a line, unless one of this kind was logged within the last 10 seconds.
    pub fn log(&self, line: impl Display) {
        self.0.log("workflow-tokend", line);
    }
}
