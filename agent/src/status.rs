// SPDX-License-Identifier: MIT OR Apache-2.0

//! The Status Lists of an issuer, for services that do not query each token (draft-ietf-oauth-status-list-20).
//!
//! Before signing a list, the agent looks up ended jobs and revocations. If it cannot, it does not sign: services then
//! find their list stale, and query each token.

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

/// The time for which a list may be used if no newer one can be fetched.
const LIFETIME: Duration = Duration::from_secs(600);

/// The shortest interval between two versions of a list.
const INTERVAL: Duration = Duration::from_secs(3);

/// The number of ended jobs after which lists are swept even if no service fetches them.
const WAITING: usize = 4096;

/// The timeout of the file system. A list of a million entries takes less.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The lists of one instance.
pub struct Status {
    lists: Arc<StatusLists>,
    instance: String,
    signer: Arc<Signer>,
    /// The jobs that have ended since the last sweep.
    ended: Mutex<HashSet<u64>>,
    /// Set after the plugin was asked about the jobs that may have ended before it connected.
    pub asked: OnceCell<()>,
    /// The version of the revocations at the last sweep; none before the first.
    swept_by: Mutex<Option<Version>>,
    signed: tokio::sync::Mutex<Signed>,
}

/// The lists that were signed since the last sweep.
#[derive(Default)]
struct Signed {
    swept: Option<(Instant, SystemTime)>,
    tokens: HashMap<u32, String>,
}

impl Status {
    /// Returns the lists in a directory, without reading them.
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

    /// Adds ended jobs. Returns whether the caller should sweep the lists.
    pub fn add_ended(&self, jobs: impl IntoIterator<Item = u64>) -> bool {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.extend(jobs);
        ended.len() % WAITING == WAITING - 1
    }

    /// Returns the jobs of valid tokens that were issued before a time.
    ///
    /// # Errors
    /// For the operator: the lists cannot be read.
    pub async fn jobs(&self, before: SystemTime) -> Result<HashSet<u64>, String> {
        let (lists, instance) = (Arc::clone(&self.lists), self.instance.clone());
        blocking(move || lists.jobs(&instance, before)).await
    }

    /// Marks the tokens of ended jobs, and revoked tokens, in the lists. Blocks.
    ///
    /// # Errors
    /// For the operator: the revocations or the lists cannot be read.
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

    /// Signs the list with this number. Blocks.
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

/// Looks up ended jobs and revoked tokens.
pub trait Ends: Sync {
    /// Finds the ended jobs of valid tokens, and adds them to `status`.
    ///
    /// # Errors
    /// For the operator: the ends of jobs are unknown.
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

/// Returns the signed list with this number.
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
    // Concurrent callers wait for one signature.
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
