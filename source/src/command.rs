// SPDX-License-Identifier: MIT OR Apache-2.0

//! `source = "command"`: the output of a program of the site.
//!
//! [`crate::supervise`] runs the program without a shell.

use std::{collections::BTreeMap, fmt::Display, io, path::PathBuf, time::Duration};

use async_trait::async_trait;
use config::{Template, Values};
use zeroize::Zeroizing;

use crate::{
    Error, Fetched, Slot, Source, seconds,
    supervise::{self, Ended, Output, Report, Request},
    value::max_value,
    variable,
};

/// The length of the shortest line of a command's standard output that is redacted from its standard error. Shorter
/// ones would match parts of ordinary words.
pub(crate) const MIN_SECRET: usize = 4;

pub(crate) struct Command {
    pub argv: Vec<Template>,
    /// Set if its standard error is logged.
    pub log_stderr: bool,
    pub variable: String,
    pub timeout: Duration,
    pub supervisors: Vec<PathBuf>,
}

#[async_trait]
impl Source for Command {
    async fn fetch(&self, job: &Values, slot: Slot) -> Fetched {
        let request = match self.request(job) {
            Ok(request) => request,
            Err(e) => return Fetched::failed(self.error("the command that provides it cannot be formed", &e)),
        };
        let output = match supervise::run(self.supervisors.clone(), request, slot).await {
            Ok(output) => output,
            Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                return Fetched::failed(self.error(
                    "the command that provides it did not answer in time",
                    &"its supervisor did not answer either: check for a hung file system or a stopped process",
                ));
            }
            Err(e) => return Fetched::failed(self.error("the command that provides it could not be started", &e)),
        };
        let notes = self.notes(&output);
        let result = self.judge(&output.report).and_then(|()| {
            variable(&self.variable, output.stdout)
                .map_err(|e| self.error("the command that provides it printed no usable value", &e))
        });
        Fetched {
            notes,
            ..Fetched::of(result)
        }
    }

    fn needs_user(&self) -> bool {
        self.argv.iter().any(Template::needs_user)
    }
}

impl Command {
    fn request(&self, job: &Values) -> Result<Request, config::TemplateError> {
        Ok(Request {
            argv: self.argv.iter().map(|word| word.fill(job)).collect::<Result<_, _>>()?,
            env: BTreeMap::from([
                ("FLUX_JOB_ID".to_owned(), job.f58.clone()),
                ("FLUX_JOB_USERID".to_owned(), job.uid.to_string()),
            ]),
            timeout_ms: u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX),
            // The value may be followed by CR and LF.
            max_stdout: max_value(&self.variable) + 2,
        })
    }

    /// Returns the standard error of the command, for the log.
    fn notes(&self, output: &Output) -> Vec<String> {
        if !self.log_stderr {
            return Vec::new();
        }
        // A command may print its token, or a part of it, on both of its outputs.
        let printed = Zeroizing::new(String::from_utf8_lossy(&output.stdout).into_owned());
        let lines = printed.lines().map(str::trim).filter(|line| line.len() >= MIN_SECRET);
        let secrets: Vec<&str> = lines.collect();
        token::redact_lines(&output.stderr, &secrets)
            .into_iter()
            .map(|line| format!("{}: {line}", self.program()))
            .collect()
    }

    fn judge(&self, report: &Report) -> Result<(), Error> {
        let stderr = || match (report.wrote, self.log_stderr) {
            (0, _) => "it wrote nothing to its standard error".to_owned(),
            (_, true) => "see its standard error above".to_owned(),
            (bytes, false) => {
                format!("it wrote {bytes} bytes to its standard error: set log-stderr = true in its rule to log them")
            }
        };
        let (summary, detail) = match &report.ended {
            Ended::Exit(0) => return Ok(()),
            Ended::Exit(code) => (
                format!("the command that provides it failed (exit code {code})"),
                stderr(),
            ),
            Ended::Signal(signal) => (
                format!("the command that provides it was killed (signal {signal})"),
                format!("the agent did not send the signal; {}", stderr()),
            ),
            Ended::Timeout => (
                format!(
                    "the command that provides it took longer than {}",
                    seconds(self.timeout)
                ),
                format!("it was killed with {}; {}", left(report.left), stderr()),
            ),
            Ended::TooMuch => (
                "the command that provides it printed no usable value".to_owned(),
                format!(
                    "it printed more than {} bytes and was killed with {}",
                    max_value(&self.variable) + 2,
                    left(report.left)
                ),
            ),
            Ended::NotStarted(why) => (
                "the command that provides it could not be started".to_owned(),
                why.clone(),
            ),
        };
        Err(self.error(summary, &detail))
    }

    fn error(&self, summary: impl Into<String>, detail: &dyn Display) -> Error {
        Error::new(summary, format!("{}: {detail}", self.program()))
    }

    fn program(&self) -> String {
        self.argv.first().map(ToString::to_string).unwrap_or_default()
    }
}

/// Describes, for the operator, the processes that were killed with a command and those that cannot be killed.
fn left(count: usize) -> String {
    match count {
        0 => "all processes that it had started".to_owned(),
        count => format!(
            "the processes that it had started, except for {count} that cannot be killed (they belong to another user \
             or wait for a device) and occupy a slot of its rule (max-parallel) until they end"
        ),
    }
}
