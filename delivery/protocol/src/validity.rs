//! Questions to the agent about tokens that were issued: whether they are still valid, and that they are not to be.

use serde::{Deserialize, Serialize};

/// The most subjects in one revocation, and the longest of their texts, in bytes.
pub const MAX_SUBJECTS: usize = 16;
/// See [`MAX_SUBJECTS`].
pub const MAX_TEXT: usize = 1024;

/// One question, which is the only message of its connection.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ask {
    /// [`VERSION`](crate::VERSION).
    pub version: u16,
    /// The question.
    pub question: Question,
}

/// A question about tokens.
#[derive(Debug, Serialize, Deserialize)]
pub enum Question {
    /// Whether a token that was verified is still valid.
    Check(TokenFacts),
    /// Revokes tokens. The answer comes once that is on disk.
    Revoke {
        /// The tokens: those with any of these subjects.
        subjects: Vec<Subject>,
        /// For how long the revocation is kept, in seconds: until the last of the tokens expires.
        keep_secs: u64,
    },
}

/// The answer to a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Question::Check`].
    Validity(Validity),
    /// To [`Question::Revoke`].
    Revoked,
    /// The question cannot be answered, for the operator.
    Failed(String),
}

/// The claims of a token that decide whether it is still valid.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TokenFacts {
    /// Its job, if it is bound to one.
    pub job: Option<JobFacts>,
    /// `jti` (RFC 7519 section 4.1.7).
    pub jti: Option<String>,
    /// `sub`.
    pub sub: Option<String>,
    /// `iat`, in seconds since 1970-01-01T00:00:00Z.
    pub iat: Option<f64>,
}

/// The job of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFacts {
    /// The instance of Flux, or the cluster of Slurm.
    pub instance: String,
    /// The job id.
    pub jobid: u64,
    /// The uid of the job owner.
    pub uid: u32,
}

/// The end of a job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEnd {
    /// When the job ended, in seconds since 1970-01-01T00:00:00Z; none if the scheduler does not know it any more.
    pub at: Option<u64>,
}

/// The subject of a revocation: which tokens it is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// All tokens of a job, whenever they are issued.
    Job {
        /// The instance of Flux, or the cluster of Slurm; none for the only one that the agent serves.
        instance: Option<String>,
        /// The job id.
        jobid: u64,
    },
    /// The token with this `jti`.
    Jti(String),
    /// The tokens with this `sub` that were issued before the revocation.
    User(String),
    /// The tokens of jobs of this uid that were issued before the revocation.
    Uid(u32),
}

/// Whether a token is still valid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Validity {
    /// It is: it was not revoked, and its job, if it has one, is active.
    Active,
    /// Its job has ended.
    Ended(JobEnd),
    /// It was revoked.
    Revoked,
    /// That is not known at the moment, and why, for the operator.
    Unknown(String),
}
