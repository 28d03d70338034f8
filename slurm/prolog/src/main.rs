// SPDX-License-Identifier: MIT OR Apache-2.0

//! `workflow-token-slurmctld`: hands a Slurm controller's jobs to its agent, as PrologSlurmctld and EpilogSlurmctld.
//!
//! It always exits with status 0. With any other status, Slurm would requeue a batch job, kill any other job, and drain
//! nodes. A job whose prolog has failed receives no record, and its tasks do not start.

#![forbid(unsafe_code)]

mod job;

use std::{
    env, fs, io, os::unix::net::UnixStream, path::PathBuf, process::ExitCode, sync::mpsc, thread, time::Duration,
};

use clap::{Parser, ValueEnum};
use config::Slurm;
use protocol::slurm::{ControllerReply, ControllerRequest};
use slurm::{Deadline, MAX_REPLY, Site, exchange};

/// The time that the agent has beyond the timeout of a delivery, to store the record or the failure.
const GRACE: Duration = Duration::from_secs(5);

/// The maximum time that the end of a job waits for the agent. If the agent does not remove the record now, it does so
/// later.
const EPILOG: Duration = Duration::from_secs(10);

/// The time allowed for the start of an agent that does not listen.
const STARTING: Duration = Duration::from_secs(15);

/// The time allowed for reading the configuration.
const PREPARATION: Duration = Duration::from_secs(60);

/// The pause before the agent is contacted again.
const PAUSE: Duration = Duration::from_millis(200);

/// Hands a job to the agent: as PrologSlurmctld before the job starts, as EpilogSlurmctld after it has ended
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// The event [default: taken from SLURM_SCRIPT_CONTEXT, which Slurm sets]
    when: Option<When>,
    /// The configuration of the cluster: a file, or a directory of files
    #[arg(long, default_value = slurm::CONFIG)]
    config: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum When {
    Prolog,
    Epilog,
}

fn main() -> ExitCode {
    // clap itself would exit with status 2, which would harm jobs.
    match Cli::try_parse() {
        Ok(cli) => {
            if let Err(e) = run_in_time(cli) {
                eprintln!("workflow-token-slurmctld: {e}");
            }
        }
        Err(e) => drop(e.print()),
    }
    ExitCode::SUCCESS
}

/// The progress of the work, as reported by its thread.
enum Progress {
    /// The request is ready, with this time limit.
    Asks(Duration),
    Ended(Result<(), String>),
}

/// Does the work on a thread. The thread is abandoned if a file system, the name service or a full backlog blocks it.
fn run_in_time(cli: Cli) -> Result<(), String> {
    let (report, reports) = mpsc::channel();
    thread::spawn(move || {
        let asks = report.clone();
        let ended = run(&cli, |limit| drop(asks.send(Progress::Asks(limit))));
        report.send(Progress::Ended(ended))
    });
    let mut limit = PREPARATION;
    loop {
        match reports.recv_timeout(limit) {
            Ok(Progress::Asks(longer)) => limit = longer + GRACE,
            Ok(Progress::Ended(ended)) => return ended,
            Err(_) => return Err(format!("it took longer than {} s", limit.as_secs())),
        }
    }
}

fn run(cli: &Cli, asks: impl FnOnce(Duration)) -> Result<(), String> {
    let when = match (cli.when, env::var("SLURM_SCRIPT_CONTEXT").as_deref()) {
        (Some(when), _) => when,
        (None, Ok("prolog_slurmctld")) => When::Prolog,
        (None, Ok("epilog_slurmctld")) => When::Epilog,
        (None, _) => return Err("SLURM_SCRIPT_CONTEXT is missing: specify prolog or epilog".to_owned()),
    };
    let site = Site::read(&cli.config)?;
    let (request, limit) = match when {
        When::Prolog => (ControllerRequest::Prolog(job::of_env()?), site.config.timeout + GRACE),
        When::Epilog => (job::end_of_env()?, EPILOG),
    };
    asks(limit);
    match ask(&site, &request, Deadline::after(limit)) {
        Ok(ControllerReply::Done) => Ok(()),
        Ok(ControllerReply::Answer(_)) => Err("the agent answered another question".to_owned()),
        Ok(ControllerReply::Failed(why)) => Err(why),
        Err(e) => {
            // A record of an earlier run of the job must not serve this run.
            let forgotten = fs::remove_file(site.slurm.store.join(Slurm::record_name(job::jobid()?)));
            let kept = match forgotten {
                Err(e) if e.kind() != io::ErrorKind::NotFound => format!("; its earlier record was not removed: {e}"),
                _ => String::new(),
            };
            let socket = site.slurm.socket.display();
            Err(format!(
                "the agent at {socket} could not be reached: {e}{kept}: start it, for example with  systemctl start \
                 workflow-token-agent-slurm"
            ))
        }
    }
}

/// Sends the request to the agent. Waits for an agent that is starting.
fn ask(site: &Site, request: &ControllerRequest, deadline: Deadline) -> io::Result<ControllerReply> {
    let start = deadline.at_most(STARTING);
    loop {
        let e = match UnixStream::connect(&site.slurm.socket) {
            // If the agent receives a request twice because the first reply was cut off, it processes it again.
            Ok(mut agent) => match exchange(&mut agent, request, MAX_REPLY, deadline) {
                Ok(reply) => return Ok(reply),
                Err(e) => e,
            },
            Err(e) if start.left().is_err() || e.kind() == io::ErrorKind::PermissionDenied => return Err(e),
            Err(e) => e,
        };
        if deadline.left().is_err() {
            return Err(e);
        }
        thread::sleep(PAUSE);
    }
}
