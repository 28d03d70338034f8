// SPDX-License-Identifier: MIT OR Apache-2.0

//! Counts of deliveries, for operators.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use protocol::{Count, Failure, Figures, Latency, SourceFigures};

/// The upper bounds of the latency buckets, in milliseconds.
const WITHIN_MS: [u64; 8] = [10, 50, 100, 500, 1000, 5000, 10_000, 30_000];

/// The most sources with counts of their own. A reloaded configuration may have other sources.
const MAX_SOURCES: usize = 256;

/// The name for the counts of all other sources.
const OTHERS: &str = "others";

/// The counts of a process.
pub(crate) struct Counts {
    since: SystemTime,
    counted: Mutex<Counted>,
}

#[derive(Default)]
struct Counted {
    results: BTreeMap<&'static str, u64>,
    latency: [u64; WITHIN_MS.len() + 1],
    sources: BTreeMap<String, SourceCounts>,
}

#[derive(Default)]
struct SourceCounts {
    fetched: u64,
    failures: BTreeMap<&'static str, u64>,
}

/// A query to a source. If it is dropped before `ended`, the delivery was abandoned.
pub(crate) struct Asked<'a> {
    counts: &'a Counts,
    source: String,
    /// The kind of failure; none on success.
    failure: Option<&'static str>,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            since: SystemTime::now(),
            counted: Mutex::default(),
        }
    }
}

impl Counts {
    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a delivery that ended with this result.
    pub fn delivered(&self, name: &'static str, took: Duration) {
        let bucket = WITHIN_MS.partition_point(|ms| u128::from(*ms) < took.as_millis());
        let mut counted = self.lock();
        *counted.results.entry(name).or_default() += 1;
        counted.latency[bucket] += 1;
    }

    /// Starts to count a query to a source.
    pub fn ask(&self, source: String) -> Asked<'_> {
        Asked {
            counts: self,
            source,
            failure: Some("given-up"),
        }
    }

    /// Returns the counts.
    pub fn figures(&self) -> Figures {
        let counted = self.lock();
        let counts = |counts: &BTreeMap<&'static str, u64>| {
            let counts = counts.iter();
            counts
                .map(|(name, count)| Count {
                    name: (*name).to_owned(),
                    count: *count,
                })
                .collect()
        };
        let within = WITHIN_MS.into_iter().map(Some).chain([None]);
        let sources = counted.sources.iter().map(|(name, source)| SourceFigures {
            name: name.clone(),
            fetched: source.fetched,
            failures: counts(&source.failures),
        });
        Figures {
            since: self.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            results: counts(&counted.results),
            latency: within
                .zip(counted.latency)
                .map(|(within_ms, count)| Latency { within_ms, count })
                .collect(),
            sources: sources.collect(),
            ..Figures::default()
        }
    }
}

impl Asked<'_> {
    /// Counts the result of the query.
    pub fn ended<T>(mut self, result: &Result<T, Failure>) {
        self.failure = result.as_ref().err().map(|failure| failure.code.as_str());
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut counted = self.counts.lock();
        let mut name = std::mem::take(&mut self.source);
        if counted.sources.len() >= MAX_SOURCES && !counted.sources.contains_key(&name) {
            name = OTHERS.to_owned();
        }
        let source = counted.sources.entry(name).or_default();
        match self.failure {
            None => source.fetched += 1,
            Some(failure) => *source.failures.entry(failure).or_default() += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::Code;

    use super::*;

    fn count(name: &str, count: u64) -> Count {
        Count {
            name: name.to_owned(),
            count,
        }
    }

    #[test]
    fn deliveries_are_counted_by_result_and_time() {
        let counts = Counts::default();
        counts.delivered("no-rule", Duration::from_millis(10));
        counts.delivered("source-failed", Duration::from_millis(11));
        counts.delivered("source-failed", Duration::from_secs(3600));
        let figures = counts.figures();
        assert_eq!(figures.results, [count("no-rule", 1), count("source-failed", 2)]);
        let latency = figures.latency.iter().map(|bucket| (bucket.within_ms, bucket.count));
        let latency: Vec<_> = latency.collect();
        assert_eq!(latency[..3], [(Some(10), 1), (Some(50), 1), (Some(100), 0)]);
        assert_eq!(latency.last(), Some(&(None, 1)));
        assert!(figures.since > 1_600_000_000);
    }

    #[test]
    fn sources_are_counted_by_failure_and_bounded() {
        let counts = Counts::default();
        let ask = |source: &str| counts.ask(source.to_owned());
        ask("rule 0 (file)").ended(&Ok(()));
        ask("rule 0 (file)").ended::<()>(&Err(Failure::new(Code::TokenRefused, "user", "operator")));
        drop(ask("rule 0 (file)"));
        for rule in 1..2 * MAX_SOURCES {
            ask(&format!("rule {rule} (command)")).ended(&Ok(()));
        }
        let sources = counts.figures().sources;
        let of = |name: &str| sources.iter().find(|source| source.name == name).unwrap();
        let first = of("rule 0 (file)");
        assert_eq!(first.fetched, 1);
        assert_eq!(first.failures, [count("given-up", 1), count("token-refused", 1)]);
        assert_eq!(sources.len(), MAX_SOURCES + 1);
        assert_eq!(of(OTHERS).fetched, MAX_SOURCES as u64);
    }
}
