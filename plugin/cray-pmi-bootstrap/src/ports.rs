// SPDX-License-Identifier: MIT OR Apache-2.0

//! The ports for the control connections of Cray's libpmi: two for each job that has several nodes.

use std::{collections::HashMap, ops::Range};

use ffi::{JobId, LogLevel};
use plugin::Eventlog;
use serde_json::Value;

/// The event with the ports of a job.
pub const EVENT: &str = "cray-pmi-bootstrap";

/// The ports of a job.
pub type Pair = [u16; 2];

/// The ports, and the jobs that own them. Ports that were returned last are assigned first.
#[derive(Debug)]
pub struct Ports {
    range: Range<u32>,
    free: Vec<u16>,
    assigned: HashMap<JobId, Pair>,
}

/// The default range.
pub const DEFAULT: Range<i64> = 11_000..12_000;

/// The smallest size of a range.
const FEWEST: i64 = 50;

impl Ports {
    /// Returns all ports from `min` to `max`, without `max`.
    ///
    /// # Errors
    /// The range is invalid.
    pub fn new(min: i64, max: i64) -> Result<Self, String> {
        // Lower ports are reserved for root.
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
            assigned: HashMap::new(),
        })
    }

    /// Removes the range from the configuration. The rest is for the engine.
    ///
    /// # Errors
    /// The range is invalid.
    pub fn from_conf(conf: &mut Value, log: impl Fn(LogLevel, &str)) -> Result<Self, String> {
        let range = conf
            .as_object_mut()
            .map_or((None, None), |conf| (conf.remove("port-min"), conf.remove("port-max")));
        let (start, end) = (DEFAULT.start, DEFAULT.end);
        match range {
            (Some(Value::Number(min)), Some(Value::Number(max))) if min.is_i64() && max.is_i64() => {
                Self::new(min.as_i64().unwrap_or(0), max.as_i64().unwrap_or(0))
            }
            (None, None) => {
                let line = format!(
                    "Port range not specified in config with port-min and port-max. Using defaults of {start} and {end}."
                );
                log(LogLevel::Notice, &line);
                Self::new(start, end)
            }
            // Uses the defaults like the plugin of flux-coral2, but warns: an instance that started with this
            // configuration must still start.
            _ => {
                let line = format!(
                    "port-min and port-max are not both integers and are ignored: using defaults of {start} and {end}: \
                 give both"
                );
                log(LogLevel::Warning, &line);
                Self::new(start, end)
            }
        }
    }

    /// Assigns two ports to a job; none if fewer are free.
    pub fn take(&mut self, job: JobId) -> Option<Pair> {
        let at = self.free.len().checked_sub(2)?;
        let pair = [self.free[at + 1], self.free[at]];
        self.free.truncate(at);
        self.assigned.insert(job, pair);
        Some(pair)
    }

    /// Records the ports that a job already has.
    pub fn claim(&mut self, job: JobId, pair: Pair) {
        self.give_back(job);
        self.free.retain(|port| !pair.contains(port));
        self.assigned.insert(job, pair);
    }

    /// Returns the ports of a job.
    pub fn of(&self, job: JobId) -> Option<Pair> {
        self.assigned.get(&job).copied()
    }

    /// Frees the ports of a job, if it has any.
    pub fn give_back(&mut self, job: JobId) {
        for port in self.assigned.remove(&job).into_iter().flatten() {
            // A port stays in use if an earlier plugin also gave it to another job. One outside of the range is
            // dropped.
            let taken = self.assigned.values().any(|pair| pair.contains(&port));
            if !taken && self.range.contains(&port.into()) && !self.free.contains(&port) {
                self.free.push(port);
            }
        }
    }

    /// Returns the number of free ports.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Returns the configured range.
    pub fn range(&self) -> &Range<u32> {
        &self.range
    }

    /// Returns all assigned ports.
    pub fn assigned(&self) -> impl Iterator<Item = (JobId, Pair)> {
        self.assigned.iter().map(|(job, pair)| (*job, *pair))
    }
}

/// Returns the ports in the last event of this plugin; none if there is no event, or it contains no ports.
pub fn from_eventlog(eventlog: &Eventlog) -> Option<Pair> {
    from_context(eventlog.contexts(EVENT).next_back()?)
}

/// Parses the context of an event of this plugin, or of the same event of flux-coral2.
pub fn from_context(context: &Value) -> Option<Pair> {
    let [first, second] = context["ports"].as_array()?.as_slice() else {
        return None;
    };
    let port = |value: &Value| u16::try_from(value.as_u64()?).ok();
    Some([port(first)?, port(second)?])
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

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

    #[test]
    fn the_last_event_tells_the_ports() {
        let line = |name: &str, ports: &str| format!(r#"{{"timestamp":1.0,"name":"{name}","context":{{{ports}}}}}"#);
        let (ours, others) = (EVENT, "other");
        let log = |lines: &[String]| from_eventlog(&Eventlog::parse(&lines.join("\n"), &[EVENT]));
        assert_eq!(log(&[line(others, r#""ports":[1,2]"#)]), None);
        assert_eq!(log(&[line(ours, r#""ports":[1]"#)]), None);
        let old = r#""ports":[11999,11998],"random_integer":-3"#;
        assert_eq!(
            log(&[
                "no event".to_owned(),
                line(ours, r#""ports":[1,2]"#),
                line(ours, old),
                line(others, "")
            ]),
            Some([11_999, 11_998])
        );
    }

    #[test]
    fn the_range_is_configured_by_both_ends_or_not_at_all() {
        for (conf, range, level) in [
            (json!(null), 11_000..12_000, Some(LogLevel::Notice)),
            (json!({}), 11_000..12_000, Some(LogLevel::Notice)),
            (json!({"port-min": 2000, "port-max": 2050}), 2000..2050, None),
            (json!({"port-min": 2000}), 11_000..12_000, Some(LogLevel::Warning)),
            (
                json!({"port-min": "2000", "port-max": "2100"}),
                11_000..12_000,
                Some(LogLevel::Warning),
            ),
        ] {
            let (mut rest, said) = (conf.clone(), Cell::new(None));
            let ports = Ports::from_conf(&mut rest, |level, _| said.set(Some(level))).unwrap();
            assert_eq!((ports.range(), said.get()), (&range, level), "{conf}");
            assert!(rest.as_object().is_none_or(|rest| rest.is_empty()), "{rest}");
        }
        assert!(Ports::from_conf(&mut json!({"port-min": 0, "port-max": 12_000}), |_, _| {}).is_err());
    }
}
