//! Answers questions about tokens: whether they are still valid, and that they are revoked.

use std::sync::Arc;

use protocol::{Answer, Ask, JobEnd, Question, Validity};

use super::{Site, squeue, store::in_store};
use crate::{issuer, validity};

/// Answers a question about tokens.
pub async fn answer(site: &Arc<Site>, ask: Ask) -> Answer {
    let current = site.current();
    if let Err(e) = validity::check_version(&ask) {
        return Answer::Failed(e);
    }
    match ask.question {
        Question::Check(token) => {
            let job = token.job.clone();
            if let Some(job) = &job
                && job.instance != current.slurm.cluster
            {
                let why = format!("this is the agent of cluster {}", current.slurm.cluster);
                return Answer::Validity(Validity::Unknown(why));
            }
            Answer::Validity(
                match (validity::revoked(vec![current.revocations.clone()], token).await, job) {
                    (Some(validity), _) => validity,
                    (None, None) => Validity::Active,
                    (None, Some(job)) => match end_of(site, job.jobid).await {
                        Ok(end) => end.map_or(Validity::Active, Validity::Ended),
                        Err(e) => Validity::Unknown(e),
                    },
                },
            )
        }
        Question::Issuer { name, question } => {
            let known = current.issuer.clone().filter(|issuer| issuer.name() == name);
            issuer::answer(known, &name, question).await
        }
        Question::Revoke { subjects, keep_secs } => {
            validity::revoke(vec![current.revocations.clone()], subjects, keep_secs).await
        }
    }
}

/// Returns the end of a job; none if it is active. Slurm is asked about jobs that this store does not contain, such as those whose
/// prolog ran on another controller.
async fn end_of(site: &Arc<Site>, jobid: u64) -> Result<Option<JobEnd>, String> {
    let Ok(jobid) = u32::try_from(jobid) else {
        return Ok(Some(JobEnd::default()));
    };
    let stored = in_store(site, move |store| store.get(jobid)).await;
    if matches!(stored, Ok(Some(_))) {
        return Ok(None);
    }
    let _asking = site.asking.acquire().await.map_err(|e| e.to_string())?;
    squeue::end_of(jobid).await
}
