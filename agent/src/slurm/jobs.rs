// SPDX-License-Identifier: MIT OR Apache-2.0

//! Requests the sealed record of a job from the engine: completes the job's facts, and selects its rules.

use std::{sync::Arc, time::Duration};

use config::{Config, Property, Rule, SlurmJob, TokenRequests};
use delivery::{Sealed, Task, Variables};
use protocol::{Code, Failure, JobFacts, slurm::Job};
use tokio::task::JoinSet;

use crate::validity;

use super::{
    Current, Site,
    facts::{self, asked},
    squeue,
};

/// Returns the record of a job, in JSON. `records` is the number of earlier records. If no rule matches the job, its
/// first record contains no variables.
pub async fn deliver(site: &Site, current: &Arc<Current>, job: &Job, records: u32) -> Result<String, Failure> {
    let (config, jobid) = (&current.config, job.jobid);
    if job.cluster != current.slurm.cluster {
        let why = format!(
            "the job belongs to cluster {}, and this agent serves {}: correct the key cluster of the table slurm",
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
    let requests = requests(config, &rules, &job)?;
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
        requests,
        generation: records,
        variables: Variables::Rules(rules),
    };
    let engine = Arc::clone(&current.engine);
    // A panic ends this delivery only. Dropping the set ends the delivery.
    let mut delivery = JoinSet::new();
    delivery.spawn(async move {
        match records {
            0 => engine.deliver_or_none(task).await,
            _ => engine.deliver(task).await,
        }
    });
    let outcome = delivery.join_next().await.and_then(Result::ok);
    let outcome = outcome.ok_or_else(Failure::internal_in_agent)?;
    for line in outcome.warnings {
        eprintln!("workflow-token-agent: {line}");
    }
    for line in outcome.notes.iter().chain(&outcome.for_user) {
        eprintln!("workflow-token-agent: job {jobid}: {line}");
    }
    match outcome.result? {
        Sealed::Record { record, .. } => Ok(record),
        Sealed::NoRule => {
            let why = "no rule matches it any more";
            Err(Failure::new(Code::RulesChanged, why, why))
        }
    }
}

/// Returns the token requests of a job. The agent checks them because users can bypass the checks of the client.
fn requests(config: &Config, candidates: &[usize], job: &Job) -> Result<TokenRequests, Failure> {
    let Some(text) = &job.requests else {
        return Ok(TokenRequests::new());
    };
    let requests = config::parse_requests(text).and_then(|requests| {
        config.check_requests(candidates, &requests)?;
        Ok(requests)
    });
    requests.map_err(|why| Failure::new(Code::RequestDenied, why.clone(), why))
}

/// Returns the facts of a job that decide whether its tokens are valid.
pub fn job_of(job: &Job) -> JobFacts {
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

/// Queries Slurm for properties that the prolog does not get, if a rule that may match needs them.
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
        properties.any(|(property, _)| is_missing(*property)) || rule.uses_limit()
    };
    // Missing properties are unknown here, so their conditions may hold.
    let mut candidates = config
        .rules
        .iter()
        .filter(|rule| rule.conditions.hold(&facts) != Some(false));
    if !candidates.any(asks) {
        return Ok((job, None));
    }
    let failed = |e: String| {
        let why = format!("its quality of service, time limit and comment could not be looked up: {e}");
        Failure::new(
            Code::OwnerUnknown,
            "its properties could not be queried from Slurm",
            why,
        )
    };
    let _asking = site.asking.acquire().await.map_err(|e| failed(e.to_string()))?;
    let more = squeue::more_of(&job).await.map_err(failed)?;
    job.qos = Some(job.qos.or(more.qos).unwrap_or_default());
    job.comment = Some(job.comment.or(more.comment).unwrap_or_default());
    Ok((job, more.limit))
}
