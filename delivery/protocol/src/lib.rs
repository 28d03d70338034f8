//! The messages between a scheduler's plugin and the agent, over a Unix stream socket.
//!
//! A plugin sends [`Request`]s and the agent sends [`Reply`]s, each in one [`frame`]. Either side may close the connection
//! at any moment. The plugin then connects again and repeats every request without a final reply; the agent forgets a
//! connection with everything that it did for it.
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
pub use validity::{
    Answer, Ask, Denial, DenialCode, Evidence, IssuerQuestion, JobEnd, JobFacts, MAX_SUBJECTS, MAX_TEXT, MintRequest,
    Question, Subject, TokenFacts, Validity, munge_payload,
};

/// The version of the protocol. Both sides must have the same.
pub const VERSION: u16 = 5;

/// The release that a side was built from. A plugin of a new release replaces an agent of an old one.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// From a plugin to the agent.
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
    /// A job that is to get its variables. The final reply is one of [`Reply::Delivered`], [`Reply::NoRule`] and
    /// [`Reply::Failed`].
    Deliver(Deliver),
    /// A delivery that nobody waits for any more. There is no reply.
    Cancel {
        /// Its number.
        number: u64,
    },
    /// A user that is to be looked up. The reply is [`Reply::Owner`].
    LookUp {
        /// The configuration that asks.
        generation: u32,
        /// The user.
        uid: u32,
    },
    /// The answer to [`Reply::AskJob`].
    Job {
        /// The number of the question.
        number: u64,
        /// The end of the job; none if it is active.
        end: Option<JobEnd>,
    },
    /// A question of a command or service. It is the only message of its connection; the reply is [`Reply::Answer`].
    Ask(Ask),
    /// A job has ended, if the issuer has status lists. There is no reply. It is not repeated: the agent asks on a new connection.
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
    /// The keys that were given when the plugin was loaded, in JSON: an object or null.
    pub overrides: String,
    /// The file or directory that the scheduler reads its configuration from, if it tells.
    pub path: Option<PathBuf>,
    /// The part of it that the plugin uses.
    pub part: Part,
    /// The name of the scheduler instance in tokens that name a job.
    pub instance: String,
}

/// A job that is to get its variables.
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
    /// The project that the job asks for.
    pub asked: Asked,
    /// The time limit of the job in milliseconds, if any.
    pub limit_ms: Option<u64>,
    /// What the user requests of its tokens, by their names.
    pub requests: TokenRequests,
    /// The number of records that the job has had: 0 for its first delivery.
    pub record: u32,
    /// The origin of the variables.
    pub origin: Origin,
}

/// The origin of the variables of a delivery.
#[derive(Debug, Serialize, Deserialize)]
pub enum Origin {
    /// For each name of a token, from the source of the first of these rules that is for the job owner: indices into the
    /// configuration.
    Rules(Vec<u32>),
    /// Provided by the plugin. Those of the source for rabbit jobs, if there is one, are added and win.
    Provided(Vec<(String, SecretText)>),
}

/// A secret on its way. It is zeroized when dropped, and does not print.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretText(pub Zeroizing<String>);

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(…)")
    }
}

/// From the agent to a plugin.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The reply to [`Request::Hello`]. If the version differs, or the agent does not serve the user that the plugin runs as,
    /// the agent closes the connection after it. If only the release differs, the agent leaves its socket to a successor and
    /// serves its connections to their end.
    Welcome {
        /// The version of the agent.
        version: u16,
        /// The release of the agent.
        release: String,
        /// The uid that the agent runs as, which is the sealer of its records. The peer of a socket that systemd passed is
        /// systemd.
        uid: u32,
    },
    /// The reply to [`Request::Configure`]: why the configuration cannot be used here, if it cannot.
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
        /// The next record; none if there will be no other.
        due: Option<seal::Due>,
        /// Lines for the user about the tokens of the job; each names one.
        warnings: Vec<String>,
    },
    /// No rule is for the owner of the job.
    NoRule {
        /// The number of the delivery.
        number: u64,
    },
    /// There is no record.
    Failed {
        /// The number of the delivery.
        number: u64,
        /// The reason.
        failure: Failure,
    },
    /// A user that was looked up, on request or in advance; or why nothing is known.
    Owner {
        /// The configuration that asked.
        generation: u32,
        /// The user.
        uid: u32,
        /// The user as far as the configuration asks, or an error for the operator.
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
    /// Set if somebody must act on it.
    pub is_warning: bool,
    /// The number of the delivery that it is about, if it is about one.
    pub number: Option<u64>,
    /// The line, without a secret.
    pub text: String,
}

/// A user, as far as rules and projects ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The user name; none if the uid has none.
    pub name: Option<String>,
    /// The groups that rules and projects name and the user is in.
    pub groups: Vec<Principal>,
    /// The values of the claim of the user's identity token.
    pub claims: Vec<String>,
    /// The time until the claims end with the identity token, in milliseconds; none without claims.
    pub claims_ms: Option<u64>,
    /// The reason why the identity token, if any, is not accepted.
    pub refused: Option<Failure>,
    /// The time until this expires, in milliseconds.
    pub fresh_ms: u64,
}
