// SPDX-License-Identifier: MIT OR Apache-2.0

//! Renews the records of running jobs before their tokens expire, and applies `on-expiry` of their rules if a renewal
//! fails.
//!
//! The store contains all state: the running jobs, and the time of each renewal. So agents that share a store may both
//! follow a job. The first one renews its record, and the other one finds the new entry.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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

/// The interval at which the agent searches the store for jobs of other agents.
const SEARCH: Duration = Duration::from_secs(60);

/// The jobs with a record.
#[derive(Default)]
pub struct Renewals(Mutex<HashMap<u32, Followed>>);

/// A job with a record.
struct Followed {
    /// The task that renews the record.
    task: AbortHandle,
    /// The job owner, once the record was read.
    uid: Option<u32>,
    /// The time of the renewal, in seconds since 1970-01-01T00:00:00Z.
    renew_at: Option<f64>,
}

impl Renewals {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Followed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the jobs of a user, the latest first. The store may no longer contain their records.
    pub fn of(&self, uid: u32) -> Vec<u32> {
        let jobs = self.lock();
        let of_user = jobs.iter().filter(|(_, followed)| followed.uid == Some(uid));
        let mut jobs: Vec<u32> = of_user.map(|(jobid, _)| *jobid).collect();
        jobs.sort_unstable_by_key(|jobid| u32::MAX - jobid);
        jobs
    }

    /// Returns the jobs that are renewed, and the times. The store may no longer contain their records.
    pub fn due(&self) -> Vec<(u32, u64)> {
        let jobs = self.lock();
        // A time before 1970 counts as 0.
        let due = |(jobid, followed): (&u32, &Followed)| Some((*jobid, followed.renew_at? as u64));
        jobs.iter().filter_map(due).collect()
    }

    /// Stores the owner and the time of the renewal of a followed job.
    fn note(&self, jobid: u32, uid: u32, due: Option<Due>) {
        if let Some(followed) = self.lock().get_mut(&jobid) {
            followed.uid = Some(uid);
            followed.renew_at = due.map(|due| due.renew_at);
        }
    }

    fn add(&self, jobid: u32, begin: impl FnOnce() -> AbortHandle) {
        // The lock prevents the task from calling `note` before the job is in the table.
        let mut jobs = self.lock();
        let (task, uid, renew_at) = (begin(), None, None);
        if let Some(former) = jobs.insert(jobid, Followed { task, uid, renew_at }) {
            former.task.abort();
        }
    }

    /// Removes the jobs without a record, and those whose task ended before their renewal, after a panic. Returns the jobs in
    /// `stored` that are not followed.
    fn unknown(&self, mut stored: HashSet<u32>) -> HashSet<u32> {
        let mut known = self.lock();
        known.retain(|job, followed| {
            !followed.task.is_finished() || (stored.contains(job) && followed.renew_at.is_none())
        });
        stored.retain(|job| !known.contains_key(job));
        stored
    }
}

/// Follows a job with a stored record until it ends. Aborts the task of a former run of the job.
pub fn follow(site: &Arc<Site>, jobid: u32) {
    site.renewals
        .add(jobid, || tokio::spawn(renew(Arc::clone(site), jobid)).abort_handle());
}

/// Follows the jobs that run when the agent starts, and the jobs of other agents.
pub async fn follow_all(site: Arc<Site>) {
    loop {
        if let Ok(jobs) = in_store(&site, Store::jobs).await {
            for job in site.renewals.unknown(jobs) {
                follow(&site, job);
            }
        }
        sleep(SEARCH).await;
    }
}

/// Renews the record of a job until the job has ended, or needs no renewal.
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
            // The job may have been renewed, or have ended, meanwhile.
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

/// Returns the entry of a job, and its next renewal; none if there is none. Retries until the store can be read.
async fn due(site: &Arc<Site>, jobid: u32) -> Option<(Entry, Due)> {
    loop {
        match in_store(site, move |store| store.get(jobid)).await {
            Ok(entry) => {
                let entry = entry?;
                let due = entry.due();
                site.renewals.note(jobid, entry.job.uid, due);
                return Some((entry, due?));
            }
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
        let why = format!("it could not be stored: {e}: check the store");
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
        log(job.jobid, &format!("it could not be signaled or canceled: {e}"));
    }
}

fn log(jobid: u32, line: &str) {
    eprintln!("workflow-token-agent: job {jobid}: {line}");
}

#[cfg(test)]
mod tests {
    use seal::Renewal;

    use super::*;

    #[tokio::test]
    async fn jobs_are_known_by_user_while_they_have_a_record() {
        let renewals = Renewals::default();
        let due = Renewal {
            renew_at: Some(17.5),
            ..Renewal::default()
        };
        for jobid in [1, 2, 3] {
            renewals.add(jobid, || tokio::spawn(std::future::ready(())).abort_handle());
        }
        assert_eq!(renewals.of(1000), [0; 0]);
        renewals.note(1, 1000, due.due());
        renewals.note(2, 1001, None);
        renewals.note(3, 1000, None);
        // A job that is not followed.
        renewals.note(4, 1000, None);
        assert_eq!((renewals.of(1000), renewals.of(1001)), (vec![3, 1], vec![2]));
        assert_eq!(renewals.due(), [(1, 17)]);
        // The tasks end, because the jobs need no renewal.
        while !renewals.lock().values().all(|followed| followed.task.is_finished()) {
            tokio::task::yield_now().await;
        }
        // The first one was due, and its task ended without a renewal.
        assert_eq!(renewals.unknown(HashSet::from([1, 2, 5])), HashSet::from([1, 5]));
        assert_eq!((renewals.of(1000), renewals.of(1001)), (vec![], vec![2]));
    }
}
