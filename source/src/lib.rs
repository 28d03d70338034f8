//! Sources of variables, such as workflow tokens, one module each.
//!
//! A [`Source`] is asked for the variables of one job. It never blocks the thread that asks: what may block runs on
//! threads of the tokio runtime, and every wait ends at the rule's timeout.

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
pub use oauth2::{LoginStore, examine_oauth2};
pub use paths::expand;
pub use value::{ValueError, max_value};

/// A source of variables.
#[async_trait]
pub trait Source: Send + Sync {
    /// Fetches the variables of one job. Everything that the source starts for it holds `slot`, see [`Slot`].
    async fn fetch(&self, job: &Values, slot: Slot) -> Fetched;

    /// Fetches the variables of one job on the calling thread, which may block: for sources that do nothing but block,
    /// so that a job does not wait for a change of threads. Its caller minds the time. `None`: use [`Source::fetch`].
    fn fetch_here(&self, _job: &Values) -> Option<Fetched> {
        None
    }

    /// Returns whether [`Source::fetch_here`] is there.
    fn is_blocking(&self) -> bool {
        false
    }

    /// Returns whether the name of the job owner must be in [`Values`].
    fn needs_user(&self) -> bool;
}

/// Held by all that a fetch has started until it has really ended: by a command that cannot be killed, or a thread that
/// a file system keeps waiting. That may be long after the fetch has returned, or was dropped.
///
/// The caller puts something in that counts, such as the permit of a semaphore, which is dropped with the last clone.
/// So abandoned commands and threads count against the rule that caused them.
#[derive(Clone, Default)]
pub struct Slot {
    _guard: Option<Arc<dyn Any + Send + Sync>>,
}

impl Slot {
    /// Keeps `guard` until everything has ended.
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
    /// When the token expires, if the source knows that from elsewhere than the token itself.
    pub expires: Option<SystemTime>,
    /// Lines for the operator's log, free of secrets, such as what a command wrote to its standard error.
    pub notes: Vec<String>,
    /// The same, of what somebody must see to, though it has done no harm yet.
    pub warnings: Vec<String>,
}

impl Fetched {
    /// No variables, where none are wanted.
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

/// Makes the source that a rule names. `supervisors` is where the program that has [`supervise::main`] may be, for
/// `source = "command"`: the first that exists is run.
///
/// # Errors
/// The key of the configuration that is wrong where this runs, and what is wrong with it.
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

/// Makes the source of the variables of Workflows: those of `status.env`, and as `variable` the token, where a Workflow
/// has one. Nothing is read and nobody is asked before the first fetch. Sources that reach an API server by the same
/// settings share their connections. `supervisors` is as in [`of_rule`], for an `exec` in the kubeconfig file.
pub fn of_kubernetes(
    settings: &config::Kubernetes,
    variable: &str,
    timeout: Duration,
    supervisors: &[PathBuf],
) -> Box<dyn Source> {
    let variable = variable.to_owned();
    Box::new(kubernetes::Kubernetes::new(settings, variable, timeout, supervisors))
}

/// One variable, of what a source read.
fn variable(name: &str, bytes: zeroize::Zeroizing<Vec<u8>>) -> Result<Variables, ValueError> {
    let value = value::of_bytes(name, bytes)?;
    let mut variables = Variables::new();
    // The value has no NUL, which was just checked, and the name is valid since the configuration was read.
    variables.insert(name, value).map_err(|_| ValueError::Nul)?;
    Ok(variables)
}

/// Does something that blocks on a thread of its own, and stops waiting for it when the time is over: a file system may
/// hang. Its thread is left behind then, with its slot, and the delivery goes on to fail. `failed` is for the user.
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
        // The message of a panic is not repeated: it may quote anything.
        Ok(done) => done.map_err(|_| Error::new(failed, "an internal error")),
        Err(_) => {
            let detail = format!("no answer within {}: is the file system hung?", seconds(timeout));
            Err(Error::new(format!("{failed} in time"), detail))
        }
    }
}

/// For messages: a duration in seconds, or milliseconds where it is shorter.
fn seconds(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_millis())
    } else if duration.subsec_nanos() == 0 {
        // As it is: a floating-point number would round what a server requested.
        format!("{} s", duration.as_secs())
    } else {
        format!("{} s", duration.as_secs_f64())
    }
}
