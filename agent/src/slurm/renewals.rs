//! Renews the records of running jobs before their tokens expire, and applies the key `on-expiry` of their rules if it cannot.
//!
//! The store contains all that is needed: the jobs that run, and when the next record of each is due. So agents that share a store
//! may both follow a job. The first one renews its record, and the other one finds the new entry.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use protocol::{Code, Failure, slurm::Job};
use seal::{Attempts, Due, OnExpiry};
use tokio::{
    task::AbortHandle,
    time::{sleep, sleep_until},
};

use super::{
    Site,
    jobs::deliver,
    squeue,
    store::{Entry, Store, in_store},
};

/// The interval between searches of the store for jobs of other agents.
const SEARCH: Duration = Duration::from_secs(60);

/// The jobs whose records are renewed.
#[derive(Default)]
pub struct Renewals(Mutex<HashMap<u32, AbortHandle>>);

/// Follows a job whose record was stored, until it has ended. The task of a former run of the job is aborted.
pub fn follow(site: &Arc<Site>, jobid: u32) {
    let task = tokio::spawn(renew(Arc::clone(site), jobid));
    let mut jobs = site.renewals.0.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(former) = jobs.insert(jobid, task.abort_handle()) {
        former.abort();
    }
}

/// Follows the jobs that run when the agent starts, and those that other agents deliver to.
pub async fn follow_all(site: Arc<Site>) {
    loop {
        if let Ok(jobs) = in_store(&site, Store::jobs).await {
            let unknown: Vec<u32> = {
                let mut known = site.renewals.0.lock().unwrap_or_else(PoisonError::into_inner);
                known.retain(|job, task| jobs.contains(job) || !task.is_finished());
                jobs.into_iter().filter(|job| !known.contains_key(job)).collect()
            };
            for job in unknown {
                follow(&site, job);
            }
        }
        sleep(SEARCH).await;
    }
}

/// Renews the record of a job until the job has ended, or needs no other record.
async fn renew(site: Arc<Site>, jobid: u32) {
    let mut next: Option<(Due, Attempts)> = None;
    while let Some((entry, due)) = due(&site, jobid).await {
        let attempts = match &mut next {
            Some((known, attempts)) if *known == due => attempts,
            former => {
                if former.as_ref().is_some_and(|(_, attempts)| attempts.has_failed()) {
                    log(jobid, "its workflow token was renewed");
                }
                let Some(attempts) = Attempts::of(due, SystemTime::now(), Instant::now()) else {
                    return;
                };
                &mut former.insert((due, attempts)).1
            }
        };
        if attempts.at() > Instant::now() {
            sleep_until(attempts.at().into()).await;
            // It may have been renewed, or have ended.
            continue;
        }
        let (expired, records) = attempts.is_due(Instant::now());
        if let Some(on_expiry) = expired {
            expire(&site, &entry.job, on_expiry).await;
        }
        let Some(records) = records else { continue };
        if let Err(failure) = renew_once(&site, entry, records).await
            && let Some(validity) = attempts.fail(Instant::now())
        {
            let Failure { operator, code, .. } = failure;
            log(
                jobid,
                &format!(
                    "its workflow token, which {validity}, could not be renewed: {operator}: trying again [{code}]"
                ),
            );
        }
    }
}

/// Returns the entry of a job, and its next record; none if there will be no other. Reads the store again until that succeeds.
async fn due(site: &Arc<Site>, jobid: u32) -> Option<(Entry, Due)> {
    loop {
        let read = in_store(site, move |store| {
            Ok(store.get(jobid)?.and_then(|entry| {
                let due = entry.due()?;
                Some((entry, due))
            }))
        });
        match read.await {
            Ok(found) => return found,
            Err(e) => log(jobid, &format!("its record cannot be read: {e}: trying again")),
        }
        sleep(SEARCH).await;
    }
}

async fn renew_once(site: &Arc<Site>, entry: Entry, records: u32) -> Result<(), Failure> {
    let current = site.current();
    let record = deliver(site, &current, &entry.job, records).await?;
    let stored = in_store(site, move |store| store.renew(entry, record)).await;
    stored.map_err(|e| {
        let why = format!("it could not be stored: {e}: see to the store");
        Failure::new(Code::StoreFailed, "it could not be stored", why)
    })
}

/// Applies the rule's `on-expiry` to a job whose token has expired.
async fn expire(site: &Site, job: &Job, on_expiry: OnExpiry) {
    log(job.jobid, "its workflow token has expired");
    let signal = match on_expiry {
        OnExpiry::Warn => return,
        OnExpiry::Signal => Some("TERM"),
        OnExpiry::Exception => None,
    };
    let Ok(_asking) = site.asking.acquire().await else {
        return;
    };
    if let Err(e) = squeue::cancel(job, signal).await {
        log(job.jobid, &format!("it could not be ended: {e}"));
    }
}

fn log(jobid: u32, line: &str) {
    eprintln!("workflow-token-agent: job {jobid}: {line}");
}
