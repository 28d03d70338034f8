// SPDX-License-Identifier: MIT OR Apache-2.0

//! The state that a plugin leaves, as one versioned item of the Flux handle, for its successor in the same job manager.
//!
//! It contains more than eventlogs, and is more recent: the job manager writes eventlogs in batches. A successor that
//! finds another version or damaged bytes ignores them, and reads the eventlogs as after a restart.

use std::collections::HashSet;

use ffi::{Flux, JobId, LogLevel};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{eventlog::Past, identity::Identity};

/// Must be raised with each change of the format, including the parts of single plugins.
const VERSION: u32 = 1;

/// The longest item that is accepted, in bytes: several million jobs.
const LONGEST: usize = 256 << 20;

/// The state.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handover {
    /// Jobs whose prologs are outstanding.
    pub in_flight: HashSet<JobId>,
    /// Jobs with a record.
    pub(crate) delivered: HashSet<JobId>,
    /// Jobs whose state is unknown.
    pub(crate) unknown: HashSet<JobId>,
    /// The plugin's own part.
    pub own: Value,
}

impl Handover {
    /// Takes the state that the predecessor left; none if there was none in this job manager, or if it left another
    /// version.
    pub(crate) fn take(flux: Flux<'_>, identity: &Identity) -> Option<Self> {
        let bytes = flux.left(identity.handover).filter(|bytes| !bytes.is_empty())?;
        let handover = Self::parse(&bytes);
        // Empty the item: it becomes outdated from now on.
        let _ = flux.leave(identity.handover, b"");
        if handover.is_none() {
            let line = format!(
                "{}: the state of the former plugin has another version or is damaged: reading eventlogs instead",
                identity.name
            );
            flux.log(LogLevel::Warning, &line);
        }
        handover
    }

    /// Leaves the state for the next plugin.
    pub(crate) fn leave(&self, flux: Flux<'_>, identity: &Identity) {
        if let Err(e) = flux.leave(identity.handover, &self.to_bytes()) {
            let line = format!(
                "{}: nothing is left for the next plugin: {e}: it reads eventlogs",
                identity.name
            );
            flux.log(LogLevel::Err, &line);
        }
    }

    /// Returns the state of a job's prolog; none if unknown.
    pub(crate) fn past(&self, job: JobId) -> Option<Past> {
        if self.unknown.contains(&job) {
            return None;
        }
        Some(if self.in_flight.contains(&job) {
            Past::Outstanding
        } else if self.delivered.contains(&job) {
            Past::Finished(0)
        } else {
            Past::None
        })
    }

    /// Returns the plugin's own part, if it has the format of this release.
    pub(crate) fn own<T: DeserializeOwned>(&self) -> Option<T> {
        T::deserialize(&self.own).ok()
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        // The keys are strings, and writing to memory does not fail.
        let _ = serde_json::to_writer(&mut bytes, self);
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (version, content) = bytes.split_first_chunk().filter(|_| bytes.len() <= LONGEST)?;
        if u32::from_le_bytes(*version) != VERSION {
            return None;
        }
        serde_json::from_slice(content).ok()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn handover() -> Handover {
        Handover {
            in_flight: [JobId(1)].into(),
            delivered: [JobId(2), JobId(u64::MAX)].into(),
            unknown: [JobId(3)].into(),
            own: json!([[7, [11_999, 11_998]]]),
        }
    }

    #[test]
    fn what_is_left_is_read() {
        let read = Handover::parse(&handover().to_bytes()).expect("it is of this version");
        assert!(read == handover());
        let past = |job| read.past(JobId(job));
        assert_eq!(past(1), Some(Past::Outstanding));
        assert_eq!(past(u64::MAX), Some(Past::Finished(0)));
        assert_eq!((past(3), past(5)), (None, Some(Past::None)));
        assert_eq!(read.own::<Vec<(u64, [u16; 2])>>(), Some(vec![(7, [11_999, 11_998])]));
        assert_eq!(read.own::<Vec<String>>(), None);
    }

    #[test]
    fn other_versions_and_damaged_bytes_are_ignored() {
        let good = handover().to_bytes();
        for len in 0..good.len() {
            assert!(Handover::parse(&good[..len]).is_none(), "{len}");
        }
        for version in [0, VERSION + 1, u32::MAX] {
            let mut other = good.clone();
            other[..4].copy_from_slice(&version.to_le_bytes());
            assert!(Handover::parse(&other).is_none(), "{version}");
        }
        let more = [
            &VERSION.to_le_bytes()[..],
            br#"{"in_flight":[],"delivered":[],"unknown":[],"own":1,"x":1}"#,
        ];
        assert!(Handover::parse(&more.concat()).is_none());
        let damaged = [
            &VERSION.to_le_bytes()[..],
            br#"{"in_flight":["x"],"delivered":[],"unknown":[],"own":1}"#,
        ];
        assert!(Handover::parse(&damaged.concat()).is_none());
    }
}
