// SPDX-License-Identifier: MIT OR Apache-2.0

//! The record store, first half: commits sealed records to the KVS.
//!
//! Records that arrive during a commit wait for the next one: one commit of many records costs little more than one of
//! a single record.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    ffi::CString,
    fmt, io,
    rc::Rc,
    time::{Duration, Instant},
};

use ffi::{Flux, Future, JobId, LogLevel, PendingFuture, Watcher};
use protocol::{Code, Failure};

use crate::{reader::KVS_TIMEOUT, stats::CallbackTimer};

/// The most records in one commit, which one turn prepares, and their most bytes.
const COMMIT: (usize, usize) = (32, 4 << 20);

/// The most concurrent commits, if each contains the most records.
const COMMITS: usize = 16;

/// The time after which a commit does not delay others any more.
const SLOW: Duration = Duration::from_secs(1);

/// The number of finished commits for which memory is kept.
const ROOM: usize = 2;

/// A sealed record that waits for a commit.
struct Stored {
    job: JobId,
    record: String,
}

/// The delivery of a finished commit.
pub(crate) struct Committed {
    pub job: JobId,
    pub number: u64,
    /// The failure of the commit, if any.
    pub why: Option<Rc<Failure>>,
}

/// An event that [`Commits`] reports.
pub(crate) enum CommitEvent<'a> {
    /// The records of these deliveries are being committed. Each took this much processor time.
    Committing(&'a [(JobId, u64)], Duration),
    /// Commits have finished: the receiver can take some of [`Commits::next`].
    Committed,
    /// A callback has ended.
    Callback(&'a CallbackTimer),
    /// A line for the log.
    Log(LogLevel, String),
}

/// The commits of one plugin.
pub(crate) struct Commits {
    flux: Flux<'static>,
    /// The key of the records, in the KVS directory of the job.
    key: CString,
    report: Box<dyn Fn(CommitEvent<'_>)>,
    /// Records that wait for a commit, by number of the delivery.
    sealed: RefCell<BTreeMap<u64, Stored>>,
    /// The running commits, by number, and the start of the latest.
    commits: RefCell<BTreeMap<u64, PendingFuture>>,
    began: Cell<Option<Instant>>,
    numbers: Cell<u64>,
    committed: RefCell<VecDeque<Committed>>,
    /// The timer for the next turn of finished commits.
    turn: RefCell<Option<Watcher>>,
}

impl Commits {
    /// Returns a store without records. `report` must not drop the store.
    pub fn new(flux: Flux<'static>, key: CString, report: impl Fn(CommitEvent<'_>) + 'static) -> Rc<Self> {
        Rc::new(Self {
            flux,
            key,
            report: Box::new(report),
            sealed: RefCell::default(),
            commits: RefCell::default(),
            began: Cell::default(),
            numbers: Cell::default(),
            committed: RefCell::default(),
            turn: RefCell::default(),
        })
    }

    /// Commits the record of a delivery, at once or with the next commit.
    pub fn store(self: &Rc<Self>, number: u64, job: JobId, record: String) {
        self.sealed.borrow_mut().insert(number, Stored { job, record });
        self.commit();
    }

    /// Withdraws a record that waits for a commit.
    pub fn withdraw(&self, number: u64) {
        self.sealed.borrow_mut().remove(&number);
    }

    /// Commits waiting records. Must be called every 100 ms while deliveries are under way.
    pub fn tick(self: &Rc<Self>) {
        self.commit();
    }

    /// Removes and returns the next delivery whose commit has finished. While more are left, another turn follows.
    pub fn next(&self) -> Option<Committed> {
        let mut committed = self.committed.borrow_mut();
        let next = committed.pop_front();
        if committed.is_empty() {
            committed.shrink_to(ROOM);
        }
        next
    }

    /// Ends all commits when the plugin is removed. If the records `matter`, it sends the waiting ones and those that
    /// `arrived` last to the KVS, without waiting for the result.
    pub fn leave(&self, matter: bool, arrived: impl IntoIterator<Item = (u64, JobId, String)>) {
        let commits = std::mem::take(&mut *self.commits.borrow_mut());
        drop(commits);
        let turn = self.turn.borrow_mut().take();
        drop(turn);
        let mut sealed = std::mem::take(&mut *self.sealed.borrow_mut());
        sealed.extend(
            arrived
                .into_iter()
                .map(|(number, job, record)| (number, Stored { job, record })),
        );
        if matter
            && !sealed.is_empty()
            && let Err(e) = self.put_all(sealed.values())
        {
            let line = format!("{} sealed records could not be committed: {e}", sealed.len());
            (self.report)(CommitEvent::Log(LogLevel::Err, line));
        }
    }

    /// Commits waiting records, unless they can wait for a running commit. Further commits start only for more records
    /// than one commit holds; the KVS merges them.
    fn commit(self: &Rc<Self>) {
        loop {
            let waits = self.began.get().is_some_and(|began| began.elapsed() < SLOW);
            let is_full = self.sealed.borrow().len() >= COMMIT.0;
            if self.commits.borrow().len() >= if is_full { COMMITS } else { 1 } && waits {
                return;
            }
            let records = self.next_records();
            if records.is_empty() {
                return;
            }
            let timer = CallbackTimer::start();
            let jobs: Vec<(JobId, u64)> = records.iter().map(|(number, stored)| (stored.job, *number)).collect();
            let panicked = || {
                Err(io::Error::other(
                    "an internal error: see its location in the broker's output",
                ))
            };
            match ffi::guard(panicked(), || self.put(&records, &jobs)) {
                Ok(()) => {
                    let share = timer.cpu() / u32::try_from(jobs.len()).unwrap_or(u32::MAX);
                    (self.report)(CommitEvent::Committing(&jobs, share));
                    // Give the reactor back to others.
                    return;
                }
                Err(e) => self.ended(jobs, Some(&e)),
            }
        }
    }

    /// Removes and returns the records of the next commit, with the numbers of their deliveries.
    fn next_records(&self) -> Vec<(u64, Stored)> {
        let mut sealed = self.sealed.borrow_mut();
        let (mut records, mut bytes) = (Vec::with_capacity(COMMIT.0.min(sealed.len())), 0);
        while let Some(first) = sealed.first_entry() {
            bytes += first.get().record.len();
            if records.len() == COMMIT.0 || (bytes > COMMIT.1 && !records.is_empty()) {
                break;
            }
            records.push(first.remove_entry());
        }
        records
    }

    fn put(self: &Rc<Self>, records: &[(u64, Stored)], jobs: &[(JobId, u64)]) -> io::Result<()> {
        ffi::inject_fault("put");
        let number = self.numbers.get() + 1;
        self.numbers.set(number);
        let (weak, jobs) = (Rc::downgrade(self), jobs.to_vec());
        let put = self.put_all(records.iter().map(|(_, stored)| stored))?;
        let pending = put.then(KVS_TIMEOUT, move |future| {
            let Some(store) = weak.upgrade() else { return };
            let timer = CallbackTimer::start();
            let done = store.commits.borrow_mut().remove(&number);
            let failed = future.get().err();
            let failed = failed.as_ref().map(|e| e as &dyn fmt::Display);
            store.ended(jobs, failed);
            // The next commit starts before the jobs do, so that the KVS is never idle.
            store.commit();
            drop(done);
            (store.report)(CommitEvent::Callback(&timer));
        })?;
        self.commits.borrow_mut().insert(number, pending);
        self.began.set(Some(Instant::now()));
        Ok(())
    }

    fn ended(self: &Rc<Self>, jobs: Vec<(JobId, u64)>, failed: Option<&dyn fmt::Display>) {
        let why = failed.map(|e| {
            let cause = format!("the commit of the sealed record failed: {e}");
            Rc::new(Failure::new(Code::StoreFailed, "it could not be stored", cause))
        });
        let committed = jobs.into_iter().map(|(job, number)| Committed {
            job,
            number,
            why: why.clone(),
        });
        self.committed.borrow_mut().extend(committed);
        // Commits that end together share the turns.
        if self.turn.borrow().is_none() {
            self.next_turn();
        }
    }

    fn next_turn(self: &Rc<Self>) {
        let weak = Rc::downgrade(self);
        let turn = self.flux.after(0.0, move || {
            let Some(store) = weak.upgrade() else { return };
            let done = store.turn.borrow_mut().take();
            let timer = CallbackTimer::start();
            (store.report)(CommitEvent::Committed);
            (store.report)(CommitEvent::Callback(&timer));
            if !store.committed.borrow().is_empty() && store.turn.borrow().is_none() {
                store.next_turn();
            }
            drop(done);
        });
        match turn {
            Ok(turn) => *self.turn.borrow_mut() = Some(turn),
            Err(e) => (self.report)(CommitEvent::Log(LogLevel::Err, format!("no timer can be started: {e}"))),
        }
    }

    fn put_all<'a>(&self, records: impl Iterator<Item = &'a Stored>) -> io::Result<Future> {
        let mut transaction = ffi::Transaction::new()?;
        for stored in records {
            transaction.put(&stored.job.kvs_key(&self.key)?, &stored.record)?;
        }
        self.flux.commit(transaction)
    }
}
