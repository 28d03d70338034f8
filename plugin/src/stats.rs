// SPDX-License-Identifier: MIT OR Apache-2.0

//! Counters for `flux jobtap query`, including the time spent on the reactor thread.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// The counters since the plugin was loaded.
#[derive(Debug)]
pub(crate) struct Stats {
    pub started: u64,
    pub delivered: u64,
    pub renewed: u64,
    pub renewal_failures: u64,
    pub failed: u64,
    pub canceled: u64,
    pub no_rule: u64,
    pub resumed: u64,
    pub unlinked: u64,
    deliveries: Times,
    callbacks: Times,
    /// The longest processor time of a callback.
    callback_cpu_max: Duration,
}

/// A histogram of durations. Its memory does not grow with their number, and percentiles are accurate to 1 %.
#[derive(Debug)]
struct Times(Histogram<u64>);

/// Events that the plugins count, in addition to those of the engine.
#[derive(Debug, Clone, Copy)]
pub enum Counter {
    /// A job from before the plugin was loaded was resumed.
    Resumed,
    /// A job failed before it got its variables.
    Failed,
    /// A job was canceled before it got its variables.
    Canceled,
}

impl Times {
    /// The longest duration, in nanoseconds. Longer ones are counted as this one.
    const LONGEST: u64 = 60_000_000_000;

    fn new() -> Self {
        let counts = Histogram::new_with_bounds(1, Self::LONGEST, 2);
        // The bounds and the number of digits are valid.
        Self(counts.unwrap_or_else(|_| unreachable!("a histogram of these bounds")))
    }

    fn count(&mut self, took: Duration) {
        self.0.saturating_record(nanoseconds(took).max(1));
    }

    fn percentile(&self, percent: f64) -> f64 {
        microseconds(self.0.value_at_percentile(percent))
    }

    /// Returns the mean of all durations, which includes rare long ones.
    fn mean(&self) -> f64 {
        (self.0.mean() / 100.0).round() / 10.0
    }

    fn longest(&self) -> f64 {
        microseconds(self.0.max())
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Returns microseconds with one decimal.
fn microseconds(nanoseconds: u64) -> f64 {
    (nanoseconds as f64 / 100.0).round() / 10.0
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            started: 0,
            delivered: 0,
            renewed: 0,
            renewal_failures: 0,
            failed: 0,
            canceled: 0,
            no_rule: 0,
            resumed: 0,
            unlinked: 0,
            deliveries: Times::new(),
            callbacks: Times::new(),
            callback_cpu_max: Duration::ZERO,
        }
    }
}

impl Stats {
    /// Counts a callback.
    pub fn callback(&mut self, timer: &CallbackTimer) {
        self.callbacks.count(timer.elapsed());
        self.callback_cpu_max = self.callback_cpu_max.max(timer.cpu());
    }

    /// Counts an event that the engine does not observe.
    pub fn count(&mut self, counter: Counter) {
        match counter {
            Counter::Resumed => self.resumed += 1,
            Counter::Failed => self.failed += 1,
            Counter::Canceled => self.canceled += 1,
        }
    }

    /// Counts a delivery, with the processor time of all of its callbacks.
    pub fn delivery(&mut self, took: Duration) {
        self.deliveries.count(took);
    }

    /// Returns the answer to `plugin.query`.
    pub fn to_json(&self) -> Value {
        json!({
            "started": self.started,
            "delivered": self.delivered,
            "renewed": self.renewed,
            "renewal-failures": self.renewal_failures,
            "failed": self.failed,
            "canceled": self.canceled,
            "no-rule": self.no_rule,
            "resumed": self.resumed,
            "unlinked": self.unlinked,
            "reactor-us": {
                "deliveries": self.deliveries.0.len(),
                "delivery-cpu-median": self.deliveries.percentile(50.0),
                "delivery-cpu-mean": self.deliveries.mean(),
                "delivery-cpu-p99": self.deliveries.percentile(99.0),
                "delivery-cpu-max": self.deliveries.longest(),
                "callbacks": self.callbacks.0.len(),
                "callback-median": self.callbacks.percentile(50.0),
                "callback-p99": self.callbacks.percentile(99.0),
                "callback-max": self.callbacks.longest(),
                "callback-cpu-max": microseconds(nanoseconds(self.callback_cpu_max)),
            },
        })
    }
}

/// Measures the wall-clock and processor time of a callback on the reactor thread. The two differ if other threads get
/// the processor in between.
pub struct CallbackTimer {
    began: Instant,
    cpu: Duration,
}

impl CallbackTimer {
    /// Starts the measurement.
    pub fn start() -> Self {
        Self {
            began: Instant::now(),
            cpu: cpu_time(),
        }
    }

    /// Returns the wall-clock time since the start.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Returns the processor time of this thread since the start.
    pub fn cpu(&self) -> Duration {
        cpu_time().saturating_sub(self.cpu)
    }
}

fn cpu_time() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map(Duration::from)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_they_were_to_one_percent() {
        let mut stats = Stats::default();
        for microseconds in 1..=1000 {
            stats.delivery(Duration::from_micros(microseconds));
        }
        stats.callbacks.count(Duration::MAX);
        let told = stats.to_json()["reactor-us"].clone();
        for (key, expected) in [
            ("delivery-cpu-median", 500.0),
            ("delivery-cpu-mean", 500.5),
            ("delivery-cpu-p99", 990.0),
            ("delivery-cpu-max", 1000.0),
            ("callback-max", 60e6),
        ] {
            let value = told[key].as_f64().unwrap();
            assert!((value - expected).abs() <= expected / 100.0, "{key}: {value}");
        }
        assert_eq!((&told["deliveries"], &told["callbacks"]), (&json!(1000), &json!(1)));
    }
}
