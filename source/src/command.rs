//! `source = "command"`: what a program of the site prints.
//!
//! The program is run without a shell, by [`crate::supervise`].

use std::{
    collections::BTreeMap,
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use async_trait::async_trait;
use config::{Template, Values};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
};
use zeroize::Zeroizing;

use crate::{
    Error, Fetched, Source, seconds,
    supervise::{Answer, Ended, MAX_STDERR, Request},
    value::max_value,
    variable,
};

/// How much longer than its command's timeout the helper may take to kill it and answer.
const GRACE: Duration = Duration::from_secs(2);

/// What is shorter on a command's standard output is not looked for in its standard error: half of all words would go.
pub(crate) const MIN_SECRET: usize = 4;

pub(crate) struct Command {
    pub argv: Vec<Template>,
    pub variable: String,
    pub timeout: Duration,
    pub helpers: Vec<PathBuf>,
}

#[async_trait]
impl Source for Command {
    async fn fetch(&self, job: &Values) -> Fetched {
        let program = self.argv.first().map(ToString::to_string).unwrap_or_default();
        let failed = |summary: &str, detail: &dyn std::fmt::Display| {
            Fetched::failed(Error::new(summary, format!("{program}: {detail}")))
        };
        let request = match self.request(job) {
            Ok(request) => request,
            Err(e) => return failed("the command that provides it cannot be formed", &e),
        };
        let limit = request.max_stdout;
        let (answer, mut output) =
            match tokio::time::timeout(self.timeout + GRACE, converse(self.helpers.clone(), request)).await {
                Ok(Ok(spoken)) => spoken,
                Ok(Err(e)) => return failed("the command that provides it could not be started", &e),
                Err(_) => {
                    return failed(
                        "the command that provides it did not answer in time",
                        &"nor did the helper that runs it",
                    );
                }
            };
        let end = answer.stdout.min(output.len());
        let stderr = Zeroizing::new(output.split_off(end));
        // A command may print its token, or a part of it, on both of its outputs.
        let printed = Zeroizing::new(String::from_utf8_lossy(&output).into_owned());
        let secrets: Vec<&str> = printed
            .lines()
            .map(str::trim)
            .filter(|line| line.len() >= MIN_SECRET)
            .collect();
        let notes = token::redact_lines(&stderr, &secrets)
            .into_iter()
            .map(|line| format!("{program}: {line}"))
            .collect();
        let fail =
            |summary: String, detail: &dyn std::fmt::Display| Err(Error::new(summary, format!("{program}: {detail}")));
        let result = match answer.ended {
            Ended::Exit(0) => variable(&self.variable, output)
                .or_else(|e| fail("the command that provides it printed no usable value".to_owned(), &e)),
            Ended::Exit(code) => fail(
                format!("the command that provides it failed (exit code {code})"),
                &"see its standard error above, if it wrote any",
            ),
            Ended::Signal(signal) => fail(
                format!("the command that provides it was killed (signal {signal})"),
                &"not by this plugin",
            ),
            Ended::Timeout => fail(
                format!(
                    "the command that provides it took longer than {}",
                    seconds(self.timeout)
                ),
                &"it was killed with its process group",
            ),
            Ended::TooMuch => fail(
                "the command that provides it printed no usable value".to_owned(),
                &format_args!("it printed more than {limit} bytes and was killed"),
            ),
            Ended::NotStarted(why) => fail("the command that provides it could not be started".to_owned(), &why),
        };
        Fetched {
            result,
            notes,
            warnings: Vec::new(),
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
            // A trailing newline more.
            max_stdout: max_value(&self.variable) + 2,
        })
    }
}

/// Starts the helper, tells it what to run, and takes its answer. Dropping the future closes the helper's standard
/// input, upon which it kills the command.
pub(crate) async fn converse(helpers: Vec<PathBuf>, request: Request) -> io::Result<(Answer, Zeroizing<Vec<u8>>)> {
    let mut child = Helper(Some(start(helpers).await?));
    let (mut to, from) = child.pipes()?;
    let limit = request.max_stdout + MAX_STDERR + 4096;
    // Arguments and variables may be secret.
    let mut line = Zeroizing::new(serde_json::to_vec(&request)?);
    line.push(b'\n');
    to.write_all(&line).await?;
    let mut all = Zeroizing::new(Vec::with_capacity(limit));
    from.take(limit as u64).read_to_end(&mut all).await?;
    let end = all
        .iter()
        .position(|b| *b == b'\n')
        .ok_or_else(|| io::Error::other("it gave no answer"))?;
    let answer: Answer = serde_json::from_slice(&all[..end])?;
    let output = Zeroizing::new(all[end + 1..].to_vec());
    if output.len() != answer.stdout + answer.stderr {
        return Err(io::Error::other("its answer was cut off"));
    }
    Ok((answer, output))
}

async fn start(helpers: Vec<PathBuf>) -> io::Result<Child> {
    let spawn = move || {
        for helper in &helpers {
            let mut command = std::process::Command::new(helper);
            command.arg("supervise").process_group(0);
            match command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
            {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(io::Error::other(format!("its helper {}: {e}", helper.display()))),
                Ok(child) => return Ok(child),
            }
        }
        let tried = helpers
            .iter()
            .map(|path| path.display().to_string())
            .collect::<Vec<_>>()
            .join(", ");
        Err(io::Error::other(format!(
            "its helper, the program flux-workflow-token, was not found (tried {tried}): install it, or set the key helper"
        )))
    };
    // What a panic said is not repeated: it may quote anything.
    tokio::task::spawn_blocking(spawn)
        .await
        .map_err(|_| io::Error::other("an internal error"))?
}

/// The helper, which is reaped when dropped, unless the broker did so before.
struct Helper(Option<Child>);

impl Helper {
    fn pipes(&mut self) -> io::Result<(pipe::Sender, pipe::Receiver)> {
        let child = self.0.as_mut().ok_or_else(|| io::Error::other("it is gone"))?;
        let missing = || io::Error::other("it has no pipes");
        let to = pipe::Sender::from_owned_fd(OwnedFd::from(child.stdin.take().ok_or_else(missing)?))?;
        let from = pipe::Receiver::from_owned_fd(OwnedFd::from(child.stdout.take().ok_or_else(missing)?))?;
        Ok((to, from))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else { return };
        // It ends by itself once its standard input is closed; the wait is for no more than that.
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || child.wait())),
            Err(_) => drop(child.wait()),
        }
    }
}
