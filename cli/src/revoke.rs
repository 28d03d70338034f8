// SPDX-License-Identifier: MIT OR Apache-2.0

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::builder::NonEmptyStringValueParser;
use nix::unistd::{Uid, User};
use protocol::{Answer, Question, Subject};

use crate::{agent::Agent, print, show};

/// Revoke tokens: those of a job, those of a user that were issued until now, or one token
///
/// Returns when the revocation is on disk. From then on, `verify --agent` rejects the tokens, and a job whose tokens
/// were revoked gets no others. Services that do not ask the agent accept the tokens until they expire. Only root and
/// the agent's user can revoke tokens.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("subject").required(true))]
pub struct Args {
    /// The job
    #[arg(value_name = "JOBID", group = "subject")]
    jobid: Option<String>,

    /// The token with this id (claim `jti`)
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new(), group = "subject",
        allow_hyphen_values = true)]
    jti: Option<String>,

    /// The user (claim `sub`, or the job owner)
    #[arg(long, value_name = "USER", value_parser = NonEmptyStringValueParser::new(), group = "subject")]
    user: Option<String>,

    /// How long to keep the revocation, at most 400 days: until the last of the tokens has expired
    #[arg(long, value_name = "DURATION", default_value = "400d", value_parser = parse_keep)]
    keep: Duration,

    /// On Slurm: the configuration of the cluster
    #[arg(long, value_name = "FILE|DIR")]
    config: Option<PathBuf>,
}

/// The reason why nothing was revoked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Job(String),
    #[error("nothing was revoked: {0}")]
    Agent(String),
}

/// The longest time for which a revocation is kept.
const LONGEST: Duration = Duration::from_secs(400 * 86_400);

fn parse_keep(text: &str) -> Result<Duration, String> {
    // This is longer than any duration of the configuration.
    if text == "400d" {
        return Ok(LONGEST);
    }
    config::parse_duration(text).map(|keep| keep.min(LONGEST))
}

/// Revokes tokens.
///
/// # Errors
/// [`Error`].
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let agent = Agent::find(args.config.as_deref()).map_err(Error::Agent)?;
    let subjects = match (&args.jobid, &args.jti, &args.user) {
        (Some(jobid), _, _) => vec![job(jobid, &agent)?],
        (None, Some(jti), _) => vec![Subject::Jti(jti.clone())],
        (None, None, user) => user_subjects(user.as_deref().unwrap_or_default()),
    };
    let question = Question::Revoke {
        subjects,
        keep_secs: args.keep.as_secs(),
    };
    match agent.ask(question).map_err(Error::Agent)? {
        Answer::Revoked => Ok(ExitCode::SUCCESS),
        Answer::NotStored => Err(Error::Agent(
            "revocations are not stored: set the key revocations".to_owned(),
        )),
        Answer::Failed(why) => Err(Error::Agent(print::hidden(why))),
        _ => Err(Error::Agent("the agent sent an unexpected reply".to_owned())),
    }
}

fn job(text: &str, agent: &Agent) -> Result<Subject, Error> {
    let id = print::word(&print::hidden(text));
    let jobid = match agent.cluster() {
        None => show::decimal(text, &id).map_err(|e| Error::Job(e.to_string()))?,
        Some(_) => {
            let number = text.parse::<u32>();
            let wrong = |_| Error::Job(format!("{id}: not a job id: give the number that squeue prints"));
            number.map_err(wrong)?.into()
        }
    };
    let instance = agent.cluster().map(str::to_owned);
    Ok(Subject::Job { instance, jobid })
}

/// Returns the subjects of a user: the name, and the uid if there is one.
fn user_subjects(name: &str) -> Vec<Subject> {
    let by_uid = |uid| User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let user = User::from_name(name).ok().flatten();
    let user = user.or_else(|| name.parse().ok().and_then(by_uid));
    let uid = user
        .as_ref()
        .map(|user| user.uid.as_raw())
        .or_else(|| name.parse().ok());
    let known = user.map_or_else(|| name.to_owned(), |user| user.name);
    [Subject::User(known)]
        .into_iter()
        .chain(uid.map(Subject::Uid))
        .collect()
}
