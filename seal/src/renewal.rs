// SPDX-License-Identifier: MIT OR Apache-2.0

//! The generations of a record. A job whose token expires receives a series of records, each of which replaces the
//! previous one.

use std::{
    io::{self, Write},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

/// The fraction of the time between two records over which the nodes of a job spread their look-ups.
const SPREAD: f64 = 0.1;

/// The least time, in seconds, from the fetch of a record until nodes can look it up. The first look-up is later.
const LEAD: f64 = 0.2;

/// The shortest and the longest pause before a late record is looked up again, in seconds. A pause is a quarter of the
/// time until, or since, the token's expiry.
const PAUSES: (f64, f64) = (0.5, 60.0);

/// The generation of a record, and the way tasks receive the next one. Times are in seconds since 1970-01-01T00:00:00Z,
/// by the clock of the sealing node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Renewal {
    /// The number of records that the job received before this one.
    pub generation: u32,
    /// The time at which the next record is fetched, or None if this is the last.
    pub renew_at: Option<f64>,
    /// The earliest expiry among the tokens, or None if none expires or the expiry is unknown.
    pub expires_at: Option<f64>,
    /// The variables whose values are also in files on the nodes of the job.
    pub files: Vec<String>,
    /// The variable among them whose file `BEARER_TOKEN_FILE` also names.
    pub bearer: Option<String>,
    /// The signal that tasks receive when their files contain new values, signal(7).
    pub signal: Option<i32>,
    /// The consequence if a token expires before its renewal.
    pub on_expiry: OnExpiry,
}

/// The next record of a job, for the code that fetches it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Due {
    /// The number of records that the job received before it.
    pub records: u32,
    /// As in [`Renewal`].
    pub renew_at: f64,
    /// As in [`Renewal`].
    pub expires_at: Option<f64>,
    /// As in [`Renewal`].
    pub on_expiry: OnExpiry,
}

/// The consequence if a token expires before its renewal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnExpiry {
    /// A line in the log, and on Flux an exception that does not end the job.
    #[default]
    Warn,
    /// In addition, SIGTERM to the tasks of the job.
    Signal,
    /// The end of the job: on Flux with an exception, on Slurm by scancel(1).
    Exception,
}

impl Renewal {
    /// Returns the next record, or None if this is the last.
    pub fn due(&self) -> Option<Due> {
        Some(Due {
            records: self.generation.saturating_add(1),
            renew_at: self.renew_at?,
            expires_at: self.expires_at,
            on_expiry: self.on_expiry,
        })
    }

    /// Returns whether the next record is not due yet.
    pub fn is_current(&self, clock: SystemTime) -> bool {
        self.renew_at.is_none_or(|at| at > seconds(clock))
    }

    /// Returns the time until a node of the job looks up the next record, or None if this is the last. `place` is the
    /// position of the node among the others, from 0 to 1.
    pub fn look_up_in(&self, clock: SystemTime, place: f64) -> Option<Duration> {
        let until = (self.renew_at? - seconds(clock)).max(0.0);
        Duration::try_from_secs_f64(until + LEAD + until * SPREAD * place).ok()
    }

    /// Returns the time until a node looks up a late record again.
    pub fn look_up_again_in(&self, clock: SystemTime) -> Duration {
        let left = self.expires_at.map(|at| at - seconds(clock));
        Duration::from_secs_f64(match left {
            Some(left) if left.is_finite() => (left.abs() / 4.0).clamp(PAUSES.0, PAUSES.1),
            _ => PAUSES.1,
        })
    }

    /// Writes the value as the next member of a JSON object, unless the record is the only one.
    pub(crate) fn write_member(&self, out: &mut impl Write) -> io::Result<()> {
        if *self == Self::default() {
            return Ok(());
        }
        out.write_all(br#","renewal":"#)?;
        Ok(serde_json::to_writer(out, self)?)
    }

    /// Returns the maximum length in bytes, provided that names need no escapes.
    pub(crate) fn room(&self) -> usize {
        const MEMBERS: usize = 256;
        if *self == Self::default() {
            return 0;
        }
        let names = self.files.iter().chain(&self.bearer);
        MEMBERS + names.map(|name| name.len() + 4).sum::<usize>()
    }
}

fn seconds(clock: SystemTime) -> f64 {
    let since = clock.duration_since(SystemTime::UNIX_EPOCH);
    since.as_ref().map_or(0.0, Duration::as_secs_f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_record_that_is_late_is_looked_up_more_often_the_nearer_the_expiry_is() {
        let pause = |expires_at, now| {
            let renewal = Renewal {
                expires_at,
                ..Renewal::default()
            };
            renewal.look_up_again_in(at(now)).as_secs_f64()
        };
        assert_eq!(pause(Some(1000.0), 0), 60.0);
        assert_eq!(pause(Some(20.0), 0), 5.0);
        assert_eq!(pause(Some(1.0), 0), 0.5);
        // A short outage ends soon. Nodes whose token expired long ago cause little load.
        assert_eq!(pause(Some(1.0), 2), 0.5);
        assert_eq!(pause(Some(1.0), 41), 10.0);
        assert_eq!(pause(Some(1.0), 1000), 60.0);
        assert_eq!(pause(Some(f64::NAN), 2), 60.0);
        assert_eq!(pause(None, 2), 60.0);
    }

    #[test]
    fn nodes_look_a_record_up_one_after_the_other_once_it_is_due() {
        let look_up = |renew_at, place| {
            let renewal = Renewal {
                renew_at,
                ..Renewal::default()
            };
            renewal.look_up_in(at(100), place).map(|time| time.as_secs_f64())
        };
        assert_eq!(look_up(Some(1100.0), 0.0), Some(1000.2));
        assert_eq!(look_up(Some(1100.0), 1.0), Some(1100.2));
        assert_eq!(look_up(Some(1.0), 1.0), Some(0.2));
        assert_eq!(look_up(Some(f64::MAX), 1.0), None);
        assert_eq!(look_up(None, 1.0), None);
        let is_current = |renew_at| {
            Renewal {
                renew_at,
                ..Renewal::default()
            }
            .is_current(at(100))
        };
        assert!(is_current(None) && is_current(Some(101.0)) && !is_current(Some(99.0)));
    }
}
