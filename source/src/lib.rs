// SPDX-License-Identifier: MIT OR Apache-2.0

//! Sources of variables, such as workflow tokens, one module each.
//!
//! A [`Source`] fetches the variables of one job. It never blocks the calling thread: blocking calls run on threads of
//! the tokio runtime, and every wait ends at the rule's timeout.

#![forbid(unsafe_code)]

mod command;
mod error;
mod examined;
mod file;
mod http;
mod identity;
mod issuer_keys;
mod jwks;
pub mod keys;
mod kubernetes;
pub mod login;
mod minted;
mod oauth2;
mod paths;
mod remote;
pub mod secure_file;
mod stamp;
pub mod status_lists;
pub mod supervise;
pub mod token_service;
mod value;
pub mod verify;

use std::{
    any::Any,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use config::{Rule, Values};
use seal::Variables;

pub use error::Error;
pub use examined::Examined;
pub use identity::{Unclaimed, claimed, read_identity};
pub use jwks::JwksClient;
pub use kubernetes::{examine, exec_program};
pub use oauth2::{LoginStore, examine_oauth2, rotations_ended};
pub use paths::expand;
pub use value::{ValueError, max_value};

/// A source of variables.
#[async_trait]
pub trait Source: Send + Sync {
    /// Fetches the variables of one job. All processes and threads that it starts hold `slot`, see [`Slot`].
    async fn fetch(&self, job: &Values, slot: Slot) -> Fetched;

    /// Fetches the variables of one job on the calling thread, which may block. Sources that only block implement it to
    /// avoid a thread switch. The caller enforces the timeout. Returns `None` if only [`Source::fetch`] is implemented.
    fn fetch_here(&self, _job: &Values) -> Option<Fetched> {
        None
    }

    /// Returns whether [`Source::fetch_here`] is preferred.
    fn is_blocking(&self) -> bool {
        false
    }

    /// Returns whether the name of the job owner must be in [`Values`].
    fn needs_user(&self) -> bool;
}

/// A guard that every process and thread of a fetch holds until it has ended. Commands that cannot be killed and
/// threads in a hung file system may hold it long after the fetch has returned or was dropped.
///
/// The caller stores a counted resource in it, such as a semaphore permit, which is dropped with the last clone. So
/// abandoned commands and threads count against the rule that caused them.
#[derive(Clone, Default)]
pub struct Slot {
    _guard: Option<Arc<dyn Any + Send + Sync>>,
}

impl Slot {
    /// Returns a slot that keeps `guard` until its last holder has ended.
    pub fn new(guard: impl Any + Send + Sync) -> Self {
        Self {
            _guard: Some(Arc::new(guard)),
        }
    }
}

/// The reply of a source.
#[derive(Debug)]
pub struct Fetched {
    /// The variables, or the error.
    pub result: Result<Variables, Error>,
    /// The expiry of the token, if the source knows it from elsewhere than the token itself.
    pub expires: Option<SystemTime>,
    /// Lines for the operator's log, without secrets, such as the standard error of a command.
    pub notes: Vec<String>,
    /// Warnings for the operator's log, without secrets, about faults that have no effect yet.
    pub warnings: Vec<String>,
}

impl Fetched {
    /// Returns an empty result, for a job without variables.
    pub fn nothing() -> Self {
        Self::of(Ok(Variables::new()))
    }

    fn of(result: Result<Variables, Error>) -> Self {
        Self {
            result,
            expires: None,
            notes: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn failed(error: Error) -> Self {
        Self::of(Err(error))
    }
}

/// Returns the source of a rule. `supervisors` are candidate paths of the program that runs [`supervise::main`] for
/// `source = "command"`; the first existing one is used.
///
/// # Errors
/// The key of the configuration that is invalid on this machine, and the cause.
pub fn of_rule(rule: &Rule, supervisors: &[PathBuf]) -> Result<Box<dyn Source>, String> {
    let (variable, timeout) = (rule.variable.clone(), rule.timeout);
    Ok(match &rule.source {
        config::Source::File { path, wait } => Box::new(file::File {
            path: path.clone(),
            wait: *wait,
            variable,
            timeout,
        }),
        config::Source::Command { argv, log_stderr } => Box::new(command::Command {
            argv: argv.clone(),
            log_stderr: *log_stderr,
            variable,
            timeout,
            supervisors: supervisors.to_vec(),
        }),
        config::Source::Kubernetes(settings) => of_kubernetes(settings, &variable, timeout, supervisors),
        config::Source::Issuer(settings) => Box::new(minted::Minted::new(settings, variable, timeout)?),
        config::Source::OAuth2(settings) => Box::new(oauth2::OAuth2::new(settings, variable, timeout)),
    })
}

/// Returns the source of the variables of Workflows: those in `status.env`, and the token of the Workflow, if any, as
/// `variable`. It reads nothing and sends nothing before the first fetch. Sources with the same settings for an API
/// server share their connections. `supervisors` are as in [`of_rule`], for an `exec` command in the kubeconfig file.
pub fn of_kubernetes(
    settings: &config::Kubernetes,
    variable: &str,
    timeout: Duration,
    supervisors: &[PathBuf],
) -> Box<dyn Source> {
    let variable = variable.to_owned();
    Box::new(kubernetes::Kubernetes::new(settings, variable, timeout, supervisors))
}

/// Returns one variable with the value that a source has read.
fn variable(name: &str, bytes: zeroize::Zeroizing<Vec<u8>>) -> Result<Variables, ValueError> {
    let value = value::of_bytes(name, bytes)?;
    let mut variables = Variables::new();
    // `of_bytes` has checked the value for a NUL, and the configuration parser the name.
    variables.insert(name, value).map_err(|_| ValueError::Nul)?;
    Ok(variables)
}

/// Runs blocking work on its own thread, and waits at most until the timeout, because a file system may hang. After the
/// timeout, the thread keeps its slot and the delivery fails. `failed` is for the user.
async fn blocking<T: Send + 'static>(
    failed: &str,
    timeout: Duration,
    slot: Slot,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let work = move || {
        let done = work();
        drop(slot);
        done
    };
    match tokio::time::timeout(timeout, tokio::task::spawn_blocking(work)).await {
        // The message of a panic is dropped, because it may contain a secret.
        Ok(done) => done.map_err(|_| Error::new(failed, "an internal error")),
        Err(_) => {
            let detail = format!("no answer within {}: check for a hung file system", seconds(timeout));
            Err(Error::new(format!("{failed} in time"), detail))
        }
    }
}

/// Formats a duration for messages, in seconds, or in milliseconds below one second.
fn seconds(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_millis())
    } else if duration.subsec_nanos() == 0 {
        // A floating-point number would round a large duration.
        format!("{} s", duration.as_secs())
    } else {
        format!("{} s", duration.as_secs_f64())
    }
}
