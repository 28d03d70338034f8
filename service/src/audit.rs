// SPDX-License-Identifier: MIT OR Apache-2.0

//! The audit stream: one line of JSON for each token that is issued, exchanged or revoked. It never contains a token.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use serde::Serialize;
use token::Claims;

use crate::session::Session;

/// The audit stream.
pub struct Audit {
    path: Option<PathBuf>,
    file: Mutex<Option<File>>,
}

/// A line of the stream.
#[derive(Serialize)]
pub struct Event<'a> {
    /// RFC 3339, in UTC.
    time: String,
    event: &'static str,
    client: Option<&'a str>,
    jti: Option<&'a str>,
    sub: Option<&'a str>,
    uid: Option<u32>,
    job: Option<&'a str>,
    instance: Option<&'a str>,
}

/// A line about a login, a logout, or a user's decision about a client.
#[derive(Serialize)]
pub struct Login<'a> {
    /// RFC 3339, in UTC.
    time: String,
    event: &'static str,
    sub: &'a str,
    uid: u32,
}

impl<'a> Event<'a> {
    /// Returns the event of a token, at the request of a client, or of a user without one.
    pub fn new(event: &'static str, client: Option<&'a str>, claims: &'a Claims) -> Self {
        let job = claims.job();
        Self {
            time: jiff::Timestamp::now().to_string(),
            event,
            client,
            jti: claims.jti(),
            sub: claims.sub(),
            uid: job.map(|job| job.uid),
            job: job.map(|job| job.id),
            instance: job.map(|job| job.instance),
        }
    }
}

impl Audit {
    /// Opens the stream: a file, or standard error.
    ///
    /// # Errors
    /// A message for the operator if the file cannot be opened.
    pub fn open(path: Option<PathBuf>) -> Result<Self, String> {
        let audit = Self {
            path,
            file: Mutex::default(),
        };
        audit.reopen()?;
        Ok(audit)
    }

    /// Reopens the file, which logrotate(8) may have renamed. Blocks.
    ///
    /// # Errors
    /// A message for the operator if the file cannot be opened. The old file stays open.
    pub fn reopen(&self) -> Result<(), String> {
        let Some(path) = &self.path else { return Ok(()) };
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        let file = file.map_err(|e| format!("audit.file: {}: {e}", path.display()))?;
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
        Ok(())
    }

    /// Writes a line about a user.
    pub fn login(&self, event: &'static str, session: &Session) {
        self.write(&Login {
            time: jiff::Timestamp::now().to_string(),
            event,
            sub: &session.user,
            uid: session.uid,
        });
    }

    /// Writes a line. If that fails, logs the failure, and does not undo the operation.
    pub fn write(&self, event: &impl Serialize) {
        let written = serde_json::to_string(event)
            .map_err(io::Error::other)
            .and_then(|mut line| {
                line.push('\n');
                match &mut *self.file.lock().unwrap_or_else(PoisonError::into_inner) {
                    Some(file) => file.write_all(line.as_bytes()),
                    None => io::stderr().write_all(line.as_bytes()),
                }
            });
        if let Err(e) = written {
            eprintln!("workflow-tokend: a line of the audit stream was lost: {e}");
        }
    }
}
