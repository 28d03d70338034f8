//! The messages of a Slurm cluster, each in one frame.
//!
//! ```text
//! PrologSlurmctld, EpilogSlurmctld ── ControllerRequest ──► agent   Unix socket, one request for each connection
//! PrologSlurmctld, EpilogSlurmctld ◄── ControllerReply ──── agent
//! node, as root ── MUNGE credential { NodeRequest } ──► agent       TCP, one request for each connection
//! node          ◄── NodeReply ───────────────────────── agent
//! ```
//!
//! Only the user of the agent can open a request of a node, and only the job owner can open a record. A reply is not
//! authenticated: a forged one can make a job fail, which whoever can forge it can do anyway.

use serde::{Deserialize, Serialize};

use crate::{Answer, Ask};

/// The version of these messages. A node rejects a reply of another version, and the agent a request.
pub const VERSION: u16 = 2;

/// The longest request, in bytes.
pub const MAX_REQUEST: usize = 256 << 10;

/// From a controller's prolog or epilog to its agent.
#[derive(Debug, Serialize, Deserialize)]
pub enum ControllerRequest {
    /// A job is about to start. The reply comes once its record, or the reason why it has none, is stored.
    Prolog(Job),
    /// A job has ended, or is going to be requeued.
    Epilog {
        /// [`VERSION`].
        version: u16,
        /// The job id.
        jobid: u32,
        /// The number of times that Slurm had requeued the job.
        restarts: u32,
    },
    /// A question of a command or service.
    Ask(Ask),
}

/// The facts of a job, as Slurm gives them to PrologSlurmctld (slurm.conf(5), prolog_epilog).
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
    /// The account; none if jobs have none.
    pub account: Option<String>,
    /// The quality of service; none if the release does not pass it on.
    pub qos: Option<String>,
    /// The comment, if the user gave one.
    pub comment: Option<String>,
    /// The nodes, as in `n[1-2]`.
    pub nodes: String,
    /// The number of times that Slurm has requeued the job.
    pub restarts: u32,
    /// The job id and the index of an array task.
    pub array: Option<(u32, u32)>,
    /// The requests for tokens, in JSON, as the user sent them; empty if they could not be read.
    pub requests: Option<String>,
}

/// The variable with the requests of a job, in JSON. The user's client hands it to Slurm. In the environment of PrologSlurmctld
/// its name begins with `SPANK_`, in that of a batch script with `SLURM_SPANK_`.
pub const REQUESTS: &str = "WORKFLOW_TOKEN_REQUESTS";

/// From the agent to a controller's prolog or epilog.
#[derive(Debug, Serialize, Deserialize)]
pub enum ControllerReply {
    /// It is done: nodes can ask.
    Done,
    /// It could not be done, for the log.
    Failed(String),
    /// The answer to a question.
    Answer(Answer),
}

/// From a node to the agent, in a MUNGE credential.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeRequest {
    /// [`VERSION`].
    pub version: u16,
    /// The cluster.
    pub cluster: String,
    /// The job id.
    pub jobid: u32,
    /// The uid of the job owner, as the node knows it.
    pub uid: u32,
    /// The node name (slurm.conf(5), NodeName).
    pub node: String,
}

/// From the agent to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeReply {
    /// The sealed record, in JSON. It is without variables if no rule is for the job.
    Record(String),
    /// The job gets no token and must not start. The reason, for the user.
    Failed(String),
    /// Nothing is known of the job, or of the node.
    Unknown,
}
