//! The threads beside the reactor thread, and the way back to it: a queue, and an eventfd that wakes the reactor.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    marker::PhantomData,
    os::fd::{AsFd, AsRawFd, RawFd},
    panic::{self, AssertUnwindSafe},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::runtime::{Builder, Runtime};

/// How long the reactor thread waits for the threads to end when the plugin is removed. What takes longer hangs: in
/// munged, or in a file system. The object is then kept in memory, so that they return to code that is still there.
const PATIENCE: Duration = Duration::from_millis(250);

/// How many threads may block at once: in the name service, in files, in munged.
const BLOCKING_THREADS: usize = 64;

/// For how many items the queue keeps memory when it is empty.
const ROOM: usize = 64;

/// What wakes the reactor: readable from a ring until it is silenced, however often it was rung.
pub(crate) trait Bell {
    /// From any thread.
    fn ring(&self);
    /// On the reactor thread; what is rung from now on counts anew.
    fn silence(&self);
}

/// What keeps the items: a lock that is held for no longer than `f` runs.
pub(crate) trait Lock<V> {
    fn with<R>(&self, f: impl FnOnce(&mut V) -> R) -> R;
}

/// The way back to the reactor thread. Any thread may send. The lock and the bell are types of their own, so that every
/// order in which threads may come can be tried on this very code.
pub(crate) struct Queue<T, L = Mutex<VecDeque<T>>, B = EventFd> {
    items: L,
    bell: B,
    _items: PhantomData<fn(T)>,
}

impl<T> Queue<T> {
    pub fn open() -> io::Result<Self> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self::new(Mutex::new(VecDeque::new()), bell))
    }

    /// What becomes readable when something was sent.
    pub fn fd(&self) -> RawFd {
        self.bell.as_fd().as_raw_fd()
    }
}

impl<T, L: Lock<VecDeque<T>>, B: Bell> Queue<T, L, B> {
    fn new(items: L, bell: B) -> Self {
        Self {
            items,
            bell,
            _items: PhantomData,
        }
    }

    /// Hands something to the reactor thread.
    pub fn send(&self, item: T) {
        self.items.with(|items| items.push_back(item));
        self.bell.ring();
    }

    /// Takes up to `most` things that were sent. Where more are left, the reactor is woken again, after others had their
    /// turn.
    pub fn take(&self, most: usize) -> Vec<T> {
        // Before the items are looked at: what is sent after the look rings after it too.
        self.bell.silence();
        let (taken, left) = self.items.with(|items| {
            let count = items.len().min(most);
            let taken = items.drain(..count).collect();
            if items.is_empty() && items.capacity() > ROOM {
                items.shrink_to(ROOM);
            }
            (taken, !items.is_empty())
        });
        if left {
            self.bell.ring();
        }
        taken
    }
}

impl Bell for EventFd {
    fn ring(&self) {
        // The counter is at its maximum at worst, and then the descriptor is readable anyway.
        let _ = self.write(1);
    }

    fn silence(&self) {
        // Not readable is no error: it was read before.
        let _ = self.read();
    }
}

impl<V> Lock<V> for Mutex<V> {
    fn with<R>(&self, f: impl FnOnce(&mut V) -> R) -> R {
        f(&mut self.lock().unwrap_or_else(PoisonError::into_inner))
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

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, sync::Arc};

    use loom::{
        model::Builder,
        sync::{Condvar, Mutex},
        thread,
    };

    use super::{Bell, Lock, Queue};

    /// What eventfd(2) is to the reactor: a counter, which poll(2) waits for to be more than zero.
    #[derive(Default)]
    struct Counter {
        value: Mutex<u64>,
        readable: Condvar,
    }

    impl Bell for &Counter {
        fn ring(&self) {
            *self.value.lock().unwrap() += 1;
            self.readable.notify_one();
        }

        fn silence(&self) {
            *self.value.lock().unwrap() = 0;
        }
    }

    impl Counter {
        fn poll(&self) {
            let mut value = self.value.lock().unwrap();
            while *value == 0 {
                value = self.readable.wait(value).unwrap();
            }
        }
    }

    struct Shared(Mutex<VecDeque<u32>>);

    impl Lock<VecDeque<u32>> for Shared {
        fn with<R>(&self, f: impl FnOnce(&mut VecDeque<u32>) -> R) -> R {
            f(&mut self.0.lock().unwrap())
        }
    }

    type Model = Queue<u32, Shared, &'static Counter>;

    /// Tries every order in which two threads send so many items each, while the reactor takes `most` a turn and sleeps
    /// when it was not woken. An item that is left behind with nobody awake is a deadlock, which the model reports.
    fn every_order(each: u32, most: usize) {
        let mut builder = Builder::new();
        // Where threads are interrupted more often than that, nothing new comes up, but it takes hours.
        builder.preemption_bound = Some(3);
        builder.check(move || {
            // A model cannot lend to its threads.
            let bell: &'static Counter = Box::leak(Box::default());
            let queue = Arc::new(Model::new(Shared(Mutex::default()), bell));
            let senders = [0, 1].map(|sender| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || (0..each).for_each(|n| queue.send(sender * 100 + n)))
            });
            let mut taken: Vec<u32> = Vec::new();
            while taken.len() < 2 * each as usize {
                bell.poll();
                let turn = queue.take(most);
                assert!(turn.len() <= most, "a turn is longer than it may be");
                taken.extend(turn);
            }
            senders.into_iter().for_each(|sender| sender.join().unwrap());
            for sender in [0, 100] {
                let mine: Vec<u32> = taken
                    .iter()
                    .copied()
                    .filter(|item| item / 100 * 100 == sender)
                    .collect();
                assert_eq!(mine, (sender..sender + each).collect::<Vec<_>>(), "items of one sender");
            }
            assert!(queue.take(most).is_empty());
        });
    }

    #[test]
    fn in_every_order_each_item_arrives_once_and_the_reactor_is_awake_while_there_is_one() {
        every_order(1, 16);
        every_order(2, 1);
    }
}
