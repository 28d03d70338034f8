// SPDX-License-Identifier: MIT OR Apache-2.0

//! The version of records and payloads, which determines the format of the rest.

use serde::{Deserialize, de::DeserializeOwned};

use crate::error::Error;

/// The version of records and payloads that this code writes, and the newest that it reads.
pub const VERSION: u64 = 1;

fn check_version(text: &[u8]) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u64,
    }
    let Versioned { version } = serde_json::from_slice(text).map_err(|e| malformed(&e))?;
    match version {
        VERSION => Ok(()),
        other => Err(not_known(other)),
    }
}

fn not_known(version: u64) -> Error {
    match version {
        0 => Error::Malformed("version 0 does not exist".to_owned()),
        found => Error::Version { found, known: VERSION },
    }
}

/// Parses a record or payload, and checks its version.
pub(crate) fn parse<T: DeserializeOwned>(
    text: &[u8],
    version: impl Fn(&T) -> u64,
    malformed: impl FnOnce(&serde_json::Error) -> Error,
) -> Result<T, Error> {
    match serde_json::from_slice(text) {
        Ok(read) => match version(&read) {
            VERSION => Ok(read),
            other => Err(not_known(other)),
        },
        // An unknown version explains the failure better than the first field that could not be
        // parsed.
        Err(e) => Err(check_version(text).err().unwrap_or_else(|| malformed(&e))),
    }
}

/// Returns the class and position of a JSON error. Its own text would quote the input.
pub(crate) fn malformed(e: &serde_json::Error) -> Error {
    Error::Malformed(format!(
        "{:?} error at line {} column {}",
        e.classify(),
        e.line(),
        e.column()
    ))
}
