// SPDX-License-Identifier: MIT OR Apache-2.0

//! Look-ups of users in the name service and in users' file systems, which may hang.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

/// The most concurrent look-ups with a waiting caller.
const WAITED_FOR: usize = 32;

/// The most threads for look-ups, including hung ones without a waiting caller.
const THREADS: usize = 256;

/// All look-ups of the process, for all configurations. A user has at most one thread, however long it hangs and
/// however often the configuration is reloaded.
pub(crate) struct Lookups {
    users: Mutex<HashMap<u32, Weak<Semaphore>>>,
    waited_for: Semaphore,
    threads: Arc<Semaphore>,
}

impl Default for Lookups {
    fn default() -> Self {
        Self {
            users: Mutex::default(),
            waited_for: Semaphore::new(WAITED_FOR),
            threads: Arc::new(Semaphore::new(THREADS)),
        }
    }
}

impl Lookups {
    /// Runs the look-up of a user on a thread, after the running one, and waits until `limit` is over.
    ///
    /// # Errors
    /// For the operator: the look-up did not end in time.
    pub async fn run<T: Send + 'static>(
        &self,
        uid: u32,
        limit: Duration,
        look_up: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, String> {
        let deadline = Instant::now() + limit;
        let late = |what: &str| {
            let seconds = limit.as_secs_f64();
            format!("uid {uid}: {what} did not end within {seconds} s: is the name service or a file system hung?")
        };
        let user = timeout_at(deadline, self.user(uid));
        let user = user.await.map_err(|_| late("a look-up that began before"))?;
        let permits = timeout_at(deadline, self.permits());
        let (waited_for, thread) = permits.await.map_err(|_| late("the look-ups of other users"))?;
        let thread = tokio::task::spawn_blocking(move || {
            let _held_until_it_returns = (user, thread);
            look_up()
        });
        let done = timeout_at(deadline, thread).await;
        drop(waited_for);
        match done {
            Ok(Ok(answer)) => Ok(answer),
            // Do not repeat the message of a panic: it may quote anything.
            Ok(Err(_)) => Err(format!("uid {uid}: an internal error")),
            Err(_) => Err(late("its look-up")),
        }
    }

    async fn user(&self, uid: u32) -> OwnedSemaphorePermit {
        let semaphore = {
            let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            users.retain(|_, user| user.strong_count() > 0);
            users.get(&uid).and_then(Weak::upgrade).unwrap_or_else(|| {
                let user = Arc::new(Semaphore::new(1));
                users.insert(uid, Arc::downgrade(&user));
                user
            })
        };
        permit(semaphore.acquire_owned().await).await
    }

    async fn permits(&self) -> (tokio::sync::SemaphorePermit<'_>, OwnedSemaphorePermit) {
        let waited_for = permit(self.waited_for.acquire().await).await;
        let thread = permit(Arc::clone(&self.threads).acquire_owned().await).await;
        (waited_for, thread)
    }
}

/// Unwraps a permit. No semaphore in this crate is ever closed.
pub(crate) async fn permit<T>(acquired: Result<T, tokio::sync::AcquireError>) -> T {
    match acquired {
        Ok(permit) => permit,
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    };

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_user_whose_look_up_hangs_has_one_thread_and_delays_nobody_else() {
        let lookups = Lookups::default();
        let (release, hung) = mpsc::channel::<()>();
        let threads = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&threads);
        let first = lookups.run(1, SHORT, move || {
            counted.fetch_add(1, Ordering::Relaxed);
            let _ = hung.recv();
        });
        assert!(first.await.is_err());
        for _ in 0..WAITED_FOR {
            let counted = Arc::clone(&threads);
            let again = lookups.run(1, SHORT, move || counted.fetch_add(1, Ordering::Relaxed));
            assert!(again.await.unwrap_err().contains("uid 1"));
        }
        assert_eq!(threads.load(Ordering::Relaxed), 1);
        assert_eq!(lookups.run(2, Duration::from_secs(60), || 2).await, Ok(2));
        drop(release);
        assert_eq!(lookups.run(1, Duration::from_secs(60), || 3).await, Ok(3));
    }
}
