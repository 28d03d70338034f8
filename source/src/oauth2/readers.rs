// SPDX-License-Identifier: MIT OR Apache-2.0

//! Threads that read files of users. A user may control the file system and delay its answers, so each user occupies at
//! most a few threads, and each read has a timeout.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

/// The maximum number of threads that read files of one user.
const THREADS: usize = 2;

/// The permits of reader threads, by uid.
#[derive(Default)]
pub(super) struct Readers(Mutex<HashMap<u32, Weak<Semaphore>>>);

/// The reason why a file was not read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// This read, or other reads for the same user, took too long.
    Hangs,
    /// The read panicked.
    Fault,
}

impl Readers {
    /// Reads a file of a user on its own thread. After the timeout, the thread keeps running.
    pub async fn read<T: Send + 'static>(
        &self,
        uid: u32,
        timeout: Duration,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Unread> {
        let (threads, until) = (self.threads(uid), Instant::now() + timeout);
        let turn = timeout_at(until, threads.acquire_owned()).await;
        // The semaphore is never closed.
        let turn = turn.map_err(|_| Unread::Hangs)?.map_err(|_| Unread::Fault)?;
        let done = spawn_blocking(move || {
            let done = read();
            drop(turn);
            done
        });
        match timeout_at(until, done).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(_)) => Err(Unread::Fault),
            Err(_) => Err(Unread::Hangs),
        }
    }

    fn threads(&self, uid: u32) -> Arc<Semaphore> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(threads) = all.get(&uid).and_then(Weak::upgrade) {
            return threads;
        }
        all.retain(|_, threads| threads.strong_count() > 0);
        let threads = Arc::new(Semaphore::new(THREADS));
        all.insert(uid, Arc::downgrade(&threads));
        threads
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_user_whose_files_hang_has_no_more_than_a_few_threads_wait_and_no_other_user() {
        let readers = Readers::default();
        let mut hanging = Vec::new();
        for _ in 0..THREADS {
            let (go, wait) = channel::<()>();
            let read = readers.read(1000, Duration::ZERO, move || wait.recv());
            assert_eq!(read.await.unwrap_err(), Unread::Hangs);
            hanging.push(go);
        }
        let (tell, told) = channel();
        let read = readers.read(1000, Duration::from_millis(1), move || tell.send(()));
        assert_eq!(read.await.unwrap_err(), Unread::Hangs);
        assert!(told.recv().is_err(), "the file was read");
        assert_eq!(readers.read(1001, LONG, || 7).await, Ok(7));
        // The threads end when the file system answers.
        drop(hanging);
        assert_eq!(readers.read(1000, LONG, || 7).await, Ok(7));
    }

    #[tokio::test]
    async fn users_without_a_reader_are_forgotten() {
        let readers = Readers::default();
        for uid in 1000..1010 {
            assert_eq!(readers.read(uid, LONG, || 7).await, Ok(7));
        }
        assert_eq!(readers.0.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_panic_is_told_and_gives_the_turn_back() {
        let readers = Readers::default();
        for _ in 0..=THREADS {
            let read = readers.read(1000, LONG, || panic!("a fault"));
            assert_eq!(read.await, Err::<(), _>(Unread::Fault));
        }
    }
}
