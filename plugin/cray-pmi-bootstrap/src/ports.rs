//! The ports for the control connections of Cray's libpmi: two for each job that has several nodes.

use std::{collections::HashMap, ops::Range};

use ffi::JobId;
use serde_json::Value;

/// The ports of one job.
pub(super) type Pair = [u16; 2];

/// Ports, and who has which. Those that were given back last are handed out first.
#[derive(Debug)]
pub(super) struct Ports {
    range: Range<u32>,
    free: Vec<u16>,
    held: HashMap<JobId, Pair>,
}

/// Where nothing is configured.
pub(super) const DEFAULT: Range<i64> = 11_000..12_000;

/// The fewest ports that it makes sense to have.
const FEWEST: i64 = 50;

impl Ports {
    /// All ports from the first up to, and without, the second.
    ///
    /// # Errors
    /// What is wrong with the range.
    pub fn new(min: i64, max: i64) -> Result<Self, String> {
        // Those below are for root; there are none above.
        if !(1024..=65_536).contains(&min) || !(1024..=65_536).contains(&max) {
            return Err(format!(
                "port-min and port-max must be from 1024 to 65536, and are {min} and {max}"
            ));
        }
        if max - min < FEWEST {
            return Err(format!(
                "not enough ports: port-max must be {FEWEST} above port-min at least, which are {max} and {min}"
            ));
        }
        Ok(Self {
            range: min as u32..max as u32,
            free: (min..max).map(|port| port as u16).collect(),
            held: HashMap::new(),
        })
    }

    /// Two ports for a job; nothing where there are none left.
    pub fn take(&mut self, job: JobId) -> Option<Pair> {
        let at = self.free.len().checked_sub(2)?;
        let pair = [self.free[at + 1], self.free[at]];
        self.free.truncate(at);
        self.held.insert(job, pair);
        Some(pair)
    }

    /// A job has these already.
    pub fn claim(&mut self, job: JobId, pair: Pair) {
        self.give_back(job);
        self.free.retain(|port| !pair.contains(port));
        self.held.insert(job, pair);
    }

    /// The ports that a job has.
    pub fn of(&self, job: JobId) -> Option<Pair> {
        self.held.get(&job).copied()
    }

    /// Takes the ports of a job back, where it has some.
    pub fn give_back(&mut self, job: JobId) {
        for port in self.held.remove(&job).into_iter().flatten() {
            // One that another job was given as well, by whoever was here before, stays taken; so does one of another
            // range that was configured then.
            let taken = self.held.values().any(|pair| pair.contains(&port));
            if !taken && self.range.contains(&port.into()) && !self.free.contains(&port) {
                self.free.push(port);
            }
        }
    }

    /// How many are free.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Which there are.
    pub fn range(&self) -> &Range<u32> {
        &self.range
    }

    /// Everything that is held.
    pub fn held(&self) -> impl Iterator<Item = (JobId, Pair)> {
        self.held.iter().map(|(job, pair)| (*job, *pair))
    }
}

/// The ports in the context of an event of this plugin, or of the one that it takes the place of.
pub(super) fn from_context(context: &Value) -> Option<Pair> {
    let [first, second] = context["ports"].as_array()?.as_slice() else {
        return None;
    };
    let port = |value: &Value| u16::try_from(value.as_u64()?).ok();
    Some([port(first)?, port(second)?])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ports() -> Ports {
        Ports::new(DEFAULT.start, DEFAULT.end).unwrap()
    }

    #[test]
    fn the_last_ports_are_the_first_and_those_given_back_come_next() {
        let mut ports = ports();
        assert_eq!(ports.take(JobId(1)), Some([11_999, 11_998]));
        assert_eq!(ports.take(JobId(2)), Some([11_997, 11_996]));
        ports.give_back(JobId(1));
        ports.give_back(JobId(1));
        assert_eq!(ports.take(JobId(3)), Some([11_998, 11_999]));
        assert_eq!(ports.free(), 996);
    }

    #[test]
    fn no_port_is_with_two_jobs_whoever_had_it_before() {
        let mut ports = Ports::new(2000, 2050).unwrap();
        ports.claim(JobId(1), [2049, 2048]);
        ports.claim(JobId(2), [2048, 3000]);
        ports.claim(JobId(2), [2048, 3000]);
        ports.give_back(JobId(1));
        assert_eq!(ports.free(), 49, "the second job still has 2048");
        ports.give_back(JobId(2));
        assert_eq!(ports.free(), 50);
        let taken: Vec<Pair> = (10..40).filter_map(|job| ports.take(JobId(job))).collect();
        let mut all: Vec<u16> = taken.into_iter().flatten().collect();
        all.sort_unstable();
        assert_eq!(all, (2000..2050).collect::<Vec<u16>>());
    }

    #[test]
    fn the_last_port_alone_is_not_lost() {
        let mut ports = Ports::new(2000, 2051).unwrap();
        let taken = (0..100).filter_map(|job| ports.take(JobId(job))).count();
        assert_eq!((taken, ports.free()), (25, 1));
    }

    #[test]
    fn ranges_that_are_none_are_refused() {
        for (min, max) in [
            (0, 12_000),
            (1023, 2000),
            (11_000, 120_000),
            (11_000, 65_537),
            (11_000, 11_049),
            (12_000, 11_000),
            (-1, 2000),
            (i64::MIN, i64::MAX),
        ] {
            assert!(Ports::new(min, max).is_err(), "{min} {max}");
        }
        assert_eq!(Ports::new(65_486, 65_536).unwrap().free(), 50);
    }

    #[test]
    fn ports_are_read_from_events() {
        assert_eq!(
            from_context(&json!({"ports": [11_999, 11_998], "random_integer": -5})),
            Some([11_999, 11_998])
        );
        for bad in [
            json!(null),
            json!({}),
            json!({"ports": [1]}),
            json!({"ports": [1, 65_536]}),
        ] {
            assert_eq!(from_context(&bad), None, "{bad}");
        }
    }
}
