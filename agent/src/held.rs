// SPDX-License-Identifier: MIT OR Apache-2.0

//! The jobs that hold tokens.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use protocol::{DUE, Held, JobFacts, MAX_HELD, TokenFacts};
use seal::Record;
use tokio::{task::spawn_blocking, time::timeout};

use crate::revocations::Store;

/// The timeout of the file system of the revocations.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The most jobs in memory. If there are more, the half with the oldest tokens is dropped.
const MAX_JOBS: usize = 20_000;

/// The jobs to which this agent has delivered tokens, until the tokens expire or the agent learns that the job has
/// ended.
#[derive(Default)]
pub struct HeldJobs {
    /// By instance and job id, with a counter of deliveries.
    jobs: HashMap<(String, u64), (u64, Held)>,
    last: u64,
}

impl HeldJobs {
    /// Adds a job, or replaces its entry.
    pub fn add(&mut self, held: Held) {
        if self.jobs.len() >= MAX_JOBS {
            let now = now();
            self.jobs.retain(|_, (_, held)| is_valid(held, now));
        }
        if self.jobs.len() >= MAX_JOBS {
            let mut positions: Vec<u64> = self.jobs.values().map(|(position, _)| *position).collect();
            let (_, middle, _) = positions.select_nth_unstable(MAX_JOBS / 2);
            let middle = *middle;
            self.jobs.retain(|_, (position, _)| *position >= middle);
        }
        self.last += 1;
        let key = (held.job.instance.clone(), held.job.jobid);
        self.jobs.insert(key, (self.last, held));
    }

    /// Removes a job that has ended.
    pub fn remove(&mut self, job: &JobFacts) {
        self.jobs.remove(&(job.instance.clone(), job.jobid));
    }

    /// Returns the jobs of a user, those with the latest delivery first.
    pub fn of(&self, uid: u32) -> Vec<Held> {
        let now = now();
        let of_user = |(_, held): &&(u64, Held)| held.job.uid == uid && is_valid(held, now);
        let mut jobs: Vec<_> = self.jobs.values().filter(of_user).collect();
        jobs.sort_unstable_by_key(|(position, _)| u64::MAX - position);
        jobs.into_iter().take(MAX_HELD).map(|(_, held)| held.clone()).collect()
    }

    /// Returns the jobs that are renewed within the intervals of [`due`], the next ones first.
    pub fn due(&self) -> Vec<Held> {
        let now = now();
        let last = now + DUE.0 * DUE.1 as u64;
        let is_due = |held: &&Held| held.renew_at.is_some_and(|at| at < last) && is_valid(held, now);
        let mut jobs: Vec<&Held> = self.jobs.values().map(|(_, held)| held).filter(is_due).collect();
        jobs.sort_unstable_by_key(|held| held.renew_at);
        jobs.into_iter().take(MAX_HELD).cloned().collect()
    }
}

/// Returns the tokens that a job holds according to its record; none if no token is valid.
pub fn of_record(job: JobFacts, name: String, record: &str) -> Option<Held> {
    let record = Record::from_json(record).ok()?;
    let renewal = record.renewal();
    // A time before 1970 counts as 0.
    let seconds = |at: Option<f64>| at.map(|at| at as u64);
    let held = Held {
        job,
        name,
        variables: renewal.files.clone(),
        expires_at: seconds(renewal.expires_at),
        renew_at: seconds(renewal.renew_at),
    };
    (!held.variables.is_empty() && is_valid(&held, now())).then_some(held)
}

/// Returns the jobs whose tokens were not revoked, as far as is known. `stores` are the revocations by instance.
pub async fn without_revoked(stores: Vec<(String, Store)>, held: Vec<Held>) -> Vec<Held> {
    let all = held.clone();
    let is_revoked = move |held: &Held| {
        // A revocation by user does not count: the job may hold newer tokens.
        let token = TokenFacts {
            job: Some(held.job.clone()),
            iat: Some(f64::MAX),
            ..TokenFacts::default()
        };
        let mut stores = stores.iter().filter(|(instance, _)| *instance == held.job.instance);
        let store = stores.find_map(|(_, store)| store.as_ref()?.as_ref().ok());
        store.is_some_and(|store| store.is_revoked(&token) == Ok(true))
    };
    let rest = move || held.into_iter().filter(|held| !is_revoked(held)).collect();
    match timeout(TIMEOUT, spawn_blocking(rest)).await {
        Ok(Ok(rest)) => rest,
        _ => all,
    }
}

/// Counts times by intervals of [`DUE`] from now on. Past times count in the first.
pub fn due(times: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut counts = vec![0; DUE.1];
    let now = now();
    for at in times {
        let interval = at.saturating_sub(now) / DUE.0;
        if let Some(count) = usize::try_from(interval)
            .ok()
            .and_then(|interval| counts.get_mut(interval))
        {
            *count += 1;
        }
    }
    counts
}

fn is_valid(held: &Held, now: u64) -> bool {
    held.expires_at.is_none_or(|at| at > now)
}

/// Returns the current time, in seconds since 1970-01-01T00:00:00Z.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(jobid: u64, uid: u32, expires_in: u64, renew_in: Option<u64>) -> Held {
        Held {
            job: JobFacts {
                instance: "a".to_owned(),
                jobid,
                uid,
            },
            name: format!("f{jobid}"),
            variables: vec!["DW_WORKFLOW_TOKEN".to_owned()],
            expires_at: Some(now() + expires_in),
            renew_at: renew_in.map(|seconds| now() + seconds),
        }
    }

    fn ids(held: Vec<Held>) -> Vec<u64> {
        held.into_iter().map(|held| held.job.jobid).collect()
    }

    #[test]
    fn users_have_their_own_jobs_until_the_tokens_expire() {
        let mut jobs = HeldJobs::default();
        for (jobid, uid, expires_in) in [(1, 7, 600), (2, 8, 600), (3, 7, 0), (4, 7, 600)] {
            jobs.add(held(jobid, uid, expires_in, None));
        }
        assert_eq!(ids(jobs.of(7)), [4, 1]);
        // The next delivery to the same job.
        let next = held(1, 7, 900, None);
        jobs.add(next.clone());
        assert_eq!(ids(jobs.of(7)), [1, 4]);
        assert_eq!(jobs.of(7)[0], next);
        jobs.remove(&held(4, 7, 0, None).job);
        assert_eq!(ids(jobs.of(7)), [1]);
        assert_eq!(ids(jobs.of(9)), [0; 0]);
    }

    #[test]
    fn the_jobs_that_are_known_are_bounded() {
        let mut jobs = HeldJobs::default();
        let count = MAX_JOBS as u64;
        for jobid in 0..count {
            jobs.add(held(jobid, 7, 600, None));
        }
        assert_eq!(jobs.jobs.len(), MAX_JOBS);
        jobs.add(held(count, 7, 600, None));
        assert!(jobs.jobs.len() <= MAX_JOBS / 2 + 2, "{}", jobs.jobs.len());
        let newest = ids(jobs.of(7));
        assert_eq!((newest.len(), newest[0], newest[1]), (MAX_HELD, count, count - 1));
    }

    #[test]
    fn renewals_are_counted_by_when_they_are_due() {
        let mut jobs = HeldJobs::default();
        for (jobid, renew_in) in [
            (1, Some(4000)),
            (2, Some(299)),
            (3, None),
            (4, Some(3500)),
            (5, Some(0)),
        ] {
            jobs.add(held(jobid, 7, 9000, renew_in));
        }
        assert_eq!(ids(jobs.due()), [5, 2, 4]);
        let counts = due(jobs
            .due()
            .into_iter()
            .filter_map(|held| held.renew_at)
            .chain([0, u64::MAX]));
        assert_eq!(counts, [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }
}
