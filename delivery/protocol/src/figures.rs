// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reports of the agent: the jobs of a user that hold tokens, and figures for operators. They contain no secret.

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
    /// The earliest expiry of the tokens, if known.
    pub expires_at: Option<u64>,
    /// The time of their renewal; none if they are not renewed.
    pub renew_at: Option<u64>,
}

/// The figures of the agent since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// The start of the agent, in seconds since 1970-01-01T00:00:00Z.
    pub since: u64,
    /// Deliveries by result: `delivered`, `no-rule` or the code of a failure.
    pub results: Vec<Count>,
    /// Deliveries by duration.
    pub latency: Vec<Latency>,
    /// The sources that deliveries used.
    pub sources: Vec<SourceFigures>,
    /// Renewals by due time, in intervals of five minutes from now on. Overdue renewals are in the first.
    pub due: Vec<u64>,
    /// The signing keys of the issuers.
    pub keys: Vec<KeyFigures>,
}

/// The number of events of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// The kind of the events.
    pub name: String,
    /// Their number.
    pub count: u64,
}

/// The number of deliveries in one latency bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// The upper bound in milliseconds; none for the last bucket, which has no bound.
    pub within_ms: Option<u64>,
    /// The number of deliveries that took longer than the bound of the previous bucket.
    pub count: u64,
}

/// The counts of one source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFigures {
    /// Its rule and kind.
    pub name: String,
    /// The number of tokens that it returned.
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
    /// The time of its creation, in seconds since 1970-01-01T00:00:00Z, if known.
    pub since: Option<u64>,
}
