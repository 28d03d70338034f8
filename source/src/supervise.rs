// SPDX-License-Identifier: MIT OR Apache-2.0

//! The supervisor of a command: it starts the command and collects its output. It kills the command and all processes
//! that the command has started on request, at the timeout, or when the engine has ended.
//!
//! It is a separate process, `PROGRAM supervise`, which reads the request from standard input and writes the answer to
//! standard output. Its own arguments contain neither arguments nor output of the command. It answers at most one
//! second after it has killed the command. Some processes cannot be killed: those of another uid (sudo), and those in
//! uninterruptible sleep. The supervisor then answers without waiting for them, but lives as long as they do, so its
//! end signals theirs.

mod client;
mod descendants;
mod process;
mod protocol;

pub(crate) use client::{Output, run};
pub use process::main;
pub(crate) use protocol::{Ended, Report, Request};
