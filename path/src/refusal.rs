// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reasons to reject a path.

use std::{fmt, io};

/// The reason why a file was not opened, or must not be used.
#[derive(Debug)]
pub enum Refusal {
    /// A system call failed.
    Io(io::Error),
    /// Another user controls the file, or could: the text states the reason and
    /// the remedy.
    Untrusted(String),
}

impl From<io::Error> for Refusal {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

impl From<rustix::io::Errno> for Refusal {
    fn from(e: rustix::io::Errno) -> Self {
        Self::Io(e.into())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(e) => e.fmt(f),
            Self::Untrusted(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Refusal {}
