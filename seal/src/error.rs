// SPDX-License-Identifier: MIT OR Apache-2.0

//! Errors of sealing and opening.

use std::fmt;

use crate::munge::MungeError;

/// An error of sealing, parsing or opening a record. No variant carries a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The payload exceeds the limit of MUNGE.
    #[error(
        "the variables take {size} bytes when sealed and the limit is {limit}: use a shorter token or fewer variables"
    )]
    TooLarge {
        /// Size of the payload, in bytes.
        size: usize,
        /// The largest payload, in bytes.
        limit: usize,
    },
    /// The text is not a sealed record.
    #[error("the sealed record is malformed ({0}): it was damaged or written by something else")]
    Malformed(String),
    /// The record has a version that this code does not know.
    #[error("the sealed record is of version {found} and this plugin reads versions up to {known}: update the plugin")]
    Version {
        /// The version that the record states.
        found: u64,
        /// The newest version that this code reads.
        known: u64,
    },
    /// MUNGE rejected the request, or could not be reached.
    #[error(transparent)]
    Munge(#[from] MungeError),
    /// The credential is authentic but was not encoded by the instance owner.
    #[error(
        "the sealed record was sealed by uid {found} and only the instance owner (uid {owner}) may: it was refused"
    )]
    Sealer {
        /// The uid that encoded the credential.
        found: u32,
        /// The instance owner.
        owner: u32,
    },
    /// The credential is authentic but others than the job owner can open it.
    #[error("the sealed record is not restricted to uid {uid}: it was refused")]
    Unrestricted {
        /// The job owner.
        uid: u32,
    },
    /// The credential is authentic but not encrypted, so anybody who holds it can read
    /// it.
    #[error("the sealed record is not encrypted: it was refused")]
    Unencrypted,
    /// The credential is authentic but belongs to another job or user.
    #[error("the sealed record belongs to {found} and this is {expected}: it was refused")]
    Foreign {
        /// The job and user in the payload.
        found: Owner,
        /// The job and user for which it was opened.
        expected: Owner,
    },
    /// The credential is authentic but belongs to a job of another scheduler instance.
    #[error(
        "the sealed record belongs to {} and this is {}: it was refused",
        named(found),
        named(expected)
    )]
    OtherInstance {
        /// The instance in the payload.
        found: Option<String>,
        /// The instance for which it was opened.
        expected: Option<String>,
    },
}

impl Error {
    /// Returns whether a retry may help, because munged did not respond.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Error::Munge(e) if e.is_retryable())
    }
}

fn named(instance: &Option<String>) -> String {
    match instance {
        Some(name) => format!("cluster {}", name.escape_debug()),
        None => "an instance without a name".to_owned(),
    }
}

/// A job and the uid of its owner, as in a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The job id, RFC 19 (decimal).
    pub jobid: u64,
    /// The uid of the job owner.
    pub uid: u32,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job {} of uid {}", self.jobid, self.uid)
    }
}
