// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reports for people: the jobs of a user that hold tokens, and the figures of the agent.

use std::sync::Arc;

use protocol::{Answer, Figures, Held, Validity};
use tokio::time::Instant;

use super::{Instances, TIMEOUT};
use crate::{held, issuer};

impl Instances {
    /// Records the tokens that were delivered to a job.
    pub fn holds(&self, held: Held) {
        self.lock().held.add(held);
    }

    /// Returns the active jobs of a user that hold tokens.
    pub(super) async fn held_by(&self, uid: u32) -> Vec<Held> {
        let jobs = self.lock().held.of(uid);
        held::without_revoked(self.stores(), self.active(jobs).await).await
    }

    /// Returns the figures of the agent.
    pub(super) async fn figures(&self) -> Answer {
        let (engine, issuers, due) = {
            let state = self.lock();
            let Some(first) = state.instances.values().next() else {
                return Answer::Failed("no plugin is connected to the agent".to_owned());
            };
            let issuers = state.instances.values().filter_map(|instance| instance.issuer.clone());
            (Arc::clone(&first.engine), issuers.collect(), state.held.due())
        };
        let due = self.active(due).await;
        Answer::Figures(Figures {
            due: held::due(due.into_iter().filter_map(|held| held.renew_at)),
            keys: issuer::figures(issuers).await,
            ..engine.figures()
        })
    }

    /// Returns the jobs that are not known to have ended, and removes the others.
    async fn active(&self, jobs: Vec<Held>) -> Vec<Held> {
        let asked: Vec<_> = jobs.iter().map(|held| self.begin_to_ask(&held.job)).collect();
        let deadline = Instant::now() + TIMEOUT;
        let mut validities = Vec::with_capacity(asked.len());
        for job in asked {
            validities.push(job.answer(deadline).await);
        }
        let mut active = Vec::new();
        for (held, validity) in jobs.into_iter().zip(validities) {
            match validity {
                Validity::Ended(_) => self.lock().held.remove(&held.job),
                _ => active.push(held),
            }
        }
        active
    }
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        sync::Mutex,
        time::{Duration, SystemTime, UNIX_EPOCH},
    };

    use delivery::Engine;
    use protocol::{Ask, JobEnd, JobFacts, Question, Reply, Subject, VERSION};
    use serde_json::{Value, json};
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::{issuer::Issuer, validity::Instance};

    /// Connects the instance `a`, whose jobs above 100 have ended. Also returns the jobs that its plugin is asked
    /// about.
    fn connected(table: Value) -> (Arc<Instances>, Arc<Mutex<Vec<u64>>>) {
        let configure = protocol::Configure {
            generation: 0,
            conf: json!({"workflow-token": table}).to_string(),
            overrides: "null".to_owned(),
            path: None,
            part: config::Part::Tokens,
            instance: "a".to_owned(),
        };
        let engine = Engine::new(&configure, Path::new("/none"), &Arc::default(), Box::new(|_, _| {})).unwrap();
        let (replies, mut asked) = unbounded_channel();
        let instances = Arc::new(Instances::default());
        let instance = Instance {
            connection: 1,
            replies,
            revocations: super::super::open(engine.config().agent.revocations.as_deref()),
            issuer: Issuer::of(&engine).unwrap(),
            engine: Arc::new(engine),
        };
        instances.add("a", instance);
        let (plugin, jobs) = (Arc::clone(&instances), Arc::<Mutex<Vec<u64>>>::default());
        let seen = Arc::clone(&jobs);
        tokio::spawn(async move {
            while let Some(Reply::AskJob { number, jobid }) = asked.recv().await {
                seen.lock().unwrap().push(jobid);
                plugin.answered(number, (jobid > 100).then(JobEnd::default));
            }
        });
        (instances, jobs)
    }

    fn held(jobid: u64, uid: u32) -> Held {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        Held {
            job: JobFacts {
                instance: "a".to_owned(),
                jobid,
                uid,
            },
            name: format!("f{jobid}"),
            variables: vec!["DW_WORKFLOW_TOKEN".to_owned()],
            expires_at: Some(now + 3600),
            renew_at: Some(now + 60),
        }
    }

    async fn ask(instances: &Instances, question: Question) -> Answer {
        let version = VERSION;
        instances.answer(Ask { version, question }).await
    }

    #[tokio::test]
    async fn a_user_sees_jobs_that_are_active_and_not_revoked() {
        let directory = tempfile::tempdir().unwrap();
        let (instances, asked) = connected(json!({"revocations": directory.path().join("revocations")}));
        let all = [held(1, 1000), held(2, 1000), held(3, 1001), held(101, 1000)];
        for job in all.clone() {
            instances.holds(job);
        }
        let of = async |uid| ask(&instances, Question::Held { uid }).await;
        assert_eq!(of(1000).await, Answer::Held(vec![all[1].clone(), all[0].clone()]));
        assert_eq!(of(1001).await, Answer::Held(vec![all[2].clone()]));
        assert_eq!(of(1002).await, Answer::Held(Vec::new()));
        assert_eq!(*asked.lock().unwrap(), [101, 2, 1, 3]);
        // The agent does not ask about an ended job again.
        asked.lock().unwrap().clear();
        let store = instances.revocations("a").unwrap().unwrap();
        let job = Subject::Job {
            instance: Some("a".to_owned()),
            jobid: 2,
        };
        store.revoke(&[job], Duration::from_secs(3600)).unwrap();
        assert_eq!(of(1000).await, Answer::Held(vec![all[0].clone()]));
        assert_eq!(*asked.lock().unwrap(), [2, 1]);
    }

    #[tokio::test]
    async fn operators_see_due_renewals_and_keys() {
        let directory = tempfile::tempdir().unwrap();
        let keys = directory.path().join("keys");
        let active = source::keys::create(&keys, token::Algorithm::EdDsa).unwrap();
        let next = source::keys::add(&keys, token::Algorithm::EdDsa).unwrap();
        let name = "https://a.example.org";
        let (instances, _) = connected(json!({"issuer": {"keys": keys, "name": name, "audience": "a"}}));
        for jobid in [1, 2, 101] {
            instances.holds(held(jobid, 1000));
        }
        let Answer::Figures(figures) = ask(&instances, Question::Figures).await else {
            panic!("no figures");
        };
        assert_eq!(figures.due, [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mut found: Vec<_> = figures
            .keys
            .iter()
            .map(|key| (key.kid.as_str(), key.is_active))
            .collect();
        found.sort_unstable_by_key(|(_, is_active)| !is_active);
        assert_eq!(found, [(active.as_str(), true), (next.as_str(), false)]);
        assert!(
            figures
                .keys
                .iter()
                .all(|key| key.issuer == name && key.since > Some(1_600_000_000))
        );
        let none = ask(&Instances::default(), Question::Figures).await;
        assert!(matches!(none, Answer::Failed(why) if why.contains("no plugin")));
    }
}
