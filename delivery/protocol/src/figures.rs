//! The reports of the agent for people: the jobs of a user that hold tokens, and figures for operators. They contain no secret.

use serde::{Deserialize, Serialize};

use crate::JobFacts;

/// The most jobs in an answer.
pub const MAX_HELD: usize = 1000;

/// The interval of [`Figures::due`], in seconds, and the number of intervals: an hour.
pub const DUE: (u64, usize) = (300, 12);

/// A job that holds tokens. Times are in seconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The job.
    pub job: JobFacts,
    /// The job id as users write it.
    pub name: String,
    /// The names of the variables with the tokens.
    pub variables: Vec<String>,
    /// When the first of the tokens expires, if that is known.
    pub expires_at: Option<u64>,
    /// When they are renewed; none if they are not.
    pub renew_at: Option<u64>,
}

/// The figures of the agent, since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// The start of the agent, in seconds since 1970-01-01T00:00:00Z.
    pub since: u64,
    /// Deliveries by their results: `delivered`, `no-rule` or the code of a failure.
    pub results: Vec<Count>,
    /// Deliveries by the time that they took.
    pub latency: Vec<Latency>,
    /// The sources that were asked.
    pub sources: Vec<SourceFigures>,
    /// Renewals that are due, by intervals of five minutes from now on. Late ones are in the first.
    pub due: Vec<u64>,
    /// The signing keys of the issuers.
    pub keys: Vec<KeyFigures>,
}

/// A number of events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// The kind of the events.
    pub name: String,
    /// Their number.
    pub count: u64,
}

/// The number of deliveries that took a certain time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// The longest time in milliseconds; none for the last entry, which has no limit.
    pub within_ms: Option<u64>,
    /// The number of deliveries that took longer than the previous entry.
    pub count: u64,
}

/// The counts of one source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFigures {
    /// Its rule and kind.
    pub name: String,
    /// The number of tokens that it gave.
    pub fetched: u64,
    /// The number of its failures, by code.
    pub failures: Vec<Count>,
}

/// A signing key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyFigures {
    /// The issuer.
    pub issuer: String,
    /// The `kid` of the key.
    pub kid: String,
    /// Set if this key signs.
    pub is_active: bool,
    /// When it was made, in seconds since 1970-01-01T00:00:00Z, if that is known.
    pub since: Option<u64>,
}
