// SPDX-License-Identifier: MIT OR Apache-2.0

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;
use std::{fs, io};

use config::Slurm;
use seal::{Expected, Munge, Owner, Record, key};
use serde_json::{Value, json};
use slurm::Site;
use token::NumericDate;

use crate::{flux, people, print, within};

/// Print the sealed record of a job: the names of its variables, its owner, its sealer and the time, but no values
///
/// The job owner and the instance owner can read the record. If the job owner runs this, it opens the record and
/// discards the content, which verifies the sealer; nobody else can do that, not even root.
#[derive(clap::Args)]
pub struct Args {
    /// Job id, in any form that Flux accepts
    #[arg(value_name = "JOBID")]
    jobid: String,

    /// The record to print: each plugin that delivers has one
    #[arg(long, value_name = "KEY", default_value = key::WORKFLOW_TOKEN, value_parser = key::ALL)]
    record: String,

    /// On Slurm: the configuration of the cluster. The record is read from the agent's store, or from the cache of this
    /// node, as root or as the agent's user
    #[arg(long, value_name = "FILE|DIR", conflicts_with = "record")]
    config: Option<PathBuf>,

    /// Socket of munged [default: that of the instance's configuration, or else MUNGE's own]
    #[arg(long, value_name = "PATH")]
    munge_socket: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The reason why nothing can be shown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}: not a job id: use the id that flux jobs prints (ƒ…), or a number")]
    NotJobid(String),
    #[error("{0}: no such job in this instance: see `flux jobs -a`, which omits purged jobs")]
    NoJob(String),
    #[error("{0}: only the job owner and the instance owner can read the record of a job: ask one of them")]
    Denied(String),
    #[error(
        "{0}: the job has no such record: no rule matched this job, the record was removed at the end of the job, or \
         the plugin was not loaded (operators: see `flux workflow-token doctor`)"
    )]
    NoRecord(String),
    #[error("{0}: this does not run in a Flux instance: run it where `flux jobs` works")]
    NoInstance(String),
    #[error("{0}: {1}")]
    Record(String, seal::Error),
    #[error("{0}: {1}")]
    Cluster(String, String),
    #[error("{0}: {1}")]
    Flux(String, flux::Error),
    #[error(transparent)]
    Write(#[from] io::Error),
}

/// The certainty about the sealer of a record.
enum Seal {
    /// MUNGE confirmed the sealer, who is the instance owner, and the time.
    Authentic { by: u32, at: SystemTime },
    /// The record is not authentic, for this reason.
    Refused(String),
    /// The record was not opened, for this reason.
    Unknown(String),
}

impl Seal {
    /// Returns the sealer and the time, from MUNGE or else from the record.
    fn by_and_at(&self, record: &Record) -> (u32, NumericDate) {
        match self {
            Self::Authentic { by, at } => (*by, NumericDate::from(*at)),
            Self::Refused(_) | Self::Unknown(_) => (record.sealer(), NumericDate::from(record.sealed_at())),
        }
    }
}

/// Prints a record.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let id = print::word(&print::hidden(&args.jobid));
    if let Some(path) = &args.config {
        return show_cluster(args, path, id);
    }
    let jobid = decimal(&args.jobid, &id)?;
    let text = flux::run(&["job", "info", &jobid.to_string(), &args.record]).map_err(|e| refusal(id.clone(), e))?;
    let record = Record::from_json(&text).map_err(|e| Error::Record(id.clone(), e))?;

    let seal = verify(&record, jobid, args.munge_socket.as_deref());
    let shown = if args.json {
        print::json(&as_json(&args.record, &record, jobid, &seal)) + "\n"
    } else {
        as_text(&id, &args.record, &record, &seal)
    };
    print::out(&shown)?;
    Ok(match seal {
        Seal::Refused(_) => ExitCode::FAILURE,
        Seal::Authentic { .. } | Seal::Unknown(_) => ExitCode::SUCCESS,
    })
}

/// Prints the record of a Slurm job.
fn show_cluster(args: &Args, path: &Path, id: String) -> Result<ExitCode, Error> {
    let failed = |why: String| Error::Cluster(id.clone(), why);
    let site = Site::read(path).map_err(failed)?;
    let jobid: u32 = args
        .jobid
        .parse()
        .map_err(|_| failed("not a job id: use the number that squeue prints".to_owned()))?;
    let answer = stored(&site, jobid).map_err(failed)?;
    let record = match answer {
        Stored::Record(record) => record,
        Stored::Failed(why) => return Err(failed(format!("the job has no record: {why}"))),
    };
    let seal = Seal::Unknown("only a task of the job can open it".to_owned());
    let shown = if args.json {
        print::json(&as_json(&args.record, &record, jobid.into(), &seal)) + "\n"
    } else {
        as_text(&id, &args.record, &record, &seal)
    };
    print::out(&shown)?;
    Ok(ExitCode::SUCCESS)
}

/// The result that a controller or a node has stored for a job.
enum Stored {
    Record(Record),
    /// The reason why the delivery failed.
    Failed(String),
}

fn stored(site: &Site, jobid: u32) -> Result<Stored, String> {
    let name = Slurm::record_name(jobid);
    let (store, cache) = (site.slurm.store.join(&name), site.slurm.cache.join(&name));
    let parse = |text: &str| Record::from_json(text).map(Stored::Record).map_err(|e| e.to_string());
    match (fs::read_to_string(&store), fs::read_to_string(&cache)) {
        (Ok(text), _) => {
            let entry: Value = serde_json::from_str(&text).map_err(|e| format!("{}: {e}", store.display()))?;
            match (entry["answer"]["record"].as_str(), entry["answer"]["failed"].as_str()) {
                (Some(record), _) => parse(record),
                (None, Some(why)) => Ok(Stored::Failed(why.to_owned())),
                (None, None) => Err(format!("{}: it belongs to another release", store.display())),
            }
        }
        (Err(_), Ok(text)) => parse(&text),
        (Err(e), Err(_)) if e.kind() == io::ErrorKind::PermissionDenied => {
            Err(format!("{}: {e}: run this as root", store.display()))
        }
        (Err(_), Err(_)) => Err(format!(
            "there is no record in {} or {}: the job has ended, or this is neither its controller nor one of its nodes",
            site.slurm.store.display(),
            site.slurm.cache.display()
        )),
    }
}

/// Converts a job id to a number, with flux, which supports all its forms.
pub(crate) fn decimal(id: &str, shown: &str) -> Result<u64, Error> {
    match flux::run(&["job", "id", "--to=dec", "--", id]) {
        Ok(number) => number.trim().parse().map_err(|_| Error::NotJobid(shown.to_owned())),
        Err(flux::Error::Failed { .. }) => Err(Error::NotJobid(shown.to_owned())),
        Err(e) => Err(Error::Flux(shown.to_owned(), e)),
    }
}

/// Converts an error message of flux.
fn refusal(id: String, error: flux::Error) -> Error {
    if error.says("key not found") {
        Error::NoRecord(id)
    } else if error.says("invalid job id") {
        Error::NoJob(id)
    } else if error.is_denied() {
        Error::Denied(id)
    } else if error.is_no_instance() {
        Error::NoInstance(id)
    } else {
        Error::Flux(id, error)
    }
}

/// Opens the record if this process can, and discards its content.
fn verify(record: &Record, jobid: u64, socket: Option<&Path>) -> Seal {
    if record.jobid() != jobid {
        return Seal::Refused(format!("it claims to belong to job {}", record.jobid()));
    }
    if people::me() != record.uid() {
        return Seal::Unknown("only the job owner can open it".to_owned());
    }
    let owner = match flux::run(&["getattr", "security.owner"]).map(|uid| uid.trim().parse::<u32>()) {
        Ok(Ok(owner)) => owner,
        Ok(Err(_)) => return Seal::Unknown("flux did not report the owner of the instance".to_owned()),
        Err(e) => return Seal::Unknown(e.to_string()),
    };
    let munge = match munge(socket) {
        Ok(munge) => munge,
        Err(e) => return Seal::Unknown(e.to_string()),
    };
    let expected = Expected {
        owner: Owner {
            jobid,
            uid: record.uid(),
        },
        instance_owner: owner,
    };
    let record = record.clone();
    match within::timeout(move || record.open(&munge, &expected).map(|opened| opened.sealed_at)) {
        None => Seal::Unknown("munged does not answer: see `flux workflow-token doctor`".to_owned()),
        Some(Ok(at)) => Seal::Authentic { by: owner, at },
        Some(Err(e)) if e.is_retryable() => Seal::Unknown(e.to_string()),
        Some(Err(e)) => Seal::Refused(e.to_string()),
    }
}

/// Returns MUNGE with the socket of the caller, or else of the instance's configuration, or else with its default
/// socket.
fn munge(socket: Option<&Path>) -> Result<Munge, seal::MungeError> {
    if socket.is_some() {
        return Munge::new(socket);
    }
    let configured = flux::run(&["config", "get"]).ok();
    let configured = configured.and_then(|text| serde_json::from_str::<Value>(&text).ok());
    match configured.and_then(|conf| config::Config::from_json(&conf).ok()) {
        Some(config) => config.munge.client(),
        None => Munge::new(None),
    }
}

fn as_text(id: &str, key: &str, record: &Record, seal: &Seal) -> String {
    let now = SystemTime::now();
    let (sealer, sealed_at) = seal.by_and_at(record);
    let variables: Vec<_> = record.variables().iter().map(|name| print::word(name)).collect();
    let certain = match seal {
        Seal::Authentic { .. } => "verified by MUNGE".to_owned(),
        Seal::Refused(why) => format!("but the record is NOT AUTHENTIC: {}", print::word(why)),
        Seal::Unknown(why) => format!("according to the record, not verified: {}", print::word(why)),
    };
    format!(
        "job         {id}\nvariables   {}\nfor         {}\nsealed      {sealed_at} ({})\nsealed by   {}, {certain}\n\
         record      {key}, version {}, credential of {} bytes\n",
        if variables.is_empty() {
            "none".to_owned()
        } else {
            variables.join(" ")
        },
        people::describe(record.uid()),
        sealed_at.relative_to(now),
        people::describe(sealer),
        record.version(),
        record.credential().len(),
    )
}

fn as_json(key: &str, record: &Record, jobid: u64, seal: &Seal) -> Value {
    let (verified, why) = match seal {
        Seal::Authentic { .. } => (Some(true), None),
        Seal::Refused(why) => (Some(false), Some(why)),
        Seal::Unknown(why) => (None, Some(why)),
    };
    let (sealer, sealed_at) = seal.by_and_at(record);
    json!({
        "jobid": jobid,
        "record": key,
        "version": record.version(),
        "variables": record.variables(),
        "uid": record.uid(),
        "user": people::name(record.uid()),
        "sealed-at": sealed_at.seconds(),
        "sealer": sealer,
        "sealer-name": people::name(sealer),
        "verified": verified,
        "not-verified-because": why,
        "credential-bytes": record.credential().len(),
    })
}
