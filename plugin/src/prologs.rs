// SPDX-License-Identifier: MIT OR Apache-2.0

//! The prologs and exceptions of jobs.

use ffi::{JobId, Jobtap, LogLevel};
use protocol::{Code, Failure};

use crate::identity::Identity;

/// Starts and finishes the prologs of one plugin, and raises its exceptions.
#[derive(Clone, Copy)]
pub struct Prologs {
    /// The names of the plugin.
    pub identity: &'static Identity,
    /// The jobtap of the plugin.
    pub jobtap: Jobtap<'static>,
}

impl Prologs {
    /// Writes a line to the log of the instance, with the name of the plugin.
    pub fn log(&self, level: LogLevel, line: &str) {
        self.jobtap
            .flux()
            .log(level, &format!("{}: {line}", self.identity.name));
    }

    /// Starts a prolog for the job of the running callback.
    ///
    /// # Errors
    /// Flux rejects the prolog: the job has started, or is in CLEANUP.
    pub fn start(&self) -> Result<(), Failure> {
        self.jobtap.prolog_start(self.identity.prolog).map_err(|e| {
            let user = "its prolog could not be started";
            Failure::new(Code::PrologFailed, user, format!("prolog-start: {e}"))
        })
    }

    /// Finishes the prolog of a job, which must be outstanding.
    pub fn finish(&self, job: JobId, status: i32) {
        if let Err(e) = self.jobtap.prolog_finish(job, self.identity.prolog, status) {
            self.log(LogLevel::Err, &format!("{job}: the prolog could not be finished: {e}"));
        }
    }

    /// Logs why a job does not get its variables, and ends the job in its prolog with an exception.
    pub fn refuse(&self, job: JobId, why: &Failure) {
        self.log_failure(job, why);
        self.end(job, why);
    }

    /// Ends a job in its prolog with an exception. The caller has logged the reason.
    pub fn end(&self, job: JobId, why: &Failure) {
        if self.raise_exception(job, why) {
            self.finish(job, 1);
        }
    }

    /// Logs why a job does not get its variables, and raises its exception.
    pub fn raise(&self, job: JobId, why: &Failure) {
        self.log_failure(job, why);
        self.raise_exception(job, why);
    }

    /// Raises the exception. Returns false if Flux rejects it: the job must then stay in its prolog, or it would start.
    fn raise_exception(&self, job: JobId, why: &Failure) -> bool {
        let text = format!(
            "no {} for this job: {} [{}]. If this goes on, ask the operators: the cause is in the log of Flux",
            self.identity.what, why.user, why.code
        );
        match self.jobtap.raise(job, self.identity.prolog, 0, &text) {
            Ok(()) => true,
            Err(e) => {
                let line = format!("{job}: the exception could not be raised: {e}: it stays in its prolog: cancel it");
                self.log(LogLevel::Err, &line);
                false
            }
        }
    }

    /// Logs for the operator why a job does not get its variables.
    pub fn log_failure(&self, job: JobId, why: &Failure) {
        let line = format!(
            "{job}: no {} was delivered: {} [{}]",
            self.identity.what, why.operator, why.code
        );
        self.log(LogLevel::Err, &line);
    }
}
