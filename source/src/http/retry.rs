//! Retries with exponential backoff, jitter and a deadline.

use std::{
    future::Future,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use backon::{ExponentialBuilder, Retryable};
use tokio::time::{Instant, timeout_at};

use super::{Peer, Retry, SourceError};
use crate::{Error, seconds};

/// The first pause between attempts, and the longest. Jitter makes each up to twice as long.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(2500));

/// How long an object may be missing: it is created long before its job starts, but a server may answer from a cache
/// that does not have it yet.
const NOT_FOUND: Duration = Duration::from_secs(5);

/// The limits of one request's share of the timeout.
const REQUEST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// A deadline that no timeout reaches: half a century ahead.
const FAR: Duration = Duration::from_secs(50 * 365 * 86400);

/// Endless pauses that double from the first to the longest, each extended at random by up to its own length, so that
/// jobs that start at once do not ask at once again.
pub(crate) fn pauses((first, longest): (Duration, Duration)) -> ExponentialBuilder {
    ExponentialBuilder::new()
        .with_jitter()
        .with_min_delay(first)
        .with_max_delay(longest)
        .without_max_times()
}

/// The attempts at one fetch, which end at its deadline.
pub(crate) struct Attempts {
    peer: &'static Peer,
    timeout: Duration,
    deadline: Instant,
    /// The current step, for the error at the deadline.
    doing: Mutex<&'static str>,
    last: Mutex<Option<SourceError>>,
}

impl Attempts {
    pub fn new(peer: &'static Peer, timeout: Duration) -> Self {
        let now = Instant::now();
        Self {
            peer,
            timeout,
            deadline: now.checked_add(timeout).unwrap_or_else(|| now + FAR),
            doing: Mutex::new("the server was asked"),
            last: Mutex::default(),
        }
    }

    pub fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// The time for one request: a quarter of the timeout, so that another server may be found behind the same address.
    pub fn request_limit(&self) -> Duration {
        (self.timeout / 4).clamp(REQUEST.0, REQUEST.1)
    }

    /// Notes what is being done, as in "the Workflow was asked for".
    pub fn enter(&self, doing: &'static str) {
        *lock(&self.doing) = doing;
    }

    /// Notes the error of an attempt that another one follows.
    pub fn failed(&self, error: &SourceError) {
        *lock(&self.last) = Some(error.clone());
    }

    /// Attempts until one succeeds or fails for good. `place` names what is requested, and where, for the error.
    pub async fn run<T, F>(&self, attempt: impl FnMut() -> F, place: impl Fn() -> String) -> Result<T, Error>
    where
        F: Future<Output = Result<T, SourceError>>,
    {
        let mut not_found = None;
        let attempts = attempt
            .retry(pauses(PAUSES))
            .adjust(|error, pause| self.pause(error, pause?, &mut not_found))
            .notify(|error, _| self.failed(error));
        attempts.await.map_err(|error| self.gives_up(&error, &place()))
    }

    /// Awaits all that the fetch does, until the deadline.
    pub async fn within<T>(
        &self,
        fetch: impl Future<Output = Result<T, Error>>,
        place: impl Fn() -> String,
    ) -> Result<T, Error> {
        let done = timeout_at(self.deadline, fetch).await;
        done.unwrap_or_else(|_| Err(self.out_of_time(&place())))
    }

    /// The pause before the next attempt, if there is one.
    fn pause(&self, error: &SourceError, pause: Duration, not_found: &mut Option<Instant>) -> Option<Duration> {
        match error.retry {
            Retry::Never | Retry::NewClient => None,
            Retry::Backoff(None) => Some(pause),
            Retry::Backoff(Some(requested)) => (requested < self.left()).then_some(pause.max(requested)),
            Retry::NotFound => {
                let now = Instant::now();
                let until = *not_found.get_or_insert(now + NOT_FOUND.min(self.timeout / 2));
                // The last attempt is at the end of it.
                Some(pause.min(until.saturating_duration_since(now))).filter(|pause| !pause.is_zero())
            }
        }
    }

    fn gives_up(&self, error: &SourceError, place: &str) -> Error {
        let Retry::Backoff(Some(requested)) = error.retry else {
            return error.ends(place);
        };
        let detail = format!(
            "{place}: {error}; it is not tried again, since the server asks to wait {}, which is longer than what is left of \
             the timeout of {}",
            seconds(requested),
            seconds(self.timeout)
        );
        Error::new(error.summary, detail)
    }

    fn out_of_time(&self, place: &str) -> Error {
        let limit = seconds(self.timeout);
        match &*lock(&self.last) {
            Some(error) => {
                let detail = format!("{place}: not within {limit}; the last error was: {error}");
                Error::new(error.summary, detail)
            }
            None => {
                let doing = *lock(&self.doing);
                let detail = format!(
                    "{place}: not within {limit}, when {doing}: see that the server is well, or set a longer timeout"
                );
                Error::new(self.peer.unreachable, detail)
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
