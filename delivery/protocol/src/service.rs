//! The messages between the token service and the agent, over a Unix stream socket of their own.
//!
//! The service sends numbered questions over one connection and receives the answers in any order. Frames are those of
//! plugins.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Answer, Ask};

/// The longest message from the service, in bytes.
pub const MAX_QUESTION: usize = 64 << 10;

/// The longest message to the service, in bytes: room for a thousand public keys.
pub const MAX_ANSWER: usize = 2 << 20;

/// The most questions of a connection without an answer. The agent reads no further one before it has answered.
pub const MAX_PENDING: usize = 256;

/// For how long services use a status list before they fetch the next one: how late they may learn that a job has ended.
pub const STATUS_LIST_TTL: Duration = Duration::from_secs(60);

/// A question from the service.
#[derive(Debug, Serialize, Deserialize)]
pub struct ServiceAsk {
    /// Its number, which the answer repeats.
    pub number: u64,
    /// The question.
    pub ask: Ask,
}

/// An answer to the service.
#[derive(Debug, Serialize, Deserialize)]
pub struct ServiceAnswer {
    /// The number of the question.
    pub number: u64,
    /// The answer.
    pub answer: Answer,
}
