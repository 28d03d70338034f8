//! The protocol between a supervisor and whoever starts it.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

/// The time after which the supervisor reports without a killed command.
pub(super) const KILLING: Duration = Duration::from_secs(1);

/// The longest part of a command's standard error that is kept, in bytes: its beginning.
pub(crate) const MAX_STDERR: usize = 8192;

/// The command: one line of JSON on standard input, which then stays open. Closing it kills the command.
///
/// Arguments and variables may be secret: they are wiped when dropped.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Request {
    pub argv: Vec<String>,
    /// Added to the environment of the command.
    pub env: BTreeMap<String, String>,
    pub timeout_ms: u64,
    /// The command is killed when it prints more than this many bytes.
    pub max_stdout: usize,
}

impl Request {
    /// Returns the line.
    ///
    /// # Errors
    /// None in practice: all types can be written as JSON.
    pub fn to_line(&self) -> serde_json::Result<Zeroizing<Vec<u8>>> {
        let texts = self.argv.iter().chain(self.env.keys()).chain(self.env.values());
        // JSON writes a byte as six at most (`\u0000`), a text with two quotes and a separator, and the numbers and names
        // of members in less than 256. So it never grows, which would leave copies behind.
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

/// The end of the command: one line of JSON on standard output, followed by its output: `stdout` bytes, then `stderr`
/// bytes.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Report {
    pub ended: Ended,
    pub stdout: usize,
    pub stderr: usize,
    /// The number of bytes that it wrote to standard error.
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
