// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reports for people: the jobs of a user that hold tokens, and the figures of the agent.

use std::{collections::HashSet, io, sync::Arc};

use protocol::{Answer, Figures, Held, MAX_HELD};

use super::{
    Current, Site,
    jobs::job_of,
    store::{self, Entry, Store, in_store},
};
use crate::{held, issuer};

/// Returns the active jobs of a user that hold tokens.
pub async fn held(site: &Arc<Site>, current: &Current, uid: u32) -> Answer {
    let jobs = site.renewals.of(uid);
    match in_store(site, move |store| stored(store, &jobs, uid)).await {
        Ok(held) => {
            let stores = vec![(current.slurm.cluster.clone(), current.revocations.clone())];
            Answer::Held(held::without_revoked(stores, held).await)
        }
        Err(e) => Answer::Failed(format!("the records of jobs cannot be read: {e}")),
    }
}

/// Returns the jobs of a user whose records contain tokens. Blocks.
fn stored(store: &Store, jobs: &[u32], uid: u32) -> io::Result<Vec<Held>> {
    let mut held = Vec::new();
    for jobid in jobs {
        if held.len() == MAX_HELD {
            break;
        }
        // The job may have ended.
        let entry = store.get(*jobid)?.filter(|entry| entry.job.uid == uid);
        held.extend(entry.as_ref().and_then(held_by));
    }
    Ok(held)
}

fn held_by(entry: &Entry) -> Option<Held> {
    match &entry.answer {
        store::Answer::Record(record) => held::of_record(job_of(&entry.job), entry.job.jobid.to_string(), record),
        store::Answer::Failed(_) => None,
    }
}

/// Returns the figures of the agent.
pub async fn figures(site: &Arc<Site>, current: &Current) -> Answer {
    let stored = match in_store(site, Store::jobs).await {
        Ok(stored) => stored,
        Err(e) => return Answer::Failed(format!("the records of jobs cannot be listed: {e}")),
    };
    Answer::Figures(Figures {
        due: due(site.renewals.due(), &stored),
        keys: issuer::figures(current.issuer.clone().into_iter().collect()).await,
        ..current.engine.figures()
    })
}

fn due(renewals: Vec<(u32, u64)>, stored: &HashSet<u32>) -> Vec<u64> {
    let active = renewals.into_iter().filter(|(jobid, _)| stored.contains(jobid));
    held::due(active.map(|(_, at)| at))
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use protocol::slurm::Job;
    use serde_json::{Value, json};

    use super::*;

    fn entry(jobid: u32, uid: u32, renewal: &Value) -> Entry {
        let job = Job {
            version: 1,
            cluster: "hpc".to_owned(),
            jobid,
            uid,
            partition: "p".to_owned(),
            account: None,
            qos: None,
            comment: None,
            nodes: "n1".to_owned(),
            restarts: 0,
            array: None,
            requests: None,
        };
        let record = json!({
            "version": 1, "jobid": jobid, "uid": uid, "sealer": 0, "variables": ["A", "B"], "sealed-at": 1.5, "renewal": renewal,
            "credential": "MUNGE:x:",
        });
        Entry::new(job, store::Answer::Record(record.to_string()))
    }

    #[test]
    fn a_user_sees_the_jobs_whose_records_have_tokens() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let tokens = json!({"files": ["A"], "renew-at": now as f64 + 60.5, "expires-at": now as f64 + 600.5});
        let job = |jobid| entry(jobid, 1000, &tokens);
        let failed = store::Answer::Failed("canary".to_owned());
        for entry in [
            job(1),
            entry(2, 1001, &tokens),
            entry(3, 1000, &json!({})),
            entry(4, 1000, &json!({"files": ["A"], "expires-at": now as f64 - 1.0})),
            Entry::new(job(5).job, failed),
        ] {
            store.put(&entry).unwrap();
        }
        let expected = Held {
            job: job_of(&job(1).job),
            name: "1".to_owned(),
            variables: vec!["A".to_owned()],
            expires_at: Some(now + 600),
            renew_at: Some(now + 60),
        };
        // The last job has ended.
        assert_eq!(stored(&store, &[1, 2, 3, 4, 5, 6], 1000).unwrap(), [expected]);
    }

    #[test]
    fn renewals_of_jobs_that_have_ended_are_not_due() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let due = due(vec![(1, now), (2, now), (3, now + 3599)], &HashSet::from([1, 3]));
        assert_eq!((due[0], due.iter().sum::<u64>()), (1, 2));
    }
}
