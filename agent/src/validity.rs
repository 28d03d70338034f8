// SPDX-License-Identifier: MIT OR Apache-2.0

//! Answers whether tokens are still valid. The agent asks the scheduler each time whether a job is active, so no answer
//! is outdated.

mod reports;

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use delivery::Engine;
use protocol::{Answer, Ask, Code, Failure, JobEnd, JobFacts, Question, Reply, Subject, TokenFacts, VERSION, Validity};
use tokio::{
    sync::{mpsc::UnboundedSender, oneshot},
    time::{Instant, timeout_at},
};

use crate::{
    held::HeldJobs,
    issuer::{self, Checks, Issuer},
    revocations::{Revocations, Store},
    status::{Ends, Status},
};

/// The timeout of the file system or a plugin.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// The most jobs in one group of questions to a plugin, which reads as many eventlogs at once.
const AT_ONCE: usize = 64;

/// The instances of Flux whose plugins are connected, and the pending questions to them.
#[derive(Default)]
pub struct Instances(Mutex<State>);

#[derive(Default)]
struct State {
    instances: HashMap<String, Instance>,
    /// The pending questions, by number.
    waiting: HashMap<u64, oneshot::Sender<Option<JobEnd>>>,
    last: u64,
    held: HeldJobs,
}

/// An instance of Flux.
pub struct Instance {
    /// The number of the connection of its plugin.
    pub connection: u64,
    /// The channel to its plugin.
    pub replies: UnboundedSender<Reply>,
    /// The revocations of its tokens.
    pub revocations: Store,
    /// The issuer of its tokens, if it mints any.
    pub issuer: Option<Arc<Issuer>>,
    /// Its engine.
    pub engine: Arc<Engine>,
}

/// Opens the directory of revocations, if the configuration names one. Blocks.
pub fn open(directory: Option<&Path>) -> Store {
    directory.map(|directory| Revocations::open(directory).map(Arc::new))
}

impl Instances {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an instance, or replaces it.
    pub fn add(&self, name: &str, instance: Instance) {
        self.lock().instances.insert(name.to_owned(), instance);
    }

    /// Returns a number for a new connection.
    pub fn connection(&self) -> u64 {
        let mut state = self.lock();
        state.last += 1;
        state.last
    }

    /// Removes the instances of a closed connection.
    pub fn remove(&self, connection: u64) {
        self.lock()
            .instances
            .retain(|_, instance| instance.connection != connection);
    }

    /// Passes on the answer of a plugin.
    pub fn answered(&self, number: u64, end: Option<JobEnd>) {
        let asked = self.lock().waiting.remove(&number);
        if let Some(asked) = asked {
            // The caller may have given up.
            let _ = asked.send(end);
        }
    }

    /// Records the end of a job, as its plugin reports it.
    pub fn ended(&self, connection: u64, jobid: u64) {
        let (issuer, revocations) = {
            let state = self.lock();
            let mut all = state.instances.values();
            let Some(instance) = all.find(|instance| instance.connection == connection) else {
                return;
            };
            (instance.issuer.clone(), instance.revocations.clone())
        };
        let status = issuer.and_then(|issuer| issuer.status().cloned());
        if let Some(status) = status.filter(|status| status.add_ended([jobid])) {
            // If the sweep fails, the jobs wait for the next list, and its requester gets the error.
            tokio::task::spawn_blocking(move || status.sweep(&revocations));
        }
    }

    /// Returns the revocations of an instance.
    pub fn revocations(&self, instance: &str) -> Store {
        self.lock().instances.get(instance)?.revocations.clone()
    }

    /// Answers a question.
    pub async fn answer(&self, ask: Ask) -> Answer {
        if let Err(e) = check_version(&ask) {
            return Answer::Failed(e);
        }
        match ask.question {
            Question::Check(token) => Answer::Validity(self.check(token).await),
            Question::Issuer { name, question } => {
                let of = |instance: &Instance| {
                    let issuer = instance.issuer.clone().filter(|issuer| issuer.name() == name)?;
                    Some((issuer, Arc::clone(&instance.engine)))
                };
                let known: Vec<_> = self.lock().instances.values().filter_map(of).collect();
                issuer::answer(known, self, &name, question).await
            }
            Question::Revoke { subjects, keep_secs } => {
                let stores = self.stores().into_iter().map(|(_, store)| store).collect();
                revoke(stores, subjects, keep_secs).await
            }
            Question::Held { uid } => Answer::Held(self.held_by(uid).await),
            Question::Figures => self.figures().await,
        }
    }

    /// Returns the revocations of all instances, by instance.
    fn stores(&self) -> Vec<(String, Store)> {
        let state = self.lock();
        let all = state.instances.iter();
        all.map(|(name, instance)| (name.clone(), instance.revocations.clone()))
            .collect()
    }

    /// Asks the plugin of the job's instance about the job.
    async fn ask_job(&self, job: &JobFacts) -> Validity {
        self.begin_to_ask(job).answer(Instant::now() + TIMEOUT).await
    }

    fn begin_to_ask<'a>(&'a self, job: &'a JobFacts) -> AskedJob<'a> {
        let mut state = self.lock();
        state.last += 1;
        let (number, jobid) = (state.last, job.jobid);
        let asked = state.instances.get(&job.instance);
        let is_sent = asked.is_some_and(|instance| instance.replies.send(Reply::AskJob { number, jobid }).is_ok());
        let answer = is_sent.then(|| {
            let (sender, answer) = oneshot::channel();
            state.waiting.insert(number, sender);
            answer
        });
        let instances = self;
        AskedJob {
            instances,
            job,
            number,
            answer,
        }
    }

    /// Asks the plugin of an instance about the jobs of all valid tokens.
    async fn ask_all(&self, status: &Status) -> Result<(), String> {
        // The plugin itself reports the end of a job whose token is issued during this call.
        let jobs = status.jobs(SystemTime::now() + TIMEOUT).await?;
        let jobs = jobs.into_iter().map(|jobid| JobFacts {
            instance: status.instance().to_owned(),
            jobid,
            uid: 0,
        });
        for jobs in jobs.collect::<Vec<_>>().chunks(AT_ONCE) {
            let asked: Vec<_> = jobs.iter().map(|job| self.begin_to_ask(job)).collect();
            let deadline = Instant::now() + TIMEOUT;
            for (job, asked) in jobs.iter().zip(asked) {
                match asked.answer(deadline).await {
                    Validity::Ended(_) => drop(status.add_ended([job.jobid])),
                    Validity::Unknown(why) => return Err(why),
                    Validity::Active | Validity::Revoked => {}
                }
            }
        }
        Ok(())
    }
}

/// A pending question to the plugin of a job's instance. Dropping it cancels the question.
struct AskedJob<'a> {
    instances: &'a Instances,
    job: &'a JobFacts,
    number: u64,
    /// Receives the answer; none if the plugin is not connected.
    answer: Option<oneshot::Receiver<Option<JobEnd>>>,
}

impl AskedJob<'_> {
    async fn answer(mut self, deadline: Instant) -> Validity {
        let instance = self.job.instance.escape_debug();
        let unknown = |why: &str| Validity::Unknown(format!("the plugin of instance {instance} {why}"));
        let Some(answer) = self.answer.take() else {
            return unknown("is not connected");
        };
        match timeout_at(deadline, answer).await {
            Ok(Ok(end)) => end.map_or(Validity::Active, Validity::Ended),
            _ => unknown("does not answer"),
        }
    }
}

impl Drop for AskedJob<'_> {
    fn drop(&mut self) {
        self.instances.lock().waiting.remove(&self.number);
    }
}

impl Checks for Instances {
    async fn check(&self, token: TokenFacts) -> Validity {
        let stores = self.stores();
        let Some(job) = token.job.clone() else {
            if stores.is_empty() {
                return Validity::Unknown("no plugin is connected to the agent".to_owned());
            }
            let stores = stores.into_iter().map(|(_, store)| store).collect();
            return revoked(stores, token).await.unwrap_or(Validity::Active);
        };
        let Some((_, store)) = stores.into_iter().find(|(name, _)| *name == job.instance) else {
            let why = format!("no plugin of instance {} is connected", job.instance.escape_debug());
            return Validity::Unknown(why);
        };
        match revoked(vec![store], token).await {
            Some(validity) => validity,
            None => self.ask_job(&job).await,
        }
    }

    async fn held(&self, uid: u32) -> Answer {
        Answer::Held(self.held_by(uid).await)
    }

    async fn revoke(&self, subject: Subject, keep_secs: u64) -> Answer {
        let stores = self.stores().into_iter().map(|(_, store)| store).collect();
        revoke(stores, vec![subject], keep_secs).await
    }
}

impl Ends for Instances {
    /// Asks the plugin once about jobs that may have ended before it connected. It reports later ends itself.
    async fn find_ended(&self, status: &Status) -> Result<(), String> {
        status.asked.get_or_try_init(|| self.ask_all(status)).await?;
        Ok(())
    }

    fn revocations_of(&self, instance: &str) -> Store {
        self.revocations(instance)
    }
}

/// Checks that the command has the same version of the protocol.
///
/// # Errors
/// For the operator: the versions differ.
pub fn check_version(ask: &Ask) -> Result<(), String> {
    match ask.version == VERSION {
        true => Ok(()),
        false => Err(format!(
            "the command has protocol {}, and the agent {VERSION}: install the same release of both",
            ask.version
        )),
    }
}

/// Returns the failure of a job whose tokens were revoked, or whose revocations are unknown.
pub async fn refusal(store: Store, job: JobFacts) -> Option<Failure> {
    // A revocation by user does not concern a token that is issued now.
    let token = TokenFacts {
        job: Some(job),
        iat: Some(f64::MAX),
        ..TokenFacts::default()
    };
    Some(match revoked(vec![store], token).await? {
        Validity::Unknown(e) => {
            let why = format!("the revocations could not be read: {e}");
            Failure::new(
                Code::RevocationsUnknown,
                "it is not known whether its tokens were revoked",
                why,
            )
        }
        _ => Failure::new(Code::Revoked, "its tokens were revoked", "its tokens were revoked"),
    })
}

/// Returns the validity of a revoked token, or of one whose revocations are unknown; none for other tokens.
pub async fn revoked(stores: Vec<Store>, token: TokenFacts) -> Option<Validity> {
    if stores.iter().all(Option::is_none) {
        return None;
    }
    let find = move || {
        for store in stores.into_iter().flatten() {
            match store.and_then(|store| store.is_revoked(&token)) {
                Ok(false) => {}
                Ok(true) => return Some(Validity::Revoked),
                Err(e) => return Some(Validity::Unknown(e)),
            }
        }
        None
    };
    match tokio::time::timeout(TIMEOUT, tokio::task::spawn_blocking(find)).await {
        Ok(Ok(found)) => found,
        Ok(Err(_)) => Some(Validity::Unknown("an internal error".to_owned())),
        Err(_) => Some(Validity::Unknown(
            "the file system of the revocations does not answer".to_owned(),
        )),
    }
}

/// Stores a revocation.
pub async fn revoke(stores: Vec<Store>, subjects: Vec<Subject>, keep_secs: u64) -> Answer {
    if stores.is_empty() {
        return Answer::Failed("no plugin of that instance is connected to the agent".to_owned());
    }
    if stores.iter().any(Option::is_none) {
        return Answer::NotStored;
    }
    let store = move || {
        let mut stores = stores.into_iter().flatten();
        stores.try_for_each(|store| store?.revoke(&subjects, Duration::from_secs(keep_secs)))
    };
    match tokio::time::timeout(TIMEOUT, tokio::task::spawn_blocking(store)).await {
        Ok(Ok(Ok(()))) => Answer::Revoked,
        Ok(Ok(Err(e))) => Answer::Failed(e),
        Ok(Err(_)) => Answer::Failed("an internal error".to_owned()),
        Err(_) => Answer::Failed("the file system of the revocations does not answer".to_owned()),
    }
}
