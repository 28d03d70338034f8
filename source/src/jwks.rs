//! Verification keys from an issuer's URL: its metadata name a JWKS (RFC 8414, OpenID Connect Discovery), which is kept
//! and asked for again.
//!
//! One task of the tokio runtime asks, for all who verify: from time to time in the background, and when a token names
//! a key that is not known, which happens right after the issuer began to use a new one. Whoever sends such tokens
//! could have the issuer asked without end, so that there is a limit. An issuer that does not answer changes nothing:
//! the keys that are known go on to be good.

mod asks;
mod published;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBackoff};
use config::Discovery;
use token::KeySet;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout},
};

use self::{
    asks::Asks,
    published::{MAX_NAMED, describe_skipped},
};
use crate::{
    Error,
    http::{Peer, Retry, SourceError, pauses},
    issuer_keys::{IssuerKeys, Lookup},
    remote::{Remote, await_here},
};

/// The time that a verification waits for keys: longer than a healthy issuer needs.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The first pause between attempts, and the longest. Jitter makes each up to twice as long.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// The shortest interval between requests that the issuer can cause.
const SOONEST: Duration = Duration::from_secs(60);

/// The number of lines that wait to be logged.
const MAX_NOTES: usize = 16;

/// The issuer of tokens, in the words of messages.
static SERVER: Peer = Peer {
    server: "an issuer of tokens",
    unreachable: "the issuer of the keys that its token is verified with could not be reached",
    unwell: "the issuer of the keys that its token is verified with is not well",
    credential: "the site's access to the issuer of the keys that its token is verified with is not set up",
    address: "the key issuer",
    authorities: "ca-file",
    name: None,
    client_certificate: None,
};

/// The keys of an issuer, by its URL. Nobody is asked before they are used, and then as long as this is kept.
pub struct JwksClient {
    /// Itself, for its task.
    me: Weak<Self>,
    url: String,
    discovery: Discovery,
    remote: Remote,
    state: Mutex<Known>,
    task: Mutex<Option<Task>>,
}

#[derive(Default)]
struct Known {
    keys: Option<Arc<KeySet>>,
    jwks_uri: Option<String>,
    /// The last error.
    failure: Option<SourceError>,
    /// The attempts that have begun.
    begun: u64,
    /// The last one that has ended.
    ended: u64,
    /// Set if somebody waits for the next one.
    wanted: bool,
    asks: Asks,
    skipped: String,
    notes: Vec<String>,
}

/// The task that asks, as long as its runtime is there.
#[derive(Clone)]
struct Task {
    /// Changes with each attempt, and is closed when the task is no more.
    attempts: watch::Receiver<()>,
    wish: Arc<Notify>,
}

/// Those that are in use, so that what is known survives that the configuration is loaded again.
static CLIENTS: Mutex<Vec<Weak<JwksClient>>> = Mutex::new(Vec::new());

impl JwksClient {
    /// The one that others use, or a new one.
    pub fn of(url: &str, discovery: &Discovery) -> Arc<Self> {
        let mut all = CLIENTS.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|client| client.strong_count() > 0);
        let same = |client: &Arc<Self>| client.url == url && client.discovery == *discovery;
        if let Some(found) = all.iter().filter_map(Weak::upgrade).find(same) {
            return found;
        }
        let new = Arc::new_cyclic(|me| Self {
            me: me.clone(),
            url: url.to_owned(),
            discovery: discovery.clone(),
            remote: Remote::new(discovery, &SERVER),
            state: Mutex::default(),
            task: Mutex::default(),
        });
        all.push(Arc::downgrade(&new));
        new
    }

    /// The keys; where there are none yet, once the issuer was asked.
    ///
    /// # Errors
    /// There are none, and the issuer does not give any.
    pub async fn keys(&self) -> Result<Arc<KeySet>, Error> {
        let known = self.state().keys.clone();
        if known.is_some_and(|keys| keys.is_empty()) {
            // An issuer may be without keys for a while only.
            return self.keys_where(|keys| !keys.is_empty()).await;
        }
        let mut task = self.task();
        let until = Instant::now() + TIMEOUT;
        let mut attempt = {
            let mut state = self.state();
            if let Some(keys) = &state.keys {
                return Ok(keys.clone());
            }
            state.next_attempt(&task).unwrap_or(state.begun + 1)
        };
        loop {
            let waited = self.wait(&mut task, attempt, until).await;
            let state = self.state();
            if let Some(keys) = &state.keys {
                return Ok(keys.clone());
            }
            let permanent = state.failure.as_ref().is_some_and(|e| e.retry == Retry::Never);
            if !waited || permanent {
                return Err(self.failed(&state));
            }
            // The next one comes by itself, unless it is too far off.
            attempt = state.ended + 1;
        }
    }

    /// The keys, after a token named one that was not among them: the issuer is asked again, unless it was asked too
    /// often.
    ///
    /// # Errors
    /// There are none, and the issuer does not give any.
    pub async fn keys_with(&self, kid: &str) -> Result<Arc<KeySet>, Error> {
        self.keys_where(|keys| keys.get(kid).is_some()).await
    }

    /// The keys, for which the issuer is asked again unless they are as they should be, and it was not asked too often.
    async fn keys_where(&self, good: impl Fn(&KeySet) -> bool) -> Result<Arc<KeySet>, Error> {
        let mut task = self.task();
        let until = Instant::now() + TIMEOUT;
        // An attempt that was under way already may have begun before the key was there.
        for _ in 0..2 {
            let attempt = {
                let mut state = self.state();
                if state.keys.as_ref().is_some_and(|keys| good(keys)) {
                    break;
                }
                state.next_attempt(&task)
            };
            let Some(attempt) = attempt else { break };
            if !self.wait(&mut task, attempt, until).await {
                break;
            }
        }
        let state = self.state();
        state.keys.clone().ok_or_else(|| self.failed(&state))
    }

    /// Waits for the end of an attempt. Returns whether it came.
    async fn wait(&self, task: &mut Task, attempt: u64, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        let ended = task.attempts.wait_for(|_| self.state().ended >= attempt);
        matches!(timeout(left, ended).await, Ok(Ok(_)))
    }

    /// The task that asks, which is started where there is none.
    fn task(&self) -> Task {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = &*task
            && task.attempts.has_changed().is_ok()
        {
            return task.clone();
        }
        let mut state = self.state();
        // That of another runtime, which has ended, may have been in the middle of one.
        state.ended = state.begun;
        // It begins with one.
        state.wanted = true;
        drop(state);
        let (tell, attempts) = watch::channel(());
        let wish = Arc::new(Notify::new());
        tokio::spawn(ask_for_ever(self.me.clone(), tell, wish.clone()));
        task.insert(Task { attempts, wish }).clone()
    }

    /// Asks once. Returns how long to wait before the next time, unless somebody wants it sooner.
    async fn attempt(&self, backoff: &mut ExponentialBackoff) -> Duration {
        let known = {
            let mut state = self.state();
            state.begun += 1;
            // Where the keys are is found out anew from time to time, and not whenever somebody wants a key.
            let wanted = std::mem::take(&mut state.wanted);
            state.jwks_uri.take().filter(|_| wanted)
        };
        let fetched = self.fetch(known).await;
        let mut state = self.state();
        state.ended = state.begun;
        match fetched {
            Ok(fetched) => {
                if state.failure.take().is_some() && state.keys.is_some() {
                    state.note(format!("issuer {}: it answers again", self.url));
                }
                let skipped = describe_skipped(&fetched.skipped, MAX_NAMED);
                if skipped != state.skipped && !skipped.is_empty() {
                    state.note(format!(
                        "issuer {}: of its keys, some cannot be used: {skipped}",
                        self.url
                    ));
                }
                if fetched.keys.is_empty() && state.keys.as_ref().is_none_or(|keys| !keys.is_empty()) {
                    state.note(format!("issuer {}: it has no key that can be used", self.url));
                }
                state.skipped = skipped;
                state.jwks_uri = Some(fetched.jwks_uri);
                state.keys = Some(Arc::new(fetched.keys));
                *backoff = pauses(PAUSES).build();
                interval(self.discovery.refresh, fetched.max_age)
            }
            Err(error) => {
                let requested = match error.retry {
                    Retry::Backoff(requested) => requested,
                    _ => None,
                };
                if state.failure.is_none() && state.keys.is_some() {
                    state.note(format!(
                        "issuer {}: its keys could not be asked for again, and those that are known are used: {error}",
                        self.url
                    ));
                }
                state.failure = Some(error);
                let pause = backoff.next().unwrap_or(PAUSES.1).max(requested.unwrap_or_default());
                pause.min(self.discovery.refresh.max(PAUSES.0))
            }
        }
    }

    fn failed(&self, state: &Known) -> Error {
        match &state.failure {
            Some(error) => error.ends(&format!("issuer {}", self.url)),
            None => Error::new(
                SERVER.unreachable,
                format!(
                    "issuer {}: no answer within {}: see that the server is well",
                    self.url,
                    crate::seconds(TIMEOUT)
                ),
            ),
        }
    }

    /// The notes that have come up.
    fn notes(&self) -> Vec<String> {
        std::mem::take(&mut self.state().notes)
    }

    fn state(&self) -> MutexGuard<'_, Known> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task that sleeps is woken, to find that there is nothing to do any more.
impl Drop for JwksClient {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.wish.notify_one();
        }
    }
}

/// Callers block here, on threads that may.
impl IssuerKeys for JwksClient {
    fn known(&self) -> Lookup<KeySet> {
        self.looked(await_here(async { self.keys().await }))
    }

    fn asked_again(&self, kid: &str) -> Lookup<KeySet> {
        self.looked(await_here(async { self.keys_with(kid).await }))
    }
}

impl JwksClient {
    fn looked(&self, keys: std::io::Result<Result<Arc<KeySet>, Error>>) -> Lookup<KeySet> {
        Lookup {
            result: keys.unwrap_or_else(|e| Err(Error::new(SERVER.credential, e))),
            notes: self.notes(),
        }
    }
}

async fn ask_for_ever(client: Weak<JwksClient>, tell: watch::Sender<()>, wish: Arc<Notify>) {
    let mut backoff = pauses(PAUSES).build();
    while let Some(now) = client.upgrade() {
        let pause = now.attempt(&mut backoff).await;
        drop(now);
        tell.send_replace(());
        let next = Instant::now() + pause;
        loop {
            tokio::select! {
                () = sleep_until(next) => break,
                () = wish.notified() => {}
            }
            // A wish may have been granted by the attempt that was under way.
            if client.upgrade().is_none_or(|client| client.state().wanted) {
                break;
            }
        }
    }
}

impl Known {
    /// The attempt to wait for: the one that is under way, or another one, unless there were too many.
    fn next_attempt(&mut self, task: &Task) -> Option<u64> {
        if self.begun > self.ended {
            return Some(self.begun);
        }
        // The first one comes anyway.
        if !self.wanted {
            if !self.asks.take(Instant::now()) {
                return None;
            }
            self.wanted = true;
            task.wish.notify_one();
        }
        Some(self.begun + 1)
    }

    fn note(&mut self, note: String) {
        if self.notes.len() < MAX_NOTES {
            self.notes.push(note);
        }
    }
}

/// When to ask again: when the issuer says that its answer is too old, but no later than configured, and not all the
/// time.
fn interval(refresh: Duration, max_age: Option<Duration>) -> Duration {
    max_age.unwrap_or(refresh).clamp(SOONEST.min(refresh), refresh)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_issuer_decides_when_to_ask_again_within_limits() {
        let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
        assert_eq!(interval(hour, None), hour);
        assert_eq!(interval(hour, Some(Duration::from_secs(300))), Duration::from_secs(300));
        assert_eq!(interval(hour, Some(Duration::ZERO)), minute);
        assert_eq!(interval(hour, Some(Duration::from_secs(86400))), hour);
        assert_eq!(
            interval(Duration::from_secs(5), Some(Duration::ZERO)),
            Duration::from_secs(5)
        );
    }
}
