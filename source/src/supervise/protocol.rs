// SPDX-License-Identifier: MIT OR Apache-2.0

//! The protocol between a supervisor and its client.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

/// The time after a kill at which the supervisor reports, even if the command has not ended.
pub(super) const KILLING: Duration = Duration::from_secs(1);

/// The number of bytes at the beginning of a command's standard error that are kept.
pub(crate) const MAX_STDERR: usize = 8192;

/// The command: one line of JSON on standard input, which then stays open. Closing it kills the command.
///
/// Arguments and variables may be secret, so they are zeroized on drop.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Request {
    pub argv: Vec<String>,
    /// Additional environment variables of the command.
    pub env: BTreeMap<String, String>,
    pub timeout_ms: u64,
    /// The command is killed when it prints more than this many bytes.
    pub max_stdout: usize,
}

impl Request {
    /// Returns the line.
    ///
    /// # Errors
    /// None in practice: all types can be serialized as JSON.
    pub fn to_line(&self) -> serde_json::Result<Zeroizing<Vec<u8>>> {
        let texts = self.argv.iter().chain(self.env.keys()).chain(self.env.values());
        // JSON takes at most six bytes for a byte (`\u0000`), three for the quotes and the separator of a string, and
        // less than 256 for the numbers and names of members. So the buffer never grows, which would leave copies in
        // memory.
        let longest = texts.map(|text| text.len() * 6 + 3).sum::<usize>() + 256;
        let mut line = Zeroizing::new(Vec::with_capacity(longest));
        serde_json::to_writer(&mut *line, self)?;
        line.push(b'\n');
        debug_assert!(line.len() <= longest);
        Ok(line)
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.argv
            .iter_mut()
            .chain(self.env.values_mut())
            .for_each(Zeroize::zeroize);
    }
}

/// The end of the command: one line of JSON on standard output, followed by the output of the command: `stdout` bytes,
/// then `stderr` bytes.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Report {
    pub ended: Ended,
    pub stdout: usize,
    pub stderr: usize,
    /// The number of bytes that the command wrote to standard error.
    pub wrote: u64,
    /// The number of its processes that could not be killed.
    pub left: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ended {
    Exit(i32),
    Signal(i32),
    Timeout,
    TooMuch,
    NotStarted(String),
}
