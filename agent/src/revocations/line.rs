// SPDX-License-Identifier: MIT OR Apache-2.0

//! A line of the file of revocations, which is one JSON object.

use protocol::Subject;
use serde::{Deserialize, Serialize};

/// A revocation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    /// The revoked tokens.
    pub subject: Subject,
    /// The times of the revocation.
    #[serde(flatten)]
    pub times: Times,
}

/// The times of a revocation, in seconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// The time of the revocation.
    pub at: f64,
    /// The time when the last of the tokens has expired.
    pub until: f64,
}

impl Line {
    /// Parses a line; none if it is malformed.
    pub fn parse(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    /// Returns the line with its newline.
    ///
    /// # Errors
    /// Those of `serde_json`.
    pub fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        Ok(line)
    }
}
