// SPDX-License-Identifier: MIT OR Apache-2.0

//! One delivery: owner, rule, turn, fetch, check, seal.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use config::{Check, Values};
use protocol::{Code, Failure};
use seal::{ExposeSecret, Record};
use source::{Fetched, Source, verify::Unverified};
use tokio::time::{sleep, timeout};

use crate::{
    engine::{Engine, SourceId},
    job_claims,
    limits::Slot,
    lookups::permit,
    progress::{Progress, Stage},
    renewal::Renewals,
    rules::{Candidates, Chosen},
    shortfall,
    task::{Task, Variables},
};

/// The first and the longest pause between attempts while munged does not answer.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// The time that a source may exceed its timeout by. Most sources end in time by themselves, with a better message.
const GRACE: Duration = Duration::from_secs(3);

/// The result of a successful delivery.
#[derive(Debug)]
pub enum Sealed {
    /// A sealed record.
    Record {
        /// The record, in JSON.
        record: String,
        /// The names of its variables.
        names: Vec<String>,
        /// The next renewal; none if there is none.
        due: Option<seal::Due>,
    },
    /// No rule is for the job owner.
    NoRule,
}

/// The result of a delivery, with lines for the log and the user.
#[derive(Debug)]
pub struct Outcome {
    /// The record, or the failure.
    pub result: Result<Sealed, Failure>,
    /// Lines for the operator's log about this job.
    pub notes: Vec<String>,
    /// Lines for the operator's log that require action and concern more than this job.
    pub warnings: Vec<String>,
    /// Lines for the user of this job.
    pub for_user: Vec<String>,
}

/// Lines for the operator's log and for the user, in the order of their occurrence.
#[derive(Default)]
struct Lines {
    notes: Vec<String>,
    warnings: Vec<String>,
    for_user: Vec<String>,
}

impl Engine {
    /// Delivers the record of a job within the timeout of the task. Dropping the future abandons the delivery.
    pub async fn deliver(self: Arc<Self>, task: Task) -> Outcome {
        let (progress, mut lines) = (Progress::default(), Lines::default());
        let (limit, start) = (task.timeout, Instant::now());
        let result = match timeout(limit, self.run(task, &progress, &mut lines)).await {
            Ok(result) => result,
            Err(_) => Err(progress.timed_out(limit, "timeout")),
        };
        let name = match &result {
            Ok(Sealed::Record { .. }) => "delivered",
            Ok(Sealed::NoRule) => "no-rule",
            Err(failure) => failure.code.as_str(),
        };
        self.shared.counts.delivered(name, start.elapsed());
        Outcome {
            result,
            notes: lines.notes,
            warnings: lines.warnings,
            for_user: lines.for_user,
        }
    }

    /// Delivers like [`Self::deliver`], for schedulers whose nodes ask for the record of each job. If no rule matches
    /// the job, the record has no variables.
    pub async fn deliver_or_none(self: Arc<Self>, task: Task) -> Outcome {
        let (jobid, uid, start) = (task.jobid, task.uid, Instant::now());
        let limit = task.timeout;
        let mut outcome = match &task.variables {
            // A record without variables needs no look-up of the owner.
            Variables::Rules(rules) if rules.is_empty() => Outcome {
                result: Ok(Sealed::NoRule),
                notes: Vec::new(),
                warnings: Vec::new(),
                for_user: Vec::new(),
            },
            _ => Arc::clone(&self).deliver(task).await,
        };
        if let Ok(Sealed::NoRule) = outcome.result {
            let (progress, mut lines) = (Progress::default(), Lines::default());
            progress.enter(Stage::Sealing);
            let left = limit.saturating_sub(start.elapsed());
            let (owner, none) = (seal::Owner { jobid, uid }, seal::Variables::new());
            let seal = self.seal(owner, none, seal::Renewal::default(), &progress, &mut lines);
            outcome.result = match timeout(left, seal).await {
                Ok(result) => result,
                Err(_) => Err(progress.timed_out(limit, "timeout")),
            };
            outcome.notes.extend(lines.notes);
        }
        outcome
    }

    async fn run(self: &Arc<Self>, task: Task, progress: &Progress, lines: &mut Lines) -> Result<Sealed, Failure> {
        let tokens = match &task.variables {
            Variables::Rules(rules) => self.config.by_name(rules).into_iter().map(Candidates::Rules).collect(),
            Variables::Provided(_) => vec![Candidates::Rabbit],
        };
        let task = Arc::new(task);
        let (mut fetched, mut renewals) = (seal::Variables::new(), Renewals::of(task.generation));
        let mut has_token = false;
        for candidates in tokens {
            if let Some((which, variables, expires)) = self.fetch_token(&task, &candidates, progress, lines).await? {
                has_token = true;
                if let SourceId::Rule(index) = which {
                    let rule = &self.config.rules[index];
                    lines
                        .for_user
                        .extend(shortfall::check(rule, &task, &variables, expires)?);
                    renewals.add(rule, &variables, expires);
                }
                fetched.extend(variables);
            }
        }
        if !has_token {
            return Ok(Sealed::NoRule);
        }
        progress.enter(Stage::Sealing);
        let (owner, variables) = match Arc::try_unwrap(task).map(|task| (task.jobid, task.uid, task.variables)) {
            Ok((jobid, uid, Variables::Provided(mut provided))) => {
                provided.extend(fetched);
                (seal::Owner { jobid, uid }, provided)
            }
            Ok((jobid, uid, Variables::Rules(_))) => (seal::Owner { jobid, uid }, fetched),
            // All threads that shared the task have returned.
            Err(_) => return Err(Failure::internal_in_agent()),
        };
        self.seal(owner, variables, renewals.into_renewal(), progress, lines)
            .await
    }

    /// Fetches one token of a job and checks it; none if no rule matches the job owner. The time is the expiry that the
    /// source states.
    async fn fetch_token(
        self: &Arc<Self>,
        task: &Arc<Task>,
        candidates: &Candidates,
        progress: &Progress,
        lines: &mut Lines,
    ) -> Result<Option<(SourceId, seal::Variables, Option<SystemTime>)>, Failure> {
        let Some((Chosen { which, values }, slot)) = self.turn(task, candidates, progress).await? else {
            return Ok(None);
        };
        let (Some((source, _)), Some(slot)) = (self.sources.get(which), slot) else {
            return Ok(Some((which, seal::Variables::new(), None)));
        };
        progress.enter(Stage::Fetching);
        let asked = self.shared.counts.ask(self.source_name(which));
        let obtained = self.obtain((which, source), task, values, slot, progress, lines).await;
        asked.ended(&obtained);
        let (variables, expires) = obtained?;
        Ok(Some((which, variables, expires)))
    }

    /// Fetches one token of a job from this source and checks it. The time is the expiry that the source states.
    async fn obtain(
        self: &Arc<Self>,
        (which, source): (SourceId, &Arc<dyn Source>),
        task: &Arc<Task>,
        values: Values,
        slot: Arc<Slot>,
        progress: &Progress,
        lines: &mut Lines,
    ) -> Result<(seal::Variables, Option<SystemTime>), Failure> {
        let (fetched, slot) = self.fetch(which, source, values, slot, progress).await?;
        lines.notes.extend(fetched.notes);
        lines.warnings.extend(fetched.warnings);
        let (fetched, expires) = (fetched.result, fetched.expires);
        let fetched = fetched.map_err(|e| Failure::new(Code::SourceFailed, e.summary(), e.to_string()))?;
        progress.enter(Stage::Checking);
        let checked = self.check(which, task, fetched, slot, lines).await?;
        Ok((checked, expires))
    }

    /// Chooses the source of a job, and waits for its turn. Before its rule is known, the job waits in no rule's queue.
    async fn turn(
        &self,
        task: &Task,
        candidates: &Candidates,
        progress: &Progress,
    ) -> Result<Option<(Chosen, Option<Arc<Slot>>)>, Failure> {
        loop {
            let owner = if self.needs_owner(candidates) {
                progress.enter(Stage::Owner);
                let owner = self.owners.look_up(task.uid).await;
                Some(owner.map_err(|e| Failure::new(Code::OwnerUnknown, "its owner could not be looked up", e))?)
            } else {
                None
            };
            let Some(chosen) = self.choose(task, candidates, owner.as_deref())? else {
                return Ok(None);
            };
            let Some((_, lane)) = self.sources.get(chosen.which) else {
                return Ok(Some((chosen, None)));
            };
            progress.enter(Stage::Waiting);
            let slot = lane.enter(task.uid).await;
            // If the look-up expired while the job waited, look up the owner and choose the rule again.
            if owner.is_none_or(|owner| owner.is_fresh()) {
                return Ok(Some((chosen, Some(Arc::new(slot)))));
            }
        }
    }

    /// Fetches from a source. A thread of the source, or a command that cannot be killed, keeps the slot until it ends,
    /// which may be much later.
    async fn fetch(
        &self,
        which: SourceId,
        source: &Arc<dyn Source>,
        values: Values,
        slot: Arc<Slot>,
        progress: &Progress,
    ) -> Result<(Fetched, Arc<Slot>), Failure> {
        crate::inject_fault("fetch");
        let limit = self.fetch_timeout(which);
        let late = || {
            let key = match which {
                SourceId::Rule(_) => "timeout of its rule",
                SourceId::Rabbit => "timeout of the source for rabbit jobs",
            };
            progress.timed_out(limit, key)
        };
        if !source.is_blocking() {
            let held = source::Slot::new(Arc::clone(&slot));
            let fetched = timeout(limit.saturating_add(GRACE), source.fetch(&values, held)).await;
            return Ok((fetched.map_err(|_| late())?, slot));
        }
        let source = Arc::clone(source);
        let fetched = on_thread(slot, move || source.fetch_here(&values));
        let (fetched, slot) = timeout(limit, fetched).await.map_err(|_| late())??;
        // Sources that block implement `fetch_here`.
        Ok((fetched.ok_or_else(Failure::internal)?, slot))
    }

    /// Checks variables as their rule requires. Verification may read files and fetch keys from servers.
    async fn check(
        self: &Arc<Self>,
        which: SourceId,
        task: &Arc<Task>,
        variables: seal::Variables,
        slot: Arc<Slot>,
        lines: &mut Lines,
    ) -> Result<seal::Variables, Failure> {
        // The rabbit service is responsible for the variables that it provides.
        let SourceId::Rule(index) = which else {
            return Ok(variables);
        };
        let rule = &self.config.rules[index];
        match rule.check {
            Check::None => Ok(variables),
            Check::Shape => {
                let hint = " (check = \"none\" is for secrets that are not JWTs)";
                for (name, value) in variables.iter().filter(|(name, _)| *name == rule.variable) {
                    let checked = token::check_shape(value.expose_secret(), SystemTime::now());
                    checked.map_err(|e| self.refused(index, name, &e, hint))?;
                }
                Ok(variables)
            }
            Check::Verify(trust) => {
                let (engine, task) = (Arc::clone(self), Arc::clone(task));
                let verify = move || {
                    let mut warnings = Vec::new();
                    let verified = engine.verify(index, trust, &task, &variables, &mut warnings);
                    (verified.map(|()| variables), warnings)
                };
                let ((verified, warnings), _) = on_thread(slot, verify).await?;
                lines.warnings.extend(warnings);
                verified
            }
        }
    }

    fn verify(
        &self,
        index: usize,
        trust: usize,
        task: &Task,
        variables: &seal::Variables,
        warnings: &mut Vec<String>,
    ) -> Result<(), Failure> {
        let rule = &self.config.rules[index];
        let hint = format!(" (trust = \"{}\")", self.config.trusts[trust].name);
        for (name, value) in variables.iter().filter(|(name, _)| *name == rule.variable) {
            let (verified, notes) = self.verifiers[trust].verify(value.expose_secret(), SystemTime::now());
            warnings.extend(notes);
            let claims = verified.map_err(|e| match e {
                Unverified::Refused(e) => self.refused(index, name, &e, &hint),
                Unverified::NoKeys(e) => {
                    let source = rule.source.name();
                    Failure::new(
                        Code::TokenUnverified,
                        format!("the token that its source gave could not be verified: {}", e.summary()),
                        format!("rule {index}, source {source}: the value for {name} was not verified: {e}{hint}"),
                    )
                }
            })?;
            job_claims::check(&claims, task, &self.instance).map_err(|e| self.refused(index, name, &e, &hint))?;
        }
        Ok(())
    }

    fn refused(&self, index: usize, name: &str, e: &dyn std::fmt::Display, hint: &str) -> Failure {
        let source = self.config.rules[index].source.name();
        Failure::new(
            Code::TokenRefused,
            format!("the token that its source gave was refused: {e}"),
            format!("rule {index}, source {source}: the value for {name} was refused: {e}{hint}"),
        )
    }

    /// Seals the record. While munged does not answer, retries with backoff until the timeout of the delivery.
    async fn seal(
        &self,
        owner: seal::Owner,
        variables: seal::Variables,
        renewal: seal::Renewal,
        progress: &Progress,
        lines: &mut Lines,
    ) -> Result<Sealed, Failure> {
        let sealer = self.sealer;
        let names = variables.names().map(str::to_owned).collect();
        let mut variables = variables;
        let mut pause = PAUSES.0;
        loop {
            let capacity = permit(Arc::clone(&self.shared.sealing).acquire_owned().await).await;
            let (munge, renewal) = (self.munge.clone(), renewal.clone());
            let sealed = on_thread(capacity, move || {
                crate::inject_fault("seal");
                (Record::seal(&munge, owner, sealer, &variables, &renewal), variables)
            });
            let ((sealed, again), capacity) = sealed.await?;
            drop(capacity);
            match sealed {
                Ok(record) => {
                    return Ok(Sealed::Record {
                        record: record.to_json(),
                        names,
                        due: record.renewal().due(),
                    });
                }
                Err(e) if e.is_retryable() => {
                    if pause == PAUSES.0 {
                        lines.notes.push(format!("{e}: it was tried again"));
                    }
                    progress.retries(e.to_string());
                    variables = again;
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                }
                Err(e @ seal::Error::TooLarge { .. }) => {
                    return Err(Failure::new(Code::TooLarge, e.to_string(), e.to_string()));
                }
                Err(e) => return Err(Failure::new(Code::SealFailed, "it could not be sealed", e.to_string())),
            }
        }
    }
}

/// Runs a blocking function on a thread, which holds a permit until it returns. Returns the result and the permit.
async fn on_thread<T: Send + 'static, P: Send + 'static>(
    permit: P,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<(T, P), Failure> {
    let thread = tokio::task::spawn_blocking(move || (work(), permit));
    // Do not repeat the message of a panic: it may quote anything.
    thread.await.map_err(|_| Failure::internal_in_agent())
}
