//! One delivery as far as it runs beside the reactor thread: fetch, check, seal.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use config::{Check, Config, Selection, Values};
use seal::{ExposeSecret, Owner as JobOwner, Record};
use source::Source;
use tokio::sync::Semaphore;

use crate::{
    facts::OwnerFacts,
    owner::{Owner, Owners},
};

/// How many threads are in munged at once. More do not make it faster, and one that is stopped holds no more than these.
const SEALERS: usize = 4;

/// Pauses between tries while munged does not answer: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// A configuration, with what was made of it. Deliveries keep the one that they began with.
pub(crate) struct Setup {
    pub config: Config,
    pub owners: Owners,
    sources: Vec<Box<dyn Source>>,
    munge: seal::Munge,
    fetchers: Semaphore,
    sealers: Semaphore,
}

/// What is to be delivered to whom.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub jobid: u64,
    pub f58: String,
    pub uid: u32,
    /// The uid that the instance runs as.
    pub sealer: u32,
    /// The rules that may be for this job; of those with open conditions, the job owner decides.
    pub candidates: Vec<usize>,
}

/// How a task ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub result: Result<Sealed, Failure>,
    /// For the operator's log.
    pub notes: Vec<String>,
}

/// What there is to be kept.
#[derive(Debug)]
pub(crate) enum Sealed {
    /// The record, as it is kept.
    Record(String),
    /// No rule is for this job, after all.
    NoRule,
}

/// Why there is no record, for two readers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// For the user: what failed, and nothing of the site.
    pub user: String,
    /// For the operator: the cause.
    pub operator: String,
}

impl Failure {
    pub fn new(user: impl Into<String>, operator: impl Into<String>) -> Self {
        Self {
            user: user.into(),
            operator: operator.into(),
        }
    }
}

impl Setup {
    pub fn new(config: Config, helpers: &[std::path::PathBuf]) -> Result<Self, seal::MungeError> {
        let helpers: Vec<_> = config.helper.iter().chain(helpers).cloned().collect();
        Ok(Self {
            sources: config
                .rules
                .iter()
                .map(|rule| source::of_rule(rule, &helpers))
                .collect(),
            munge: config.munge.client()?,
            owners: Owners::new(&config),
            fetchers: Semaphore::new(config.max_parallel),
            sealers: Semaphore::new(SEALERS),
            config,
        })
    }

    /// The rules that may be for a job: those that hold, and those that depend on what is not known.
    pub fn candidates(&self, job: &dyn config::Facts) -> Vec<usize> {
        match self.config.select(job) {
            Selection::None => Vec::new(),
            Selection::Rule(index) => vec![index],
            Selection::Unknown => {
                let rules = self.config.rules.iter().enumerate();
                rules
                    .filter(|(_, rule)| rule.conditions.hold(job) != Some(false))
                    .map(|(index, _)| index)
                    .collect()
            }
        }
    }

    /// Fetches, checks and seals, within the time that a delivery may take.
    pub async fn run(self: Arc<Self>, task: Task) -> Outcome {
        let timeout = self.config.timeout;
        let mut notes = Vec::new();
        let mut stage = "waiting for other deliveries";
        let result = match tokio::time::timeout(timeout, self.deliver(&task, &mut notes, &mut stage)).await {
            Ok(result) => result,
            Err(_) => Err(Failure::new(
                format!("it took longer than {} s", timeout.as_secs_f64()),
                format!(
                    "it took longer than {} s (timeout) while {stage}",
                    timeout.as_secs_f64()
                ),
            )),
        };
        Outcome { result, notes }
    }

    async fn deliver(
        self: &Arc<Self>,
        task: &Task,
        notes: &mut Vec<String>,
        stage: &mut &'static str,
    ) -> Result<Sealed, Failure> {
        // The semaphores are never closed.
        let _turn = self.fetchers.acquire().await;
        *stage = "the job owner was looked up";
        let Some((index, owner)) = self.choose(task).await? else {
            return Ok(Sealed::NoRule);
        };
        *stage = "the token was fetched";
        let values = Values {
            f58: task.f58.clone(),
            jobid: task.jobid,
            uid: task.uid,
            user: owner.and_then(|owner| owner.name),
        };
        let fetched = self.sources[index].fetch(&values).await;
        notes.extend(fetched.notes);
        let variables = fetched.result.map_err(|e| Failure::new(e.summary(), e.to_string()))?;
        self.check(index, &variables)?;
        drop(_turn);
        *stage = "munged was asked to seal: is it running?";
        self.seal(task, variables, notes).await
    }

    /// The rule, and the job owner where its source or the choice needs that.
    async fn choose(self: &Arc<Self>, task: &Task) -> Result<Option<(usize, Option<Owner>)>, Failure> {
        let [first, rest @ ..] = task.candidates.as_slice() else {
            return Ok(None);
        };
        let open = |index: &usize| {
            let conditions = &self.config.rules[*index].conditions;
            conditions.user.is_some() || conditions.group.is_some()
        };
        if rest.is_empty() && !open(first) && !self.sources[*first].needs_user() {
            return Ok(Some((*first, None)));
        }
        let (setup, uid) = (Arc::clone(self), task.uid);
        let owner = tokio::task::spawn_blocking(move || setup.owners.look_up(uid)).await;
        let owner = owner
            .unwrap_or_else(|e| Err(e.to_string()))
            .map_err(|e| Failure::new("its owner could not be looked up", e))?;
        let facts = OwnerFacts { uid, owner: &owner };
        let mut candidates = task.candidates.iter();
        let chosen = candidates.find(|index| self.config.rules[**index].conditions.hold(&facts) == Some(true));
        Ok(chosen.map(|index| (*index, Some(owner.clone()))))
    }

    fn check(&self, index: usize, variables: &seal::Variables) -> Result<(), Failure> {
        let rule = &self.config.rules[index];
        if rule.check == Check::None {
            return Ok(());
        }
        for (name, value) in variables.iter().filter(|(name, _)| *name == rule.variable) {
            token::check_shape(value.expose_secret(), SystemTime::now()).map_err(|e| {
                let source = rule.source.name();
                Failure::new(
                    format!("the token that its source gave was refused: {e}"),
                    format!("rule {index}, source {source}: the value for {name} was refused: {e} (check = \"none\" is for secrets that are no JWT)"),
                )
            })?;
        }
        Ok(())
    }

    async fn seal(
        self: &Arc<Self>,
        task: &Task,
        variables: seal::Variables,
        notes: &mut Vec<String>,
    ) -> Result<Sealed, Failure> {
        let variables = Arc::new(variables);
        let mut pause = PAUSES.0;
        loop {
            let turn = self.sealers.acquire().await;
            let (setup, variables) = (Arc::clone(self), Arc::clone(&variables));
            let (owner, sealer) = (
                JobOwner {
                    jobid: task.jobid,
                    uid: task.uid,
                },
                task.sealer,
            );
            let sealed =
                tokio::task::spawn_blocking(move || Record::seal(&setup.munge, owner, sealer, &variables)).await;
            drop(turn);
            match sealed {
                Ok(Ok(record)) => return Ok(Sealed::Record(record.to_json())),
                Ok(Err(e)) if e.is_retryable() => {
                    if notes.is_empty() {
                        notes.push(format!("{e}; trying again until the timeout"));
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                }
                Ok(Err(e @ seal::Error::TooLarge { .. })) => return Err(Failure::new(e.to_string(), e.to_string())),
                Ok(Err(e)) => return Err(Failure::new("it could not be sealed", e.to_string())),
                Err(e) => return Err(Failure::new("it could not be sealed", e.to_string())),
            }
        }
    }
}
