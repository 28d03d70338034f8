// SPDX-License-Identifier: MIT OR Apache-2.0

//! The protocol between a scheduler's plugin and the agent, over a Unix stream socket.
//!
//! A plugin sends [`Request`]s and the agent sends [`Reply`]s, each in one frame. Either side may close the
//! connection at any moment. The plugin then reconnects and repeats every request without a final reply. The agent
//! discards the connection's state.
//!
//! ```text
//! plugin ── Hello, Configure, Deliver, LookUp, Cancel, Job, Ended ──► agent ◄── Ask ── command
//! plugin ◄── Welcome, Configured, Delivered | NoRule | Failed, Owner, Log, AskJob ── agent ── Answer ──► command
//! ```

#![forbid(unsafe_code)]

mod failure;
mod figures;
mod frame;
mod login;
pub mod service;
pub mod slurm;
mod throttle;
mod validity;

use std::{fmt, path::PathBuf};

use config::{Asked, Part, Principal, TokenRequests};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub use failure::{Code, Failure};
pub use figures::{Count, DUE, Figures, Held, KeyFigures, Latency, MAX_HELD, SourceFigures};
pub use frame::{Error, HEADER, Incoming, MAX_FRAME, body_length, decode, encode, receive};
pub use login::{
    BeginLogin, Bound, FinishLogin, JobLogin, LoggedIn, LoginQuestion, ProviderSession, UserRequest, job_login_payload,
};
pub use throttle::Throttle;
pub use validity::{
    Answer, Ask, Denial, DenialCode, Evidence, IssuerQuestion, JobEnd, JobFacts, MAX_SUBJECTS, MAX_TEXT, MintRequest,
    Question, Subject, TokenFacts, Validity, munge_payload,
};

/// The version of the protocol. Both sides must have the same.
pub const VERSION: u16 = 5;

/// The release of a side. A plugin of a new release replaces an agent of an old one.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// A message from a plugin to the agent.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// The first message of a connection.
    Hello(Hello),
    /// A configuration, which later requests name by its generation. The reply is [`Reply::Configured`].
    Configure(Configure),
    /// A configuration that no later request names.
    Retire {
        /// Its generation.
        generation: u32,
    },
    /// A job that needs its variables. The final reply is one of [`Reply::Delivered`], [`Reply::NoRule`] and
    /// [`Reply::Failed`].
    Deliver(Deliver),
    /// The plugin no longer waits for a delivery. There is no reply.
    Cancel {
        /// Its number.
        number: u64,
    },
    /// A request to look up a user. The reply is [`Reply::Owner`].
    LookUp {
        /// The configuration that needs the user.
        generation: u32,
        /// The user.
        uid: u32,
    },
    /// The reply to [`Reply::AskJob`].
    Job {
        /// The number of the question.
        number: u64,
        /// The end of the job; none if it is active.
        end: Option<JobEnd>,
    },
    /// A question of a command or service, the only message of its connection. The reply is [`Reply::Answer`].
    Ask(Ask),
    /// A job has ended; sent if the issuer has status lists. There is no reply. The plugin does not repeat it: the
    /// agent asks on a new connection.
    Ended {
        /// The job id.
        jobid: u64,
    },
}

/// The first message of a plugin.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u16,
    /// [`RELEASE`].
    pub release: String,
}

/// A configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Configure {
    /// Its generation, chosen by the plugin.
    pub generation: u32,
    /// The scheduler's configuration, a JSON object with the table `workflow-token`.
    pub conf: String,
    /// The options that the plugin was loaded with, in JSON: an object or null.
    pub overrides: String,
    /// The file or directory that contains the scheduler's configuration, if the scheduler reports it.
    pub path: Option<PathBuf>,
    /// The part of the configuration that the plugin uses.
    pub part: Part,
    /// The name of the scheduler instance in tokens that name a job.
    pub instance: String,
}

/// A job that needs its variables.
#[derive(Debug, Serialize, Deserialize)]
pub struct Deliver {
    /// The number of the delivery, unique among those of a connection.
    pub number: u64,
    /// The configuration that applies.
    pub generation: u32,
    /// The timeout from now on, in milliseconds.
    pub timeout_ms: u64,
    /// The job id.
    pub jobid: u64,
    /// The job id as users write it: F58, RFC 19.
    pub f58: String,
    /// The uid of the job owner.
    pub uid: u32,
    /// The project that the job requests.
    pub asked: Asked,
    /// The time limit of the job in milliseconds, if any.
    pub limit_ms: Option<u64>,
    /// The user's requests for tokens, by their names.
    pub requests: TokenRequests,
    /// The number of records that the job has had: 0 for its first delivery.
    pub record: u32,
    /// The origin of the variables.
    pub origin: Origin,
}

/// The origin of the variables of a delivery.
#[derive(Debug, Serialize, Deserialize)]
pub enum Origin {
    /// For each name of a token: the source of the first of these rules that matches the job owner. Indices into the
    /// configuration.
    Rules(Vec<u32>),
    /// Provided by the plugin. The source for rabbit jobs, if there is one, adds variables and overrides these.
    Provided(Vec<(String, SecretText)>),
}

/// A secret in a message. It is zeroized when dropped, and does not print.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretText(pub Zeroizing<String>);

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(…)")
    }
}

/// A message from the agent to a plugin.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The reply to [`Request::Hello`]. If the version differs, or the agent does not serve the user that the plugin
    /// runs as, the agent then closes the connection. If only the release differs, the agent leaves its socket to a
    /// successor and serves its existing connections until they close.
    Welcome {
        /// The version of the agent.
        version: u16,
        /// The release of the agent.
        release: String,
        /// The uid that the agent runs as, which seals its records. The plugin cannot use the peer credentials of the
        /// socket: systemd is the peer of a socket that it passed.
        uid: u32,
    },
    /// The reply to [`Request::Configure`], with an error if the agent cannot use the configuration on this machine.
    Configured {
        /// Its generation.
        generation: u32,
        /// The error, for the operator.
        wrong: Option<String>,
    },
    /// A sealed record.
    Delivered {
        /// The number of the delivery.
        number: u64,
        /// The record, in JSON.
        record: String,
        /// The names of its variables.
        names: Vec<String>,
        /// The next renewal; none if there is none.
        due: Option<seal::Due>,
        /// Lines for the user about the tokens of the job; each line names one token.
        warnings: Vec<String>,
    },
    /// No rule matches the job owner.
    NoRule {
        /// The number of the delivery.
        number: u64,
    },
    /// The delivery failed: the job has no record.
    Failed {
        /// The number of the delivery.
        number: u64,
        /// The reason.
        failure: Failure,
    },
    /// A user that was looked up, on request or in advance, or an error.
    Owner {
        /// The configuration that needs the user.
        generation: u32,
        /// The user.
        uid: u32,
        /// The facts about the user that the configuration needs, or an error for the operator.
        owner: Result<Owner, String>,
    },
    /// A line for the operator's log.
    Log(Line),
    /// A question about a job. The reply is [`Request::Job`].
    AskJob {
        /// The number of the question.
        number: u64,
        /// The job id.
        jobid: u64,
    },
    /// The reply to [`Request::Ask`].
    Answer(Answer),
}

/// A line for the operator's log.
#[derive(Debug, Serialize, Deserialize)]
pub struct Line {
    /// Set if the line requires action.
    pub is_warning: bool,
    /// The number of the delivery that the line concerns, if any.
    pub number: Option<u64>,
    /// The line, without a secret.
    pub text: String,
}

/// The facts about a user that rules and projects need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The user name; none if the uid has none.
    pub name: Option<String>,
    /// The groups in rules and projects that the user is in.
    pub groups: Vec<Principal>,
    /// The values of the claim in the user's identity token.
    pub claims: Vec<String>,
    /// The time until the claims expire with the identity token, in milliseconds; none without claims.
    pub claims_ms: Option<u64>,
    /// The reason why the identity token, if any, is not accepted.
    pub refused: Option<Failure>,
    /// The time until these facts expire, in milliseconds.
    pub fresh_ms: u64,
}
