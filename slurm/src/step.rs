//! The messages between the plugin in slurmstepd and `workflow-token-slurmstepd`, each in one frame on a socket, and the record that
//! both open.
//!
//! ```text
//! plugin ── Start ──► program     plugin ◄── Started ── program     plugin ── pid (u32) of each task ──► program
//! ```
//!
//! The program ends when the plugin closes the socket, or when all tasks have ended.

use std::{path::PathBuf, time::Duration};

use seal::{Error, Expected, Munge, Opened, Owner, Record};
use serde::{Deserialize, Serialize};

/// The longest [`Start`] or [`Started`], in bytes: a sealed record and some paths.
pub const MAX_MESSAGE: usize = 4 << 20;

/// The longest message with a pid, in bytes.
pub const MAX_PID: usize = 16;

/// The time that a restart of munged may take.
const MUNGED_TIMEOUT: Duration = Duration::from_secs(10);

/// The tasks of a step on one node, and their first record.
#[derive(Debug, Serialize, Deserialize)]
pub struct Start {
    /// The configuration of the cluster.
    pub config: PathBuf,
    /// The node name.
    pub node: String,
    /// The job id.
    pub jobid: u32,
    /// The uid of the job owner.
    pub uid: u32,
    /// The primary group of the job owner.
    pub gid: u32,
    /// The number of tasks on this node.
    pub tasks: u32,
    /// Set if tasks may receive the signal that a rule asks for.
    pub signals: bool,
    /// The sealed record, in JSON.
    pub record: String,
}

/// The variables that name the files of tokens, with their paths; or why there are none, for the operator.
pub type Started = Result<Vec<(String, PathBuf)>, String>;

/// A record on a node of its job.
#[derive(Debug)]
pub struct LocalRecord {
    /// The sealed record.
    pub record: Record,
    /// The job that it must be for.
    pub jobid: u32,
    /// The only user whose seal counts.
    pub agent_uid: u32,
}

impl LocalRecord {
    /// Opens the record as the effective user of this process. Blocks, while munged does not answer, for ten seconds.
    ///
    /// # Errors
    /// As those of [`Record::open`].
    pub fn open(&self, munge: &Munge) -> Result<Opened, Error> {
        let expected = Expected {
            owner: Owner {
                jobid: self.jobid.into(),
                uid: nix::unistd::geteuid().as_raw(),
            },
            instance_owner: self.agent_uid,
        };
        self.record.open_within(MUNGED_TIMEOUT, munge, &expected)
    }
}
