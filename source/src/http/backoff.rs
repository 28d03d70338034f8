//! Pauses between tries.

use std::time::Duration;

/// Pauses that grow from try to try.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    /// From the first pause, and the longest.
    pub fn new((first, longest): (Duration, Duration)) -> Self {
        Self { next: first, longest }
    }

    /// How long the next pause is to be at most.
    pub fn limit(&mut self, limit: Duration) {
        self.next = self.next.min(limit);
    }

    /// The next pause: no shorter than the server asked for, and a little different each time, so that jobs that start at
    /// once do not ask at once again.
    pub fn pause(&mut self, asked: Option<Duration>) -> Duration {
        let pause = self.next.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.next = (self.next * 2).min(self.longest);
        pause.max(asked.unwrap_or_default())
    }
}
