//! A line of the file of revocations: one JSON object.

use protocol::Subject;
use serde::{Deserialize, Serialize};

/// A revocation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    /// The tokens that were revoked.
    pub subject: Subject,
    /// When, and for how long.
    #[serde(flatten)]
    pub times: Times,
}

/// In seconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// When it was revoked.
    pub at: f64,
    /// When the last of the tokens has expired.
    pub until: f64,
}

impl Line {
    /// Parses a line; none if it is no revocation.
    pub fn parse(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    /// Returns it with the end of the line.
    ///
    /// # Errors
    /// From `serde_json`.
    pub fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        Ok(line)
    }
}
