// SPDX-License-Identifier: MIT OR Apache-2.0

//! The protocol of a Slurm cluster. Each message is one frame.
//!
//! ```text
//! PrologSlurmctld, EpilogSlurmctld ── ControllerRequest ──► agent   Unix socket, one request for each connection
//! PrologSlurmctld, EpilogSlurmctld ◄── ControllerReply ──── agent
//! node, as root ── MUNGE credential { NodeRequest } ──► agent       TCP, one request for each connection
//! node          ◄── NodeReply ───────────────────────── agent
//! ```
//!
//! Only the user of the agent can open a request of a node, and only the job owner can open a record. Replies are not
//! authenticated. A forged reply can make a job fail, but an attacker who can forge replies can also block them.

use serde::{Deserialize, Serialize};

use crate::{Answer, Ask};

/// The version of these messages. A node rejects a reply of another version, and the agent a request.
pub const VERSION: u16 = 2;

/// The longest request, in bytes.
pub const MAX_REQUEST: usize = 256 << 10;

/// A message from a controller's prolog or epilog to its agent.
#[derive(Debug, Serialize, Deserialize)]
pub enum ControllerRequest {
    /// A job is about to start. The agent replies after it has stored the record, or the reason why there is none.
    Prolog(Job),
    /// A job has ended, or will be requeued.
    Epilog {
        /// [`VERSION`].
        version: u16,
        /// The job id.
        jobid: u32,
        /// The number of times that Slurm has requeued the job.
        restarts: u32,
    },
    /// A question of a command or service.
    Ask(Ask),
}

/// The facts of a job that PrologSlurmctld receives (slurm.conf(5), prolog_epilog).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// [`VERSION`].
    pub version: u16,
    /// The cluster.
    pub cluster: String,
    /// The job id. Array tasks and components of heterogeneous jobs have their own.
    pub jobid: u32,
    /// The uid of the job owner.
    pub uid: u32,
    /// The partition.
    pub partition: String,
    /// The account, if the job has one.
    pub account: Option<String>,
    /// The quality of service; none if this release of Slurm does not pass it.
    pub qos: Option<String>,
    /// The comment, if the user gave one.
    pub comment: Option<String>,
    /// The nodes, as in `n[1-2]`.
    pub nodes: String,
    /// The number of times that Slurm has requeued the job.
    pub restarts: u32,
    /// The job id and the index of an array task.
    pub array: Option<(u32, u32)>,
    /// The user's requests for tokens, in JSON; empty if they could not be read.
    pub requests: Option<String>,
}

/// The variable with the requests of a job, in JSON. The user's client passes it to Slurm. Its name begins with
/// `SPANK_` in the environment of PrologSlurmctld, and with `SLURM_SPANK_` in that of a batch script.
pub const REQUESTS: &str = "WORKFLOW_TOKEN_REQUESTS";

/// A message from the agent to a controller's prolog or epilog.
#[derive(Debug, Serialize, Deserialize)]
pub enum ControllerReply {
    /// The request succeeded: nodes can ask for the record.
    Done,
    /// The request failed. The reason is for the log.
    Failed(String),
    /// The answer to a question.
    Answer(Answer),
}

/// A message from a node to the agent, in a MUNGE credential.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeRequest {
    /// [`VERSION`].
    pub version: u16,
    /// The cluster.
    pub cluster: String,
    /// The job id.
    pub jobid: u32,
    /// The uid of the job owner, according to the node.
    pub uid: u32,
    /// The node name (slurm.conf(5), NodeName).
    pub node: String,
}

/// A message from the agent to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeReply {
    /// The sealed record, in JSON. It has no variables if no rule matches the job.
    Record(String),
    /// The job gets no token and must not start. The reason, for the user.
    Failed(String),
    /// The agent knows no such job, or the node is not one of the job's.
    Unknown,
}
