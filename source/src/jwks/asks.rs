// SPDX-License-Identifier: MIT OR Apache-2.0

//! The rate limit of requests to an issuer because of unknown keys.

use std::time::Duration;

use tokio::time::Instant;

/// The burst of requests because of unknown keys, and the interval of further ones.
const ASKS: (u32, Duration) = (3, Duration::from_secs(10));

/// A token bucket for requests.
pub(super) struct Asks {
    left: u32,
    since: Option<Instant>,
}

impl Default for Asks {
    fn default() -> Self {
        Self {
            left: ASKS.0,
            since: None,
        }
    }
}

impl Asks {
    pub fn take(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let more = (now.saturating_duration_since(since).as_nanos() / ASKS.1.as_nanos()) as u32;
        if more > 0 {
            self.left = self.left.saturating_add(more).min(ASKS.0);
            self.since = Some(now);
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_asks_are_free_and_then_one_in_a_while() {
        let mut asks = Asks::default();
        let start = Instant::now();
        let taken = |asks: &mut Asks, at: Duration| (0..100).filter(|_| asks.take(start + at)).count();
        assert_eq!(taken(&mut asks, Duration::ZERO), ASKS.0 as usize);
        assert_eq!(taken(&mut asks, ASKS.1 - Duration::from_millis(1)), 0);
        assert_eq!(taken(&mut asks, ASKS.1), 1);
        assert_eq!(taken(&mut asks, ASKS.1 * 1000), ASKS.0 as usize);
    }
}
