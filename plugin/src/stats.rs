//! Counters for `flux jobtap query`, and how long the reactor thread was kept.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// How many deliveries the median of their reactor time is taken over.
const WINDOW: usize = 1024;

/// What happened since the plugin was loaded.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub started: u64,
    pub delivered: u64,
    pub failed: u64,
    pub canceled: u64,
    pub no_rule: u64,
    pub resumed: u64,
    pub unlinked: u64,
    reactor: VecDeque<Duration>,
    longest: Duration,
}

impl Stats {
    /// One callback took this long.
    pub fn callback(&mut self, took: Duration) {
        self.longest = self.longest.max(took);
    }

    /// One delivery has ended, and all of its callbacks took this much of the processor.
    pub fn delivery(&mut self, took: Duration) {
        if self.reactor.len() == WINDOW {
            self.reactor.pop_front();
        }
        self.reactor.push_back(took);
    }

    /// The answer to `plugin.query`.
    pub fn to_json(&self) -> Value {
        let mut sorted: Vec<_> = self.reactor.iter().collect();
        sorted.sort();
        let median = sorted.get(sorted.len() / 2).map_or(0, |d| d.as_micros() as u64);
        json!({
            "started": self.started,
            "delivered": self.delivered,
            "failed": self.failed,
            "canceled": self.canceled,
            "no-rule": self.no_rule,
            "resumed": self.resumed,
            "unlinked": self.unlinked,
            "reactor-us": {
                "delivery-cpu-median": median,
                "callback-max": self.longest.as_micros() as u64,
            },
        })
    }
}

/// Measures one stay on the reactor thread: its length, and the processor time that it took. The two differ where other
/// threads were given the processor in between, which waking them may do.
pub(crate) struct Stay {
    began: Instant,
    cpu: Duration,
}

impl Stay {
    pub fn begin() -> Self {
        Self {
            began: Instant::now(),
            cpu: cpu_time(),
        }
    }

    /// By the clock.
    pub fn length(&self) -> Duration {
        self.began.elapsed()
    }

    /// By the processor.
    pub fn cpu(&self) -> Duration {
        cpu_time().saturating_sub(self.cpu)
    }
}

fn cpu_time() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map(Duration::from)
        .unwrap_or_default()
}
