// SPDX-License-Identifier: MIT OR Apache-2.0

//! Serves PrologSlurmctld and EpilogSlurmctld, one request for each connection.

use std::{sync::Arc, time::Duration};

use protocol::{
    Code, Failure,
    slurm::{ControllerReply, ControllerRequest, Job, MAX_REQUEST, VERSION},
};
use tokio::{io::AsyncWriteExt, net::UnixStream, time::timeout};

use crate::frames::receive_any;

use super::{
    Site,
    jobs::deliver,
    questions,
    renewals::follow,
    store::{Answer, Entry, in_store},
};

/// The timeout for receiving a request.
const REQUEST: Duration = Duration::from_secs(10);

/// The time that a delivery may exceed its timeout by. The engine ends it in time, with a better message.
const GRACE: Duration = Duration::from_millis(500);

/// Serves a connection.
pub async fn serve(mut stream: UnixStream, site: Arc<Site>) {
    let request = timeout(REQUEST, receive_any(&mut stream, MAX_REQUEST)).await;
    let reply = match request {
        // A client that only connects checks whether an agent listens.
        Ok(Ok(None)) => return,
        Ok(Ok(Some(ControllerRequest::Ask(ask)))) => {
            let reply = ControllerReply::Answer(questions::answer(&site, ask).await);
            return send(&mut stream, &reply).await;
        }
        Ok(Ok(Some(ControllerRequest::Prolog(job)))) => prolog(&site, job, &stream).await,
        Ok(Ok(Some(ControllerRequest::Epilog {
            version,
            jobid,
            restarts,
        }))) => epilog(&site, version, jobid, restarts).await,
        Ok(Err(e)) => Err(format!("a request of the controller could not be read: {e}")),
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
        // Ignore a peer that has given up.
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

/// Delivers the record of a job, and stores it, or the reason why there is none.
async fn prolog(site: &Arc<Site>, job: Job, controller: &UnixStream) -> Result<(), String> {
    check_version(job.version)?;
    let current = site.current();
    let jobid = job.jobid;
    let limit = current.config.timeout.saturating_add(GRACE);
    let delivered = timeout(limit, deliver(site, &current, &job, 0)).await;
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
    // If the prolog has ended, Slurm has started the job without its record, or the job has ended.
    if matches!(controller.try_read(&mut [0]), Ok(0)) {
        return Err(format!(
            "job {jobid}: its prolog did not wait for its record: see PrologEpilogTimeout"
        ));
    }
    let entry = Entry::new(job, answer);
    in_store(site, move |store| store.put(&entry)).await.map_err(|e| {
        format!(
            "job {jobid}: its record could not be stored: {e}: check the store; the job does not start [store-failed]"
        )
    })?;
    follow(site, jobid);
    Ok(())
}

async fn epilog(site: &Arc<Site>, version: u16, jobid: u32, restarts: u32) -> Result<(), String> {
    check_version(version)?;
    // The task that renews the record ends when it finds no entry.
    let removed = in_store(site, move |store| store.remove(jobid, restarts)).await;
    removed.map_err(|e| format!("job {jobid}: its record was not removed: {e}"))
}
