//! The supervisor of a command: it starts the command, collects its output, and kills it with everything that it has
//! started when told to, at its timeout, or when the engine is gone.
//!
//! It is a process of its own, run as `PROGRAM supervise`, with the request on standard input and the answer on
//! standard output. Neither arguments nor output of the command are ever in its own arguments. It has a deadline of its
//! own to answer, a second after the command was killed at the latest. Some processes cannot be killed: those of
//! another uid (sudo), and those in uninterruptible sleep. The supervisor then answers without waiting for them, and
//! lives as long as they do, so that its own end tells when they are gone.

mod client;
mod descendants;
mod process;
mod protocol;

pub(crate) use client::{Output, run};
pub use process::main;
pub(crate) use protocol::{Ended, Report, Request};
