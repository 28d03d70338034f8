// SPDX-License-Identifier: MIT OR Apache-2.0

//! Looks up a record and opens it.

use std::{
    ffi::{CStr, CString},
    io,
    time::Duration,
};

use ffi::{Future, Shell, ShellLogLevel};
use seal::{Expected, ExposeSecret, Opened, Owner, Record, Secret, Staleness};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::settings::Settings;

/// Reads the record of one plugin.
#[derive(Debug)]
pub struct Reader {
    /// The plugin's name, which is also the component of its log lines.
    pub name: &'static CStr,
    /// The key of the record, in the directory of the job.
    pub key: &'static str,
    /// The contents of the record, for the user.
    pub what: &'static str,
}

/// The timeout of a look-up, in seconds. The job manager responds from its cache.
pub const LOOKUP_TIMEOUT: f64 = 60.0;

/// The time allowed for a restart of munged.
const MUNGED_TIMEOUT: Duration = Duration::from_secs(10);

const ENOENT: i32 = nix::errno::Errno::ENOENT as i32;

/// Requests the value of a key in the job's directory.
///
/// # Errors
/// Returns an error if the request cannot be sent.
pub fn look_up(shell: &Shell<'_>, jobid: u64, key: &str) -> io::Result<Future> {
    let payload = json!({ "id": jobid, "keys": [key], "flags": 0 }).to_string();
    let flux = shell
        .flux()
        .ok_or_else(|| io::Error::other("the shell has no handle"))?;
    flux.rpc(c"job-info.lookup", &payload)
}

/// Returns the unchanged response to a look-up, or None if the key does not exist. It may contain
/// secrets.
///
/// # Errors
/// Returns the error of the look-up.
pub fn answer(lookup: &Future) -> Result<Option<Zeroizing<String>>, String> {
    match lookup.wait(LOOKUP_TIMEOUT).and_then(|()| lookup.rpc()) {
        Ok(answer) => Ok(Some(Zeroizing::new(answer.unwrap_or_default()))),
        Err(e) if e.errno() == ENOENT => Ok(None),
        Err(e) => Err(e.to_string()),
    }
}

impl Reader {
    /// Opens the job's record, or returns None if the job has none.
    ///
    /// # Errors
    /// Returns the error for the user.
    pub fn open(&self, shell: &Shell<'_>, settings: &Settings, lookup: &Future) -> Result<Option<Opened>, String> {
        self.open_within(MUNGED_TIMEOUT, shell, settings, lookup)
    }

    /// Like [`Reader::open`], while tasks run: tries munged only once.
    ///
    /// # Errors
    /// As for [`Reader::open`].
    pub fn open_now(&self, shell: &Shell<'_>, settings: &Settings, lookup: &Future) -> Result<Option<Opened>, String> {
        self.open_within(Duration::ZERO, shell, settings, lookup)
    }

    fn open_within(
        &self,
        time: Duration,
        shell: &Shell<'_>,
        settings: &Settings,
        lookup: &Future,
    ) -> Result<Option<Opened>, String> {
        let failed = |e: &dyn std::fmt::Display| format!("the sealed record of the job could not be looked up: {e}");
        let Some(answer) = answer(lookup).map_err(|e| failed(&e))? else {
            return Ok(None);
        };
        let answer: Value = serde_json::from_str(&answer).map_err(|e| failed(&e))?;
        let Value::String(text) = &answer[self.key] else {
            return Err(failed(&"the response contains no record"));
        };
        let record = Record::from_json(text).map_err(|e| self.refused(&e))?;
        let job = shell.job().map_err(|e| self.refused(&e))?;
        let expected = Expected {
            owner: Owner {
                jobid: job.jobid,
                uid: nix::unistd::geteuid().as_raw(),
            },
            instance_owner: job.instance_owner,
        };
        let munge = settings.munge.client().map_err(|e| self.refused(&e))?;
        let opened = record.open_within(time, &munge, &expected);
        opened.map(Some).map_err(|e| self.refused(&e))
    }

    /// Sets the variables in the environment of the job's tasks.
    ///
    /// # Errors
    /// Returns the error for the user.
    pub fn export(&self, shell: &Shell<'_>, opened: &Opened) -> Result<(), String> {
        self.set(shell, opened.variables.iter())?;
        let names: Vec<_> = opened.variables.names().collect();
        let line = format!("exported {}{}", names.join(", "), late(opened.staleness));
        shell.log(self.name, ShellLogLevel::Debug, &line);
        Ok(())
    }

    /// Sets variables of any origin in the environment of the job's tasks.
    ///
    /// # Errors
    /// Returns the error for the user.
    pub fn set<'a>(
        &self,
        shell: &Shell<'_>,
        variables: impl Iterator<Item = (&'a str, &'a Secret)>,
    ) -> Result<(), String> {
        for (name, value) in variables {
            // A record with a NUL in a variable does not open. The C string is wiped when dropped.
            let value = Zeroizing::new(CString::new(value.expose_secret()).map_err(|e| self.refused(&e))?);
            shell
                .set_env(name, &value)
                .map_err(|e| format!("{name} could not be set in the environment of the job: {e}"))?;
        }
        Ok(())
    }

    /// Returns a shell option. An option that cannot be read ends the job, because the user's request is
    /// unknown.
    pub fn option(&self, shell: &Shell<'_>, name: &CStr) -> Option<Value> {
        shell.option(name).unwrap_or_else(|e| {
            let option = name.to_string_lossy();
            shell.fatal(
                self.name,
                &format!("the shell option {option} cannot be read: {e}: correct or remove it"),
            )
        })
    }

    /// Returns a message for the user: the record exists but cannot be used.
    pub fn refused(&self, e: &dyn std::fmt::Display) -> String {
        let what = self.what;
        format!("the {what} of this job cannot be used: {e}: submit it again, and tell the operators if it recurs")
    }
}

/// Returns the check of MUNGE that failed last, for the log.
pub fn late(staleness: Option<Staleness>) -> &'static str {
    match staleness {
        None => "",
        Some(Staleness::Expired) => ", its credential older than MUNGE's time to live",
        Some(Staleness::Rewound) => ", its credential from the future by this node's clock",
        Some(Staleness::Replayed) => ", its credential opened on this node before",
    }
}
