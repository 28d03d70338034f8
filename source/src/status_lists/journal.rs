//! The file of a list: what was given out, and what has ended, in the order in which it happened.
//!
//! A process that is killed loses nothing that it has written. After a power failure, only what was synced is certain to be
//! there: that so many entries may have been given out.

use aws_lc_rs::digest::{SHA256, digest};
use postcard::{take_from_bytes, to_allocvec};
use serde::{Deserialize, Serialize};

/// The first bytes of a file, with the version of its format.
const MAGIC: &[u8] = b"workflow-token status list 1\n";

/// The head of a file, which is written before anything else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    /// The instance of Flux, or the cluster of Slurm, whose jobs have entries.
    pub instance: String,
    /// When the list was begun, in seconds since 1970-01-01T00:00:00Z.
    pub created: u64,
    /// The key of the order in which entries are given out.
    pub key: [u8; 16],
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Record {
    /// So many entries may have been given out. It is synced before they are.
    Reserved(u32),
    /// The job owner of the next number, from 0 on.
    Owner { uid: u32, sub: String },
    /// A token was given an entry.
    Given(Entry),
    /// The token at this index is not valid any more.
    Over(u32),
}

/// The entry of a token that is valid. There may be millions of them.
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

/// Returns a hash of a `jti`, which has 128 random bits.
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

/// Reads a file. Returns its head, its records, and whether all of it could be read; none if it is no such file.
pub(super) fn read(bytes: &[u8]) -> Option<(Head, Records<'_>)> {
    let (head, rest) = take_from_bytes(bytes.strip_prefix(MAGIC)?).ok()?;
    Some((head, Records { rest, is_whole: true }))
}

/// The records of a file, up to the first that cannot be read.
pub(super) struct Records<'a> {
    rest: &'a [u8],
    /// Set as long as everything could be read.
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
