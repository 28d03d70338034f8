//! The protocol between a supervisor and whoever starts it.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

/// How long a killed command may take to end before the supervisor answers without it.
pub(super) const KILLING: Duration = Duration::from_secs(1);

/// How much of a command's standard error is kept, in bytes: its beginning.
pub(crate) const MAX_STDERR: usize = 8192;

/// What to run: one line of JSON on standard input, which then stays open. Closing it kills the command.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Request {
    pub argv: Vec<String>,
    /// Added to the environment of the command.
    pub env: BTreeMap<String, String>,
    pub timeout_ms: u64,
    /// The command is killed when it prints more than this many bytes.
    pub max_stdout: usize,
}

/// How the command ended: one line of JSON on standard output, followed by its output: `stdout` bytes, then `stderr` bytes.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Answer {
    pub ended: Ended,
    pub stdout: usize,
    pub stderr: usize,
    /// How many bytes it wrote to standard error.
    pub wrote: u64,
    /// How many of its processes could not be killed.
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
