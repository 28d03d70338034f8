//! Serves PrologSlurmctld and EpilogSlurmctld: one request for each connection.

use std::{io, sync::Arc, time::Duration};

use config::{Config, Property, Rule, SlurmJob, Source, TokenRequests};
use delivery::{Sealed, Task, Variables};
use protocol::{
    Code, Failure, JobFacts,
    slurm::{ControllerReply, ControllerRequest, Job, MAX_REQUEST, VERSION},
};
use tokio::{io::AsyncWriteExt, net::UnixStream, sync::Semaphore, time::timeout};

use crate::{frames::receive, validity};

use super::{
    Current, Site,
    facts::{self, asked},
    questions, squeue,
    store::{Answer, Entry, Store},
};

/// The time in which a request must have arrived.
const REQUEST: Duration = Duration::from_secs(10);

/// The number of changes to the store that are made at once: a shared one may hang.
const STORING: usize = 32;

/// The number of questions to Slurm that are asked at once.
const ASKING: usize = 8;

/// The capacity for the controller.
pub struct Capacity {
    storing: Arc<Semaphore>,
    pub(super) asking: Semaphore,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            storing: Arc::new(Semaphore::new(STORING)),
            asking: Semaphore::new(ASKING),
        }
    }
}

/// How much longer than its timeout a delivery may take: the engine, which ends it in time, has the better message.
const GRACE: Duration = Duration::from_millis(500);

/// The time that the file system may take.
pub(super) const STORE: Duration = Duration::from_secs(10);

/// Serves a connection.
pub async fn serve(mut stream: UnixStream, site: Arc<Site>) {
    let request = match timeout(REQUEST, receive(&mut stream, MAX_REQUEST)).await {
        Ok(Ok(ControllerRequest::Ask(ask))) => {
            let reply = ControllerReply::Answer(questions::answer(&site, ask).await);
            return send(&mut stream, &reply).await;
        }
        request => request,
    };
    let reply = match request {
        Ok(Ok(ControllerRequest::Prolog(job))) => prolog(&site, job, &stream).await,
        Ok(Ok(ControllerRequest::Epilog {
            version,
            jobid,
            restarts,
        })) => epilog(&site, version, jobid, restarts).await,
        // It was answered.
        Ok(Ok(ControllerRequest::Ask(_))) => return,
        Ok(Err(e)) => Err(format!("a request of the controller is of no use: {e}")),
        Err(_) => Err("a request of the controller did not arrive".to_owned()),
    };
    let reply = match reply {
        Ok(()) => ControllerReply::Done,
        Err(why) => {
            eprintln!("workflow-token-agent: {why}");
            ControllerReply::Failed(why)
        }
    };
    send(&mut stream, &reply).await;
}

async fn send(stream: &mut UnixStream, reply: &ControllerReply) {
    if let Ok(frame) = protocol::encode(reply) {
        // The peer may have given up.
        let _ = stream.write_all(&frame).await;
    }
}

fn check_version(version: u16) -> Result<(), String> {
    match version == VERSION {
        true => Ok(()),
        false => Err(format!(
            "workflow-token-slurmctld has protocol {version}, and the agent {VERSION}: install the same release"
        )),
    }
}

/// Takes a job to its record, or to the reason why it has none, and stores that.
async fn prolog(site: &Arc<Site>, job: Job, controller: &UnixStream) -> Result<(), String> {
    check_version(job.version)?;
    let current = site.current();
    let jobid = job.jobid;
    let limit = current.config.timeout.saturating_add(GRACE);
    let delivered = timeout(limit, deliver(site, &current, &job)).await;
    let delivered = delivered.unwrap_or_else(|_| {
        let why = "Slurm or the source took too long";
        Err(Failure::new(Code::AgentTimeout, "it took too long", why))
    });
    let answer = match delivered {
        Ok(record) => Answer::Record(record),
        Err(failure) => {
            eprintln!(
                "workflow-token-agent: job {jobid}: no workflow token was delivered: {} [{}]",
                failure.operator, failure.code
            );
            Answer::Failed(format!(
                "no workflow token was delivered: {} [{}]",
                failure.user, failure.code
            ))
        }
    };
    // The job of a prolog that has ended has started without its record, and perhaps ended.
    if matches!(controller.try_read(&mut [0]), Ok(0)) {
        return Err(format!(
            "job {jobid}: its prolog did not wait for its record: see PrologEpilogTimeout"
        ));
    }
    let entry = Entry::new(&job, answer);
    change(site, move |store| store.put(jobid, &entry)).await.map_err(|e| {
        format!(
            "job {jobid}: its record could not be stored: {e}: see to the store; the job does not start [store-failed]"
        )
    })
}

async fn epilog(site: &Arc<Site>, version: u16, jobid: u32, restarts: u32) -> Result<(), String> {
    check_version(version)?;
    let removed = change(site, move |store| store.remove(jobid, restarts)).await;
    removed.map_err(|e| format!("job {jobid}: its record was not removed: {e}"))
}

/// Changes the store, on a thread, and stops waiting for it in time.
async fn change(
    site: &Arc<Site>,
    change: impl FnOnce(&Store) -> io::Result<()> + Send + 'static,
) -> Result<(), String> {
    let permit = timeout(STORE, Arc::clone(&site.controller.storing).acquire_owned()).await;
    let Ok(Ok(permit)) = permit else {
        return Err("other changes hang".to_owned());
    };
    let site = Arc::clone(site);
    let change = move || {
        let changed = change(&site.store);
        drop(permit);
        changed
    };
    match timeout(STORE, tokio::task::spawn_blocking(change)).await {
        Ok(Ok(changed)) => changed.map_err(|e| e.to_string()),
        Ok(Err(_)) => Err("an internal error".to_owned()),
        Err(_) => Err("the file system does not answer".to_owned()),
    }
}

/// Returns the record of a job, in JSON. It is without variables if no rule is for the job.
async fn deliver(site: &Site, current: &Arc<Current>, job: &Job) -> Result<String, Failure> {
    let (config, jobid) = (&current.config, job.jobid);
    if job.cluster != current.slurm.cluster {
        let why = format!(
            "the job is of cluster {}, and this is the agent of {}: correct the key cluster of the table slurm",
            job.cluster.escape_debug(),
            current.slurm.cluster
        );
        let user = "the configuration cannot be used";
        return Err(Failure::new(Code::AgentConfiguration, user, why));
    }
    if let Some(refusal) = validity::refusal(current.revocations.clone(), job_of(job)).await {
        return Err(refusal);
    }
    let (job, limit) = complete(site, config, job).await?;
    let rules = config.candidates(&facts(config, &job));
    let task = Task {
        jobid: jobid.into(),
        f58: jobid.to_string(),
        uid: job.uid,
        asked: asked(&job, &config.projects),
        limit,
        timeout: config.timeout,
        slurm: Some(SlurmJob {
            array: job.array,
            restarts: job.restarts,
        }),
        requests: TokenRequests::new(),
        generation: 0,
        variables: Variables::Rules(rules),
    };
    let outcome = Arc::clone(&current.engine).deliver_or_none(task).await;
    for line in outcome.warnings {
        eprintln!("workflow-token-agent: {line}");
    }
    for line in outcome.notes {
        eprintln!("workflow-token-agent: job {jobid}: {line}");
    }
    match outcome.result? {
        Sealed::Record { record, .. } => Ok(record),
        Sealed::NoRule => Err(Failure::internal_in_agent()),
    }
}

fn job_of(job: &Job) -> JobFacts {
    JobFacts {
        instance: job.cluster.clone(),
        jobid: job.jobid.into(),
        uid: job.uid,
    }
}

fn facts<'a>(config: &'a Config, job: &'a Job) -> facts::JobFacts<'a> {
    facts::JobFacts {
        job,
        projects: &config.projects,
    }
}

/// Asks Slurm for what the prolog was not told, if a rule that may match asks for it.
async fn complete(site: &Site, config: &Config, job: &Job) -> Result<(Job, Option<Duration>), Failure> {
    let mut job = job.clone();
    let facts = facts(config, &job);
    let asks = |rule: &Rule| {
        let mut properties = rule.conditions.properties.iter();
        let is_missing = |property: Property| match property {
            Property::Qos => job.qos.is_none(),
            Property::Comment => job.comment.is_none(),
            _ => false,
        };
        properties.any(|(property, _)| is_missing(*property)) || matches!(rule.source, Source::Issuer(_))
    };
    // Missing properties count as unknown here.
    let mut candidates = config
        .rules
        .iter()
        .filter(|rule| rule.conditions.hold(&facts) != Some(false));
    if !candidates.any(asks) {
        return Ok((job, None));
    }
    let failed = |e: String| {
        let why = format!("its quality of service, time limit and comment could not be looked up: {e}");
        Failure::new(Code::OwnerUnknown, "Slurm could not be asked for it", why)
    };
    let _asking = site
        .controller
        .asking
        .acquire()
        .await
        .map_err(|e| failed(e.to_string()))?;
    let more = squeue::more_of(job.jobid).await.map_err(failed)?;
    job.qos = Some(job.qos.or(more.qos).unwrap_or_default());
    job.comment = Some(job.comment.or(more.comment).unwrap_or_default());
    Ok((job, more.limit))
}
