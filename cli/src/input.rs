// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reads a token from a file, standard input or the environment, never from an argument.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use token::MAX_LEN;
use zeroize::Zeroizing;

use crate::print;

/// The source of the token.
#[derive(clap::Args)]
pub struct TokenInput {
    /// File that contains the token; - is standard input, as is no FILE if that is not a terminal
    #[arg(value_name = "FILE", conflicts_with = "env")]
    file: Option<PathBuf>,

    /// Read the token from this environment variable, such as DW_WORKFLOW_TOKEN
    #[arg(long, value_name = "NAME")]
    env: Option<String>,
}

/// The reason why no token could be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no token was given: name a file, - for standard input, or --env NAME for an environment variable")]
    NoInput,
    #[error(
        "the environment variable {0} is not set: `flux workflow-token show JOBID` prints the names that a job got"
    )]
    NoVariable(String),
    #[error("{0}: {1}")]
    Unreadable(String, io::Error),
    #[error("{0}: not UTF-8, so not a token: check that it is the right file")]
    NotUtf8(String),
}

/// Returns the origin of the token, for messages, and the token.
///
/// # Errors
/// [`Error`].
pub fn read(args: &TokenInput) -> Result<(String, Zeroizing<String>), Error> {
    if let Some(name) = &args.env {
        // The conversion copies the value once more, but the environment of the process contains it anyway.
        let shown = print::hidden(name);
        let value = std::env::var_os(name).ok_or_else(|| Error::NoVariable(shown.clone()))?;
        let origin = format!("environment variable {shown}");
        return match value.into_string() {
            Ok(value) => Ok((origin, Zeroizing::new(value))),
            Err(_) => Err(Error::NotUtf8(origin)),
        };
    }
    match args.file.as_deref() {
        None if io::stdin().is_terminal() => Err(Error::NoInput),
        None => read_from(io::stdin(), "standard input".to_owned()),
        Some(path) if path.as_os_str() == "-" => read_from(io::stdin(), "standard input".to_owned()),
        Some(path) => {
            let name = print::hidden(path.display());
            let file = File::open(path).map_err(|e| Error::Unreadable(name.clone(), e))?;
            let meta = file.metadata().map_err(|e| Error::Unreadable(name.clone(), e))?;
            if meta.is_file() && meta.mode() & 0o077 != 0 {
                print::err(format_args!(
                    "warning: {name}: mode {:04o} gives others than its owner access to the token: use chmod 0600",
                    meta.mode() & 0o7777
                ));
            }
            read_from(file, name)
        }
    }
}

fn read_from(reader: impl Read, origin: String) -> Result<(String, Zeroizing<String>), Error> {
    // Read one byte more than the limit, to detect longer input. The capacity avoids reallocation, which leaves copies.
    let limit = MAX_LEN + "\r\n".len() + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit));
    reader
        .take(limit as u64)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::Unreadable(origin.clone(), e))?;
    let Ok(text) = std::str::from_utf8(&bytes) else {
        return Err(Error::NotUtf8(origin));
    };
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    Ok((origin, Zeroizing::new(text.to_owned())))
}
