// SPDX-License-Identifier: MIT OR Apache-2.0

//! The protocol between the token service and the agent, over a Unix stream socket of its own.
//!
//! The service sends numbered questions over one connection and receives the answers in any order. The frames are the
//! same as those of plugins.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Answer, Ask};

/// The longest message from the service, in bytes.
pub const MAX_QUESTION: usize = 64 << 10;

/// The longest message to the service, in bytes: room for a thousand public keys.
pub const MAX_ANSWER: usize = 2 << 20;

/// The most unanswered questions of a connection. The agent reads no further question until it has answered one.
pub const MAX_PENDING: usize = 256;

/// The time for which services cache a status list: they learn of the end of a job with at most this delay.
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
