// SPDX-License-Identifier: MIT OR Apache-2.0

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

/// The first and the longest pause between attempts. Jitter extends each pause to at most twice its length.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(2500));

/// The time that an object may be missing. It is created long before its job starts, but a server may answer from a
/// stale cache.
const NOT_FOUND: Duration = Duration::from_secs(5);

/// The limits of one request's share of the timeout.
const REQUEST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// The time to a deadline that no timeout reaches, 50 years.
const FAR: Duration = Duration::from_secs(50 * 365 * 86400);

/// Returns the builder of endless pauses, which double from the first to the longest. Jitter extends each pause at
/// random by at most its length, so that jobs that start simultaneously do not retry simultaneously.
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

    /// Returns the timeout of one request: a quarter of the whole timeout, so that a retry may reach another server
    /// behind the same address.
    pub fn request_limit(&self) -> Duration {
        (self.timeout / 4).clamp(REQUEST.0, REQUEST.1)
    }

    /// Records the current step, as in "the Workflow was requested".
    pub fn enter(&self, doing: &'static str) {
        *lock(&self.doing) = doing;
    }

    /// Records the error of an attempt that is retried.
    pub fn failed(&self, error: &SourceError) {
        *lock(&self.last) = Some(error.clone());
    }

    /// Retries until an attempt succeeds or fails permanently. `place` names the request and the server, for the error.
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

    /// Awaits the whole fetch until the deadline.
    pub async fn within<T>(
        &self,
        fetch: impl Future<Output = Result<T, Error>>,
        place: impl Fn() -> String,
    ) -> Result<T, Error> {
        let done = timeout_at(self.deadline, fetch).await;
        done.unwrap_or_else(|_| Err(self.out_of_time(&place())))
    }

    /// Returns the pause before the next attempt; none if there is no other attempt.
    fn pause(&self, error: &SourceError, pause: Duration, not_found: &mut Option<Instant>) -> Option<Duration> {
        match error.retry {
            Retry::Never | Retry::NewClient => None,
            Retry::Backoff(None) => Some(pause),
            Retry::Backoff(Some(requested)) => (requested < self.left()).then_some(pause.max(requested)),
            Retry::NotFound => {
                let now = Instant::now();
                let until = *not_found.get_or_insert(now + NOT_FOUND.min(self.timeout / 2));
                // The last attempt is at the end of this time.
                Some(pause.min(until.saturating_duration_since(now))).filter(|pause| !pause.is_zero())
            }
        }
    }

    fn gives_up(&self, error: &SourceError, place: &str) -> Error {
        let Retry::Backoff(Some(requested)) = error.retry else {
            return error.ends(place);
        };
        let detail = format!(
            "{place}: {error}; no retry, because the server requests a pause of {}, which exceeds the remaining part \
             of the timeout of {}",
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
                    "{place}: not within {limit}, when {doing}: check that the server works, or set a longer timeout"
                );
                Error::new(self.peer.unreachable, detail)
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
