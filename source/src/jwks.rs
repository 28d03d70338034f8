// SPDX-License-Identifier: MIT OR Apache-2.0

//! Verification keys from an issuer's URL: its metadata name a JWKS (RFC 8414, OpenID Connect Discovery), which is
//! cached and refreshed.
//!
//! One task of the tokio runtime fetches the keys for all verifiers: periodically in the background, and when a token
//! names an unknown key, as after the issuer has rotated its keys. A sender of such tokens could cause endless
//! requests, so they are rate-limited. If the issuer does not answer, the known keys remain valid.

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

/// The timeout of a verification that waits for keys. A healthy issuer answers sooner.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The first and the longest pause between attempts. Jitter extends each pause to at most twice its length.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// The shortest interval between requests that the issuer can cause.
const SOONEST: Duration = Duration::from_secs(60);

/// The maximum number of pending lines for the log.
const MAX_NOTES: usize = 16;

/// The issuer of tokens in messages.
static SERVER: Peer = Peer {
    server: "an issuer of tokens",
    unreachable: "the issuer of the keys that its token is verified with could not be reached",
    unwell: "the issuer of the keys that its token is verified with returned no usable answer",
    credential: "the site's access to the issuer of the keys that its token is verified with is not set up correctly",
    address: "the key issuer",
    authorities: "ca-file",
    name: None,
    client_certificate: None,
};

/// The keys of an issuer, by its URL. The first use starts the fetches; they end when this is dropped.
pub struct JwksClient {
    /// A reference to itself, for its task.
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
    /// The number of attempts that have begun.
    begun: u64,
    /// The number of the last attempt that has ended.
    ended: u64,
    /// Set if a caller waits for the next attempt.
    wanted: bool,
    asks: Asks,
    skipped: String,
    notes: Vec<String>,
}

/// The task that fetches keys, for as long as its runtime exists.
#[derive(Clone)]
struct Task {
    /// Changes with each attempt. It is closed when the task ends.
    attempts: watch::Receiver<()>,
    wish: Arc<Notify>,
}

/// The clients in use, so that known keys survive a reload of the configuration.
static CLIENTS: Mutex<Vec<Weak<JwksClient>>> = Mutex::new(Vec::new());

impl JwksClient {
    /// Returns the client that others use for this issuer, or a new one.
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

    /// Returns the known keys. Waits for the first fetch if there are none yet.
    ///
    /// # Errors
    /// No keys are known, and the issuer provides none.
    pub async fn keys(&self) -> Result<Arc<KeySet>, Error> {
        let known = self.state().keys.clone();
        if known.is_some_and(|keys| keys.is_empty()) {
            // An issuer may publish no keys for a while.
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
            // The task makes the next attempt by itself, possibly after this deadline.
            attempt = state.ended + 1;
        }
    }

    /// Returns the keys after a token named an unknown one. Fetches them again within the rate limit.
    ///
    /// # Errors
    /// No keys are known, and the issuer provides none.
    pub async fn keys_with(&self, kid: &str) -> Result<Arc<KeySet>, Error> {
        self.keys_where(|keys| keys.get(kid).is_some()).await
    }

    /// Returns the keys. Fetches them again within the rate limit if they are not `good`.
    async fn keys_where(&self, good: impl Fn(&KeySet) -> bool) -> Result<Arc<KeySet>, Error> {
        let mut task = self.task();
        let until = Instant::now() + TIMEOUT;
        // An attempt that is under way may have begun before the issuer published the key.
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

    /// Waits for the end of an attempt. Returns whether it ended in time.
    async fn wait(&self, task: &mut Task, attempt: u64, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        let ended = task.attempts.wait_for(|_| self.state().ended >= attempt);
        matches!(timeout(left, ended).await, Ok(Ok(_)))
    }

    /// Returns the task that fetches keys. Starts it if it does not run.
    fn task(&self) -> Task {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = &*task
            && task.attempts.has_changed().is_ok()
        {
            return task.clone();
        }
        let mut state = self.state();
        // A task of another runtime may have ended during an attempt.
        state.ended = state.begun;
        // A new task begins with an attempt.
        state.wanted = true;
        drop(state);
        let (tell, attempts) = watch::channel(());
        let wish = Arc::new(Notify::new());
        tokio::spawn(fetch_periodically(self.me.clone(), tell, wish.clone()));
        task.insert(Task { attempts, wish }).clone()
    }

    /// Makes one attempt. Returns the pause before the next one, which a caller may shorten.
    async fn attempt(&self, backoff: &mut ExponentialBackoff) -> Duration {
        let known = {
            let mut state = self.state();
            state.begun += 1;
            // Periodic attempts read the metadata again. Attempts for a caller use the known address of the keys.
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
                        "issuer {}: some of its keys cannot be used: {skipped}",
                        self.url
                    ));
                }
                if fetched.keys.is_empty() && state.keys.as_ref().is_none_or(|keys| !keys.is_empty()) {
                    state.note(format!("issuer {}: it has no usable key", self.url));
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
                        "issuer {}: its keys could not be fetched again, and the known keys remain in use: {error}",
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
                    "issuer {}: no answer within {}: check that the server works",
                    self.url,
                    crate::seconds(TIMEOUT)
                ),
            ),
        }
    }

    /// Returns the pending notes.
    fn notes(&self) -> Vec<String> {
        std::mem::take(&mut self.state().notes)
    }

    fn state(&self) -> MutexGuard<'_, Known> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes the task, so that it notices the drop and ends.
impl Drop for JwksClient {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.wish.notify_one();
        }
    }
}

/// Blocks the calling thread.
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

async fn fetch_periodically(client: Weak<JwksClient>, tell: watch::Sender<()>, wish: Arc<Notify>) {
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
            // The attempt that was under way may have served the caller already.
            if client.upgrade().is_none_or(|client| client.state().wanted) {
                break;
            }
        }
    }
}

impl Known {
    /// Returns the attempt to wait for: the current one, or a new one within the rate limit.
    fn next_attempt(&mut self, task: &Task) -> Option<u64> {
        if self.begun > self.ended {
            return Some(self.begun);
        }
        // An attempt that is already wanted does not count again.
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

/// Returns the interval to the next fetch: the `max-age` that the issuer states, between [`SOONEST`] and the configured
/// interval.
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
