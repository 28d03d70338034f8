//! The Status Lists of an issuer, for services that do not ask about each token (draft-ietf-oauth-status-list-20).
//!
//! Before a list is signed, the ends of jobs and the revocations are looked up. If that is not possible, it is not signed: services
//! then find theirs stale, and ask about each token.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use protocol::{Answer, service::STATUS_LIST_TTL};
use source::status_lists::{StatusLists, uri_of};
use token::{StatusListToIssue, sign_status_list};
use tokio::{sync::OnceCell, task::spawn_blocking, time::timeout};

use crate::{
    revocations::{
        Store, Version,
        revoked::{Issued, JobOf, Revoked},
    },
    signer::Signer,
};

/// For how long a list may be used if no other can be fetched.
const LIFETIME: Duration = Duration::from_secs(600);

/// The shortest interval between two lists.
const INTERVAL: Duration = Duration::from_secs(3);

/// The number of ended jobs that wait until the next list is signed. If nobody fetches lists, they are written then.
const WAITING: usize = 4096;

/// The time that the file system may take. A list of a million entries is read in less.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The lists of one instance.
pub struct Status {
    lists: Arc<StatusLists>,
    instance: String,
    signer: Arc<Signer>,
    /// Jobs that have ended since the lists were last swept.
    ended: Mutex<HashSet<u64>>,
    /// Set once the plugin was asked about the jobs of before.
    pub asked: OnceCell<()>,
    /// The revocations that the lists were swept by; none before the first time.
    swept_by: Mutex<Option<Version>>,
    signed: tokio::sync::Mutex<Signed>,
}

/// The lists that were signed since they were last swept.
#[derive(Default)]
struct Signed {
    swept: Option<(Instant, SystemTime)>,
    tokens: HashMap<u32, String>,
}

impl Status {
    /// Returns the lists in a directory. Nothing is read yet.
    pub fn of(directory: &Path, instance: &str, signer: Arc<Signer>) -> Self {
        Self {
            lists: StatusLists::of(directory),
            instance: instance.to_owned(),
            signer,
            ended: Mutex::default(),
            asked: OnceCell::new(),
            swept_by: Mutex::default(),
            signed: tokio::sync::Mutex::default(),
        }
    }

    /// Returns the name of the instance.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Adds jobs that have ended. Returns whether many wait.
    pub fn add_ended(&self, jobs: impl IntoIterator<Item = u64>) -> bool {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.extend(jobs);
        ended.len() % WAITING == WAITING - 1
    }

    /// Returns the jobs of tokens that are valid and were issued before a time.
    ///
    /// # Errors
    /// For the operator.
    pub async fn jobs(&self, before: SystemTime) -> Result<HashSet<u64>, String> {
        let (lists, instance) = (Arc::clone(&self.lists), self.instance.clone());
        blocking(move || lists.jobs(&instance, before)).await
    }

    /// Marks the tokens of jobs that have ended, and those that were revoked. Blocks.
    ///
    /// # Errors
    /// For the operator: it is not known which were revoked, or the lists cannot be used.
    pub fn sweep(&self, revocations: &Store) -> Result<(), String> {
        let mut swept_by = self.swept_by.lock().unwrap_or_else(PoisonError::into_inner);
        let (revoked, version) = match revocations {
            Some(Ok(revocations)) => revocations.all()?,
            Some(Err(e)) => return Err(e.clone()),
            None => (Arc::new(Revoked::default()), Version::default()),
        };
        let has_changed = swept_by.replace(version) != Some(version);
        let ended = std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner));
        let now = SystemTime::now();
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let swept = self.lists.sweep(&self.instance, now, |entry, owner, is_new| {
            let of = || Issued {
                job: Some(JobOf {
                    instance: &self.instance,
                    jobid: entry.jobid,
                    uid: owner.uid,
                }),
                jti: Some(entry.jti),
                sub: Some(&owner.sub),
                iat: Some(f64::from(entry.iat)),
            };
            ended.contains(&entry.jobid) || ((has_changed || is_new) && revoked.contains(&of(), seconds))
        });
        if swept.is_err() {
            *swept_by = None;
            self.add_ended(ended);
        }
        swept
    }

    /// Signs a list. Blocks.
    fn sign_list(&self, number: u32, iat: SystemTime) -> Result<String, String> {
        let list = self.lists.list(&self.instance, number)?;
        let list = list.ok_or_else(|| format!("there is no status list {number}"))?;
        let issue = StatusListToIssue {
            iss: self.signer.name(),
            uri: &uri_of(self.signer.name(), number),
            iat,
            lifetime: LIFETIME,
            ttl: STATUS_LIST_TTL,
            list: &list,
        };
        self.signer.sign(|key| sign_status_list(key, &issue))
    }
}

/// Finds out which jobs have ended, and which tokens were revoked.
pub trait Ends: Sync {
    /// Finds the jobs that have ended among those of valid tokens, and adds them.
    ///
    /// # Errors
    /// For the operator: that is not known.
    fn find_ended(&self, status: &Status) -> impl Future<Output = Result<(), String>> + Send;

    /// Returns the revocations of an instance.
    fn revocations_of(&self, instance: &str) -> Store;
}

/// Returns the numbers of all lists.
pub async fn numbers(statuses: Vec<Arc<Status>>) -> Answer {
    let numbers = move || {
        let numbers = statuses.iter().map(|status| status.lists.numbers(&status.instance));
        numbers.collect::<Result<Vec<_>, _>>()
    };
    match blocking(numbers).await {
        Ok(numbers) => Answer::StatusLists(numbers.concat()),
        Err(e) => Answer::Failed(e),
    }
}

/// Returns a list, signed.
pub async fn signed(statuses: Vec<Arc<Status>>, ends: &impl Ends, number: u32) -> Answer {
    let find = move || {
        for status in statuses {
            if status.lists.numbers(&status.instance)?.contains(&number) {
                return Ok(status);
            }
        }
        Err(format!("there is no status list {number}"))
    };
    let signed = match blocking(find).await {
        Ok(status) => sign(status, ends, number).await,
        Err(e) => Err(e),
    };
    signed.map_or_else(Answer::Failed, Answer::Signed)
}

async fn sign(status: Arc<Status>, ends: &impl Ends, number: u32) -> Result<String, String> {
    // All who ask meanwhile wait for one answer.
    let mut signed = status.signed.lock().await;
    if signed.swept.is_none_or(|(swept, _)| swept.elapsed() >= INTERVAL) {
        let now = (Instant::now(), SystemTime::now());
        ends.find_ended(&status).await?;
        let (swept, revocations) = (Arc::clone(&status), ends.revocations_of(&status.instance));
        blocking(move || swept.sweep(&revocations)).await?;
        *signed = Signed {
            swept: Some(now),
            tokens: HashMap::new(),
        };
    }
    if let Some(token) = signed.tokens.get(&number) {
        return Ok(token.clone());
    }
    let iat = signed.swept.map_or_else(SystemTime::now, |(_, at)| at);
    let signer = Arc::clone(&status);
    let token = blocking(move || signer.sign_list(number, iat)).await?;
    signed.tokens.insert(number, token.clone());
    Ok(token)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    match timeout(TIMEOUT, spawn_blocking(work)).await {
        Ok(Ok(done)) => done,
        Ok(Err(_)) => Err("an internal error".to_owned()),
        Err(_) => Err("the file system of the status lists does not answer".to_owned()),
    }
}

#[cfg(test)]
mod tests;
