//! The threads beside the reactor thread, and the way back to it: a queue, and an eventfd that wakes the reactor.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::runtime::{Builder, Runtime};

/// How long the reactor thread waits for the threads to end when the plugin is removed. What takes longer hangs: in
/// munged, or in a file system. The object is then kept in memory, so that they return to code that is still there.
const PATIENCE: Duration = Duration::from_millis(250);

/// How many threads may block at once: in the name service, in files, in munged.
const BLOCKING_THREADS: usize = 64;

/// The way back to the reactor thread. Any thread may send.
pub(crate) struct Queue<T> {
    items: Mutex<VecDeque<T>>,
    wake: EventFd,
}

impl<T> Queue<T> {
    pub fn new() -> io::Result<Arc<Self>> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Arc::new(Self {
            items: Mutex::new(VecDeque::new()),
            wake,
        }))
    }

    /// Hands something to the reactor thread.
    pub fn send(&self, item: T) {
        self.items
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(item);
        self.ring();
    }

    /// Takes up to `most` things that were sent. Where more are left, the reactor is woken again, after others had their
    /// turn.
    pub fn take(&self, most: usize) -> Vec<T> {
        // Not readable is no error: it was read before.
        let _ = self.wake.read();
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        let count = items.len().min(most);
        let taken = items.drain(..count).collect();
        let left = !items.is_empty();
        drop(items);
        if left {
            self.ring();
        }
        taken
    }

    /// What becomes readable when something was sent.
    pub fn fd(&self) -> RawFd {
        self.wake.as_fd().as_raw_fd()
    }

    fn ring(&self) {
        // The counter is at its maximum at worst, and then the descriptor is readable anyway.
        let _ = self.wake.write(1);
    }
}

/// The threads. A plugin without rules has none.
#[derive(Default)]
pub(crate) struct Workers {
    runtime: Option<Runtime>,
}

impl Workers {
    /// Starts the threads, unless they are there.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn start(&mut self) -> io::Result<()> {
        self.runtime().map(|_| ())
    }

    /// Runs something that may block.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn block(&mut self, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let runtime = self.runtime()?;
        // It panics where it cannot start a thread and has none; `work` is dropped then.
        let spawned = panic::catch_unwind(AssertUnwindSafe(|| drop(runtime.spawn_blocking(work))));
        spawned.map_err(|_| io::Error::other("the system has no more threads"))
    }

    /// Runs a task.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        self.runtime()?.spawn(task);
        Ok(())
    }

    fn runtime(&mut self) -> io::Result<&Runtime> {
        match self.runtime {
            Some(ref runtime) => Ok(runtime),
            None => {
                let mut builder = Builder::new_multi_thread();
                builder
                    .worker_threads(2)
                    .max_blocking_threads(BLOCKING_THREADS)
                    .thread_name("workflow-token");
                Ok(self.runtime.insert(builder.enable_all().build()?))
            }
        }
    }

    /// Ends all tasks and joins the threads. Returns whether all of them have ended; those that have not are left
    /// behind, and the caller must see to it that their code stays.
    #[must_use]
    pub fn end(&mut self) -> bool {
        let Some(runtime) = self.runtime.take() else {
            return true;
        };
        let start = Instant::now();
        // Joins every thread that it waited for; gives up on all of them when the time is over.
        runtime.shutdown_timeout(PATIENCE);
        start.elapsed() < PATIENCE
    }
}
