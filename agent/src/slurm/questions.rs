// SPDX-License-Identifier: MIT OR Apache-2.0

//! Answers questions about the validity of tokens, and revokes tokens.

use std::{sync::Arc, time::SystemTime};

use protocol::{Answer, Ask, JobEnd, Question, Subject, TokenFacts, Validity};

use super::{
    Current, Site, reports, squeue,
    store::{Store, in_store},
};
use crate::{
    issuer::{self, Checks},
    revocations,
    status::{Ends, Status},
    validity,
};

/// The jobs of a cluster, with the active configuration.
struct Jobs<'a> {
    site: &'a Arc<Site>,
    current: &'a Current,
}

/// Answers a question of a command or service.
pub async fn answer(site: &Arc<Site>, ask: Ask) -> Answer {
    let current = site.current();
    if let Err(e) = validity::check_version(&ask) {
        return Answer::Failed(e);
    }
    let jobs = Jobs {
        site,
        current: &current,
    };
    match ask.question {
        Question::Check(token) => Answer::Validity(jobs.check(token).await),
        Question::Issuer { name, question } => {
            let issuer = current.issuer.clone().filter(|issuer| issuer.name() == name);
            let known = issuer.map(|issuer| (issuer, Arc::clone(&current.engine)));
            issuer::answer(known, &jobs, &name, question).await
        }
        Question::Revoke { subjects, keep_secs } => {
            validity::revoke(vec![current.revocations.clone()], subjects, keep_secs).await
        }
        Question::Held { uid } => reports::held(site, &current, uid).await,
        Question::Figures => reports::figures(site, &current).await,
    }
}

impl Checks for Jobs<'_> {
    async fn check(&self, token: TokenFacts) -> Validity {
        let (cluster, job) = (&self.current.slurm.cluster, token.job.clone());
        if job.as_ref().is_some_and(|job| job.instance != *cluster) {
            return Validity::Unknown(format!("this is the agent of cluster {cluster}"));
        }
        let revoked = validity::revoked(vec![self.current.revocations.clone()], token).await;
        match (revoked, job) {
            (Some(validity), _) => validity,
            (None, None) => Validity::Active,
            (None, Some(job)) => match end_of(self.site, job.jobid).await {
                Ok(end) => end.map_or(Validity::Active, Validity::Ended),
                Err(e) => Validity::Unknown(e),
            },
        }
    }

    async fn held(&self, uid: u32) -> Answer {
        reports::held(self.site, self.current, uid).await
    }

    async fn revoke(&self, subject: Subject, keep_secs: u64) -> Answer {
        validity::revoke(vec![self.current.revocations.clone()], vec![subject], keep_secs).await
    }
}

impl Ends for Jobs<'_> {
    /// Uses the current time: Slurm may not yet list the job of a token that is issued after this call begins.
    async fn find_ended(&self, status: &Status) -> Result<(), String> {
        let jobs = status.jobs(SystemTime::now()).await?;
        status.add_ended(ended(self.site, jobs).await?);
        Ok(())
    }

    fn revocations_of(&self, _: &str) -> revocations::Store {
        self.current.revocations.clone()
    }
}

/// Returns the jobs among `jobs` that have ended. Queries Slurm once about all jobs that this store does not contain.
async fn ended(site: &Arc<Site>, jobs: impl IntoIterator<Item = u64>) -> Result<Vec<u64>, String> {
    let stored = in_store(site, Store::jobs).await?;
    let is_in =
        |jobs: &std::collections::HashSet<u32>, job: u64| u32::try_from(job).is_ok_and(|job| jobs.contains(&job));
    let mut ended: Vec<u64> = jobs.into_iter().filter(|job| !is_in(&stored, *job)).collect();
    if !ended.is_empty() {
        let active = squeue::active_jobs().await?;
        ended.retain(|job| !is_in(&active, *job));
    }
    Ok(ended)
}

/// Returns the end of a job; none if it is active. Queries Slurm about a job that this store does not contain, such as
/// one whose prolog ran on another controller.
async fn end_of(site: &Arc<Site>, jobid: u64) -> Result<Option<JobEnd>, String> {
    let Ok(jobid) = u32::try_from(jobid) else {
        return Ok(Some(JobEnd::default()));
    };
    let stored = in_store(site, move |store| store.get(jobid)).await;
    if matches!(stored, Ok(Some(_))) {
        return Ok(None);
    }
    site.ends.of(jobid).await
}
