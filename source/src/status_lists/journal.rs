// SPDX-License-Identifier: MIT OR Apache-2.0

//! The file of a list: a journal of assigned and invalidated entries.
//!
//! If the process is killed, no written record is lost. After a power failure, only synced records are certain to
//! exist: those of reserved entries.

use aws_lc_rs::digest::{SHA256, digest};
use postcard::{take_from_bytes, to_allocvec};
use serde::{Deserialize, Serialize};

/// The first bytes of a file, with the version of its format.
const MAGIC: &[u8] = b"workflow-token status list 1\n";

/// The head of a file, which is written first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    /// The instance of Flux, or the cluster of Slurm, whose jobs have entries.
    pub instance: String,
    /// The time of creation, in seconds since 1970-01-01T00:00:00Z.
    pub created: u64,
    /// The key of the order in which entries are assigned.
    pub key: [u8; 16],
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Record {
    /// The number of entries that may have been assigned. It is synced before they are assigned.
    Reserved(u32),
    /// A job owner. Owners are numbered from 0 in the order of their records.
    Owner { uid: u32, sub: String },
    /// A token was assigned an entry.
    Given(Entry),
    /// The token at this index is no longer valid.
    Over(u32),
}

/// The entry of a valid token. Keep it small: there may be millions of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The job.
    pub jobid: u64,
    /// The [`hash_of`] its `jti`.
    pub jti: u64,
    /// `iat`, in seconds since 1970-01-01T00:00:00Z.
    pub iat: u32,
    /// `exp`, in seconds since 1970-01-01T00:00:00Z.
    pub exp: u32,
    pub(super) owner: u32,
    pub(super) index: u32,
}

/// Returns a 64-bit hash of a `jti`, which contains 128 random bits.
pub fn hash_of(jti: &str) -> u64 {
    let digest = digest(&SHA256, jti.as_bytes());
    digest
        .as_ref()
        .iter()
        .take(8)
        .fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

/// Returns the bytes of a new file.
pub(super) fn begin(head: &Head) -> Result<Vec<u8>, postcard::Error> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(to_allocvec(head)?);
    Ok(bytes)
}

/// Returns the bytes of records.
pub(super) fn encode(records: &[Record]) -> Result<Vec<u8>, postcard::Error> {
    let mut bytes = Vec::new();
    for record in records {
        bytes.extend(to_allocvec(record)?);
    }
    Ok(bytes)
}

/// Parses a file. Returns its head and its records; none if it is not a file of a list.
pub(super) fn read(bytes: &[u8]) -> Option<(Head, Records<'_>)> {
    let (head, rest) = take_from_bytes(bytes.strip_prefix(MAGIC)?).ok()?;
    Some((head, Records { rest, is_whole: true }))
}

/// The records of a file, up to the first malformed one.
pub(super) struct Records<'a> {
    rest: &'a [u8],
    /// Set unless a malformed record was found.
    pub is_whole: bool,
}

impl Iterator for Records<'_> {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        if self.rest.is_empty() || !self.is_whole {
            return None;
        }
        match take_from_bytes(self.rest) {
            Ok((record, rest)) => {
                self.rest = rest;
                Some(record)
            }
            Err(_) => {
                self.is_whole = false;
                None
            }
        }
    }
}
