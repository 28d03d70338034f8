//! The protocol between a supervisor and whoever starts it.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

/// The time after which the supervisor reports without a killed command.
pub(super) const KILLING: Duration = Duration::from_secs(1);

/// The longest part of a command's standard error that is kept, in bytes: its beginning.
pub(crate) const MAX_STDERR: usize = 8192;

/// The command: one line of JSON on standard input, which then stays open. Closing it kills the command.
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
