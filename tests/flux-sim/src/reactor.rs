// SPDX-License-Identifier: MIT OR Apache-2.0

//! The reactor: one thread that serves descriptors, futures, timers and deferred work in turns, and measures the
//! duration of each callback of a plugin.
//!
//! Imitates `flux_fd_watcher_create(3)`, `flux_timer_watcher_create(3)` and the order of a turn of the job manager. The
//! parts that another module of the broker serves (KVS, job-info) are *services* here: they also make progress while a
//! plugin blocks on a future.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::RawFd;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use ffi::raw::{FLUX_POLLIN, FLUX_POLLOUT, flux_reactor_t, flux_watcher_f, flux_watcher_t};
use libc::{c_int, c_void};
use serde_json::{Value, json};

use crate::c::{check_thread, set_errno};
use crate::future::Future;

const FLUX_POLLERR: c_int = 4;

/// Work for a later turn.
pub type Task = Box<dyn FnOnce()>;

/// The reactor of a process.
#[derive(Default)]
pub struct Reactor {
    watchers: RefCell<Vec<Weak<Watcher>>>,
    services: RefCell<VecDeque<Task>>,
    tasks: RefCell<VecDeque<Task>>,
    ready: RefCell<VecDeque<Weak<Future>>>,
    timers: RefCell<Vec<(Instant, Task)>>,
    stats: RefCell<Stats>,
    stopped: Cell<bool>,
}

#[derive(Default)]
struct Stats {
    turns: u64,
    longest: Duration,
    topics: BTreeMap<String, Topic>,
}

#[derive(Default)]
struct Topic {
    count: u64,
    total: Duration,
    max: Duration,
}

/// A watcher of the simulator or of a plugin.
pub struct Watcher {
    source: Source,
    active: Cell<bool>,
    callback: Callback,
}

enum Source {
    Fd {
        fd: RawFd,
        events: c_int,
    },
    Timer {
        after: Duration,
        /// Zero for a timer that expires once.
        repeat: Duration,
        /// None for never.
        deadline: Cell<Option<Instant>>,
    },
}

enum Callback {
    Simulator(Box<dyn Fn()>),
    Plugin(
        unsafe extern "C" fn(*mut flux_reactor_t, *mut flux_watcher_t, c_int, *mut c_void),
        *mut c_void,
    ),
}

impl Reactor {
    /// Runs work of this process on a later turn.
    pub fn defer(&self, task: impl FnOnce() + 'static) {
        self.tasks.borrow_mut().push_back(Box::new(task));
    }

    /// Runs work of a service on a later turn, or while a caller blocks on a future.
    pub fn defer_service(&self, task: impl FnOnce() + 'static) {
        self.services.borrow_mut().push_back(Box::new(task));
    }

    /// Runs work after a delay.
    pub fn after(&self, delay: Duration, task: impl FnOnce() + 'static) {
        // A delay that no clock can express never ends.
        if let Some(deadline) = Instant::now().checked_add(delay) {
            self.timers.borrow_mut().push((deadline, Box::new(task)));
        }
    }

    /// Calls the continuation of a fulfilled future on a later turn.
    pub fn future_ready(&self, future: Weak<Future>) {
        self.ready.borrow_mut().push_back(future);
    }

    /// Watches a descriptor until the watcher is dropped. The caller owns the descriptor.
    pub fn watch(&self, fd: RawFd, callback: impl Fn() + 'static) -> Rc<Watcher> {
        self.add(fd, FLUX_POLLIN, Callback::Simulator(Box::new(callback)), true)
    }

    /// Watches a descriptor until it is writable.
    pub fn watch_writable(&self, fd: RawFd, callback: impl Fn() + 'static) -> Rc<Watcher> {
        self.add(fd, FLUX_POLLOUT, Callback::Simulator(Box::new(callback)), true)
    }

    fn add(&self, fd: RawFd, events: c_int, callback: Callback, active: bool) -> Rc<Watcher> {
        self.add_source(Source::Fd { fd, events }, callback, active)
    }

    fn add_source(&self, source: Source, callback: Callback, active: bool) -> Rc<Watcher> {
        let watcher = Rc::new(Watcher {
            source,
            active: Cell::new(active),
            callback,
        });
        self.watchers.borrow_mut().push(Rc::downgrade(&watcher));
        watcher
    }

    /// Runs turns until stopped. Each turn calls a function between its work and the wait for more.
    pub fn run(&self, mut before_wait: impl FnMut()) {
        self.stopped.set(false);
        while !self.stopped.get() {
            self.work();
            before_wait();
            self.wait();
        }
    }

    /// Ends `run` after the turn.
    pub fn stop(&self) {
        self.stopped.set(true);
    }

    fn work(&self) {
        self.stats.borrow_mut().turns += 1;
        self.run_services();
        for task in take(&self.tasks) {
            task();
        }
        for future in take(&self.ready) {
            if let Some(future) = future.upgrade() {
                self.timed("continuation", || future.call_continuation());
            }
        }
        self.run_timers();
    }

    fn wait(&self) {
        let idle = self.services.borrow().is_empty()
            && self.tasks.borrow().is_empty()
            && self.ready.borrow().is_empty()
            && !self.stopped.get();
        let timeout = if idle { self.until_next_timer() } else { 0 };
        for (watcher, revents) in self.poll(timeout) {
            watcher.dispatch(self, revents);
        }
    }

    /// Runs the pending work of the services. Returns false if there was none.
    pub fn run_services(&self) -> bool {
        let services = take(&self.services);
        let any = !services.is_empty();
        for service in services {
            service();
        }
        any
    }

    fn run_timers(&self) {
        let now = Instant::now();
        let timers = std::mem::take(&mut *self.timers.borrow_mut());
        let (due, rest): (Vec<_>, Vec<_>) = timers.into_iter().partition(|(deadline, _)| *deadline <= now);
        *self.timers.borrow_mut() = rest;
        for (_, task) in due {
            task();
        }
        for watcher in self.active_watchers() {
            if watcher.deadline().is_some_and(|deadline| deadline <= now) {
                watcher.go_off(self, now);
            }
        }
    }

    fn active_watchers(&self) -> Vec<Rc<Watcher>> {
        let mut watchers = self.watchers.borrow_mut();
        watchers.retain(|watcher| watcher.strong_count() > 0);
        let alive = watchers.iter().filter_map(Weak::upgrade);
        alive.filter(|watcher| watcher.active.get()).collect()
    }

    /// Returns the milliseconds for poll(2), rounded up.
    fn until_next_timer(&self) -> c_int {
        let timers = self.timers.borrow();
        let tasks = timers.iter().map(|(deadline, _)| *deadline);
        let watchers = self.active_watchers();
        match tasks
            .chain(watchers.iter().filter_map(|watcher| watcher.deadline()))
            .min()
        {
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                c_int::try_from(left.as_micros().div_ceil(1000)).unwrap_or(c_int::MAX)
            }
            None => -1,
        }
    }

    fn poll(&self, timeout: c_int) -> Vec<(Rc<Watcher>, c_int)> {
        let watchers = self.active_watchers();
        let (watchers, mut fds): (Vec<Rc<Watcher>>, Vec<libc::pollfd>) = watchers
            .into_iter()
            .filter_map(|watcher| watcher.poll_fd().map(|fd| (watcher, fd)))
            .unzip();
        // SAFETY: the array is valid for its length. EINTR leaves revents zero, which counts as a turn without events.
        let n = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
        if n <= 0 {
            return Vec::new();
        }
        watchers
            .into_iter()
            .zip(fds)
            .filter(|(_, fd)| fd.revents != 0)
            .map(|(watcher, fd)| (watcher, c_int::from(fd.revents)))
            .collect()
    }

    /// Calls into a plugin, and records the time under a topic.
    pub fn timed<T>(&self, topic: &str, call: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = call();
        let elapsed = start.elapsed();
        let mut stats = self.stats.borrow_mut();
        stats.longest = stats.longest.max(elapsed);
        let entry = stats.topics.entry(topic.to_owned()).or_default();
        entry.count += 1;
        entry.total += elapsed;
        entry.max = entry.max.max(elapsed);
        result
    }

    /// Returns the measurements so far, in microseconds.
    pub fn stats(&self) -> Value {
        let stats = self.stats.borrow();
        let topics: serde_json::Map<String, Value> = stats
            .topics
            .iter()
            .map(|(name, topic)| {
                let (total, max) = (topic.total.as_micros() as u64, topic.max.as_micros() as u64);
                (
                    name.clone(),
                    json!({"count": topic.count, "total_us": total, "max_us": max}),
                )
            })
            .collect();
        json!({"turns": stats.turns, "longest_us": stats.longest.as_micros() as u64, "topics": topics})
    }

    /// Resets the measurements.
    pub fn reset_stats(&self) {
        *self.stats.borrow_mut() = Stats::default();
    }
}

fn take<T>(queue: &RefCell<VecDeque<T>>) -> VecDeque<T> {
    std::mem::take(&mut *queue.borrow_mut())
}

impl Watcher {
    fn poll_fd(&self) -> Option<libc::pollfd> {
        let Source::Fd { fd, events } = self.source else {
            return None;
        };
        let flag = |flux, poll| if events & flux != 0 { poll } else { 0 };
        Some(libc::pollfd {
            fd,
            events: flag(FLUX_POLLIN, libc::POLLIN) | flag(FLUX_POLLOUT, libc::POLLOUT),
            revents: 0,
        })
    }

    fn deadline(&self) -> Option<Instant> {
        match &self.source {
            Source::Timer { deadline, .. } => deadline.get(),
            Source::Fd { .. } => None,
        }
    }

    /// Starts the watcher. A timer starts to run, unless it already does.
    fn start(&self) {
        if self.active.replace(true) {
            return;
        }
        if let Source::Timer { after, deadline, .. } = &self.source {
            deadline.set(Instant::now().checked_add(*after));
        }
    }

    /// Calls the callback of an expired timer, and restarts or stops the timer.
    fn go_off(self: Rc<Self>, reactor: &Reactor, now: Instant) {
        let (Source::Timer { repeat, deadline, .. }, Callback::Plugin(callback, arg)) = (&self.source, &self.callback)
        else {
            return;
        };
        // An earlier callback of this turn may have stopped or destroyed it. If destroyed, this reference is the only
        // one.
        if !self.active.get() || Rc::strong_count(&self) == 1 {
            return;
        }
        match repeat.is_zero() {
            true => self.active.set(false),
            // A late timer does not expire more often to make up for it.
            false => deadline.set(
                deadline
                    .get()
                    .and_then(|last| Some(last.checked_add(*repeat)?.max(now))),
            ),
        }
        let r = std::ptr::from_ref(reactor).cast_mut().cast();
        let w = Rc::as_ptr(&self).cast_mut().cast();
        // SAFETY: the plugin supplied this callback for this argument, and destroys the watcher before either becomes
        // invalid. The reference held here keeps the watcher alive if the callback destroys it.
        reactor.timed("timer", || unsafe { callback(r, w, 0, *arg) });
    }

    fn dispatch(self: Rc<Self>, reactor: &Reactor, revents: c_int) {
        // An earlier callback of this turn may have stopped or destroyed it. If destroyed, this reference is the only
        // one.
        let Source::Fd { fd, events } = self.source else { return };
        if !self.active.get() || Rc::strong_count(&self) == 1 {
            return;
        }
        if revents & c_int::from(libc::POLLNVAL) != 0 {
            self.active.set(false);
            eprintln!("flux-sim: BUG: descriptor {fd} was closed while it was watched");
            return;
        }
        match &self.callback {
            Callback::Simulator(callback) => callback(),
            Callback::Plugin(callback, arg) => {
                // As with libev, a hangup or an error counts as readable and writable.
                let hangup = revents & c_int::from(libc::POLLHUP | libc::POLLERR) != 0;
                let mut flux = 0;
                if hangup || revents & c_int::from(libc::POLLIN) != 0 {
                    flux |= events & FLUX_POLLIN;
                }
                if hangup || revents & c_int::from(libc::POLLOUT) != 0 {
                    flux |= events & FLUX_POLLOUT;
                }
                if hangup {
                    flux |= events & FLUX_POLLERR;
                }
                let r = std::ptr::from_ref(reactor).cast_mut().cast();
                let w = Rc::as_ptr(&self).cast_mut().cast();
                // SAFETY: the plugin supplied this callback for this argument, and destroys the watcher before either
                // becomes invalid. The reference held here keeps the watcher alive if the callback destroys it.
                reactor.timed("watcher", || unsafe { callback(r, w, flux, *arg) });
            }
        }
    }

    /// Returns the descriptor, or None for a timer.
    pub fn fd(&self) -> Option<RawFd> {
        match self.source {
            Source::Fd { fd, .. } => Some(fd),
            Source::Timer { .. } => None,
        }
    }

    /// Stops for good, even if the callback is running.
    pub fn stop(&self) {
        self.active.set(false);
    }
}

/// flux_fd_watcher_create(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_fd_watcher_create(
    r: *mut flux_reactor_t,
    fd: c_int,
    events: c_int,
    cb: flux_watcher_f,
    arg: *mut c_void,
) -> *mut flux_watcher_t {
    let (false, Some(cb)) = (r.is_null() || fd < 0, cb) else {
        set_errno(libc::EINVAL);
        return std::ptr::null_mut();
    };
    // SAFETY: a flux_reactor_t is only ever a Reactor, which lives as long as the process runs plugins.
    let reactor = unsafe { &*r.cast::<Reactor>() };
    crate::c::WATCHERS.add(1);
    Rc::into_raw(reactor.add(fd, events, Callback::Plugin(cb, arg), false))
        .cast_mut()
        .cast()
}

/// flux_timer_watcher_create(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_timer_watcher_create(
    r: *mut flux_reactor_t,
    after: f64,
    repeat: f64,
    cb: flux_watcher_f,
    arg: *mut c_void,
) -> *mut flux_watcher_t {
    check_thread();
    let (false, Some(cb)) = (r.is_null() || !(after >= 0.0 && repeat >= 0.0), cb) else {
        set_errno(libc::EINVAL);
        return std::ptr::null_mut();
    };
    // A duration that is too long to express never ends.
    let duration = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    let source = Source::Timer {
        after: duration(after),
        repeat: duration(repeat),
        deadline: Cell::default(),
    };
    // SAFETY: a flux_reactor_t is only ever a Reactor, which lives as long as the process runs plugins.
    let reactor = unsafe { &*r.cast::<Reactor>() };
    crate::c::WATCHERS.add(1);
    Rc::into_raw(reactor.add_source(source, Callback::Plugin(cb, arg), false))
        .cast_mut()
        .cast()
}

/// Returns the watcher behind a C pointer.
///
/// # Safety
/// `w` is NULL or a watcher that was not destroyed.
unsafe fn watcher<'a>(w: *mut flux_watcher_t) -> Option<&'a Watcher> {
    check_thread();
    // SAFETY: as promised by the caller; a flux_watcher_t is only ever made from an Rc<Watcher>.
    unsafe { w.cast::<Watcher>().cast_const().as_ref() }
}

/// flux_watcher_start(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_watcher_start(w: *mut flux_watcher_t) {
    // SAFETY: the caller passes NULL or a valid watcher.
    if let Some(watcher) = unsafe { watcher(w) } {
        watcher.start();
    }
}

/// flux_watcher_stop(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_watcher_stop(w: *mut flux_watcher_t) {
    // SAFETY: the caller passes NULL or a valid watcher.
    if let Some(watcher) = unsafe { watcher(w) } {
        watcher.active.set(false);
    }
}

/// flux_watcher_destroy(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_watcher_destroy(w: *mut flux_watcher_t) {
    // SAFETY: the caller passes NULL or a valid watcher, and releases its reference.
    unsafe {
        let Some(watcher) = watcher(w) else { return };
        watcher.active.set(false);
        crate::c::WATCHERS.add(-1);
        drop(Rc::from_raw(w.cast::<Watcher>().cast_const()));
    }
}
