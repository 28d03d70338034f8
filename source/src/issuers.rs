//! Verification keys from an issuer's URL: its metadata name a JWKS (RFC 8414, OpenID Connect Discovery), which is kept
//! and asked for again.
//!
//! One task of the tokio runtime asks, for all who verify: from time to time in the background, and when a token names a
//! key that is not known, which happens right after the issuer began to use a new one. Whoever sends such tokens could
//! have the issuer asked without end, so that there is a limit. An issuer that does not answer changes nothing: the keys
//! that are known go on to be good.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use config::Discovery;
use token::{KeySet, SkippedKey};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout},
};

use crate::{
    Error, Examined,
    http::{Backoff, Kind, Peer, Trouble, quote},
    remote::{Remote, await_here},
    verify::{IssuerKeys, Looked},
};

/// The longest JWKS, in bytes.
const MAX_JWKS: usize = 1 << 20;

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(10);

/// How long who verifies waits for keys: longer than an issuer takes that is well.
const PATIENCE: Duration = Duration::from_secs(5);

/// Pauses between tries: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// How soon keys are asked for again at the earliest, because the issuer says that they change soon.
const SOONEST: Duration = Duration::from_secs(60);

/// How often an issuer is asked because of keys that are not known: so many times at once, and once in this time after
/// that.
const ASKS: (u32, Duration) = (3, Duration::from_secs(10));

/// How many lines wait for who logs them.
const MAX_NOTES: usize = 16;

/// How many keys that cannot be used are named.
const MAX_NAMED: usize = 4;

/// The issuer of tokens, in the words of messages.
static ISSUER: Peer = Peer {
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
pub struct Issuer {
    /// Itself, for its task.
    me: Weak<Self>,
    url: String,
    discovery: Discovery,
    remote: Remote,
    state: Mutex<State>,
    task: Mutex<Option<Task>>,
}

#[derive(Default)]
struct State {
    keys: Option<Arc<KeySet>>,
    jwks_uri: Option<String>,
    /// Why it could not be asked last.
    failure: Option<Trouble>,
    /// The attempts that have begun.
    begun: u64,
    /// The last one that has ended.
    ended: u64,
    /// Whether somebody waits for the next one.
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
static ISSUERS: Mutex<Vec<Weak<Issuer>>> = Mutex::new(Vec::new());

impl Issuer {
    /// The one that others use, or a new one.
    pub fn of(url: &str, discovery: &Discovery) -> Arc<Self> {
        let mut all = ISSUERS.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|issuer| issuer.strong_count() > 0);
        let same = |issuer: &Arc<Self>| issuer.url == url && issuer.discovery == *discovery;
        if let Some(found) = all.iter().filter_map(Weak::upgrade).find(same) {
            return found;
        }
        let new = Arc::new_cyclic(|me| Self {
            me: me.clone(),
            url: url.to_owned(),
            discovery: discovery.clone(),
            remote: Remote::new(discovery, &ISSUER),
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
        let until = Instant::now() + PATIENCE;
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
            let permanent = state.failure.as_ref().is_some_and(|e| e.kind == Kind::Permanent);
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
        let until = Instant::now() + PATIENCE;
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
    async fn attempt(&self, backoff: &mut Backoff) -> Duration {
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
                let skipped = describe_skipped(&fetched.skipped);
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
                *backoff = Backoff::new(PAUSES);
                interval(self.discovery.refresh, fetched.max_age)
            }
            Err(trouble) => {
                let after = match trouble.kind {
                    Kind::Passing(after) => after,
                    _ => None,
                };
                if state.failure.is_none() && state.keys.is_some() {
                    state.note(format!(
                        "issuer {}: its keys could not be asked for again, and those that are known are used: {trouble}",
                        self.url
                    ));
                }
                state.failure = Some(trouble);
                backoff.pause(after).min(self.discovery.refresh.max(PAUSES.0))
            }
        }
    }

    /// Asks once, and blocks no longer than `limit`.
    fn fetch_here(&self, limit: Duration) -> Result<Fetched, Trouble> {
        let fetched = await_here(async { timeout(limit, self.fetch(None)).await });
        let fetched = fetched.map_err(|_| {
            ISSUER.wrong_credential(
                "the system has no more file descriptors",
                "see ulimit -n, and run this again",
            )
        })?;
        fetched.unwrap_or_else(|_| Err(ISSUER.silent(limit)))
    }

    async fn fetch(&self, known: Option<String>) -> Result<Fetched, Trouble> {
        let jwks_uri = match known {
            Some(known) => known,
            None => {
                let metadata = self.remote.discover(&self.url, REQUEST).await?;
                metadata.jwks_uri.ok_or_else(|| {
                    Trouble::permanent(
                        ISSUER.unwell,
                        format_args!("{}: its metadata name no jwks_uri", metadata.at),
                        "see the server's configuration, or give the key keys, a file with its keys",
                    )
                })?
            }
        };
        let at = |trouble: Trouble| trouble.at(&jwks_uri);
        let answer = self.remote.get(&jwks_uri, MAX_JWKS, REQUEST).await.map_err(at)?;
        if !answer.status.is_success() {
            return Err(at(self.remote.unusable(&answer)));
        }
        let (keys, skipped) = KeySet::from_jwks(&answer.body).map_err(|e| {
            at(Trouble::permanent(
                ISSUER.unwell,
                format_args!("what it has there is not its keys ({e})"),
                "see the server's log",
            ))
        })?;
        Ok(Fetched {
            max_age: answer.max_age(),
            jwks_uri,
            keys,
            skipped,
        })
    }

    fn failed(&self, state: &State) -> Error {
        match &state.failure {
            Some(trouble) => Error::new(trouble.summary, format!("issuer {}: {trouble}", self.url)),
            None => Error::new(
                ISSUER.unreachable,
                format!(
                    "issuer {}: no answer within {}: see that the server is well",
                    self.url,
                    crate::seconds(PATIENCE)
                ),
            ),
        }
    }

    /// The notes that have come up.
    fn notes(&self) -> Vec<String> {
        std::mem::take(&mut self.state().notes)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keys that it publishes now, and a line on those that cannot be used, where there are some. Blocks, no longer
    /// than `limit`.
    ///
    /// # Errors
    /// It does not give any, in words for an operator.
    pub fn published(
        url: &str,
        discovery: &Discovery,
        limit: Duration,
    ) -> Result<(Arc<KeySet>, Option<String>), String> {
        let fetched = Self::of(url, discovery).fetch_here(limit);
        let fetched = fetched.map_err(|trouble| format!("issuer {url}: {trouble}"))?;
        let note = match describe_skipped(&fetched.skipped) {
            none if none.is_empty() => None,
            some => Some(format!("issuer {url}: of its keys, some cannot be used: {some}")),
        };
        Ok((Arc::new(fetched.keys), note))
    }

    /// Looks whether its keys can be fetched. Blocks, no longer than `limit`.
    #[must_use]
    pub fn examine(url: &str, discovery: &Discovery, limit: Duration) -> Examined {
        let fetched = Self::of(url, discovery).fetch_here(limit);
        match fetched {
            Ok(fetched) if fetched.keys.is_empty() => Examined::bad(
                format!(
                    "issuer {url}: it has no key that can be used {}",
                    describe_skipped(&fetched.skipped)
                ),
                "see its configuration",
            ),
            fetched => Examined::of(fetched, &format!("issuer {url}"), |fetched| {
                let skipped = match describe_skipped(&fetched.skipped) {
                    none if none.is_empty() => none,
                    some => format!("; others cannot be used: {some}"),
                };
                format!(
                    "issuer {url}: its metadata is good, and {} has {} usable key(s){skipped}",
                    fetched.jwks_uri,
                    fetched.keys.len()
                )
            }),
        }
    }
}

/// A task that sleeps is woken, to find that there is nothing to do any more.
impl Drop for Issuer {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.wish.notify_one();
        }
    }
}

/// Who awaits blocks here, which is for threads that may.
impl IssuerKeys for Issuer {
    fn known(&self) -> Looked<KeySet> {
        self.looked(await_here(async { self.keys().await }))
    }

    fn asked_again(&self, kid: &str) -> Looked<KeySet> {
        self.looked(await_here(async { self.keys_with(kid).await }))
    }
}

impl Issuer {
    fn looked(&self, keys: std::io::Result<Result<Arc<KeySet>, Error>>) -> Looked<KeySet> {
        Looked {
            result: keys.unwrap_or_else(|e| Err(Error::new(ISSUER.credential, e))),
            notes: self.notes(),
        }
    }
}

/// What was fetched at once.
struct Fetched {
    jwks_uri: String,
    keys: KeySet,
    skipped: Vec<SkippedKey>,
    max_age: Option<Duration>,
}

async fn ask_for_ever(issuer: Weak<Issuer>, tell: watch::Sender<()>, wish: Arc<Notify>) {
    let mut backoff = Backoff::new(PAUSES);
    while let Some(now) = issuer.upgrade() {
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
            if issuer.upgrade().is_none_or(|issuer| issuer.state().wanted) {
                break;
            }
        }
    }
}

impl State {
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

/// How often it may still be asked out of turn.
struct Asks {
    left: u32,
    since: Option<Instant>,
}

impl Default for Asks {
    fn default() -> Self {
        Self {
            left: ASKS.0,
            since: None,
        }
    }
}

impl Asks {
    fn take(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let more = (now.saturating_duration_since(since).as_nanos() / ASKS.1.as_nanos()) as u32;
        if more > 0 {
            self.left = self.left.saturating_add(more).min(ASKS.0);
            self.since = Some(now);
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

/// When to ask again: when the issuer says that its answer is too old, but no later than configured, and not all the time.
fn interval(refresh: Duration, max_age: Option<Duration>) -> Duration {
    max_age.unwrap_or(refresh).clamp(SOONEST.min(refresh), refresh)
}

fn describe_skipped(skipped: &[SkippedKey]) -> String {
    let mut named: Vec<_> = skipped
        .iter()
        .take(MAX_NAMED)
        .map(|key| {
            let name = match &key.kid {
                Some(kid) => format!("`{}`", quote(kid, &[])),
                None => format!("number {}", key.index),
            };
            format!("{name} ({})", key.reason)
        })
        .collect();
    if skipped.len() > MAX_NAMED {
        named.push(format!("and {} more", skipped.len() - MAX_NAMED));
    }
    named.join(", ")
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

    #[test]
    fn a_few_asks_are_free_and_then_one_in_a_while() {
        let mut asks = Asks::default();
        let start = Instant::now();
        let taken = |asks: &mut Asks, at: Duration| (0..100).filter(|_| asks.take(start + at)).count();
        assert_eq!(taken(&mut asks, Duration::ZERO), ASKS.0 as usize);
        assert_eq!(taken(&mut asks, ASKS.1 - Duration::from_millis(1)), 0);
        assert_eq!(taken(&mut asks, ASKS.1), 1);
        assert_eq!(taken(&mut asks, ASKS.1 * 1000), ASKS.0 as usize);
    }
}
