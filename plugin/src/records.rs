//! The record store: commits sealed records to the KVS, and removes those of jobs that have ended.
//!
//! Records that come while a commit is under way go together with the next: one commit for many costs little more than for
//! one. They are removed when it is quiet: no job waits for them to go, and to the KVS it is as much work to remove a
//! record as to store it.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    rc::{Rc, Weak},
    time::{Duration, Instant},
};

use ffi::{Flux, Future, JobId, LogLevel, PendingFuture, Watcher};
use protocol::{Code, Failure};

use crate::{manager::Inner, stats::Stay};

/// How long a commit may take, in seconds. Each delivery has its own deadline.
pub(crate) const KVS_TIMEOUT: f64 = 60.0;

/// The most records in one commit, which is made up in one turn, and the most bytes of them.
const COMMIT: (usize, usize) = (32, 4 << 20);

/// How many commits are under way at most, if each has as many records as it may have.
const COMMITS: usize = 16;

/// A commit that takes longer does not delay others.
const SLOW: Duration = Duration::from_secs(1);

/// It is quiet when for so long no job has ended that had a record, and no delivery is under way.
const QUIET: Duration = Duration::from_secs(1);

/// Records are removed that long after the first of their jobs ended, quiet or not.
const LATEST: Duration = Duration::from_secs(10);

/// How many are removed with one commit. The KVS writes the directory of each job anew, for which others wait, and all
/// above them, for which there should not be many commits.
const REMOVAL: usize = 128;

/// For how many finished commits memory is kept.
const ROOM: usize = 2;

/// A sealed record that is to be committed.
struct Stored {
    job: JobId,
    record: String,
}

/// A delivery whose commit has ended.
pub(crate) struct Committed {
    pub job: JobId,
    pub number: u64,
    /// Why the commit failed, if it did.
    pub why: Option<Rc<Failure>>,
}

/// The record store of one plugin.
pub(crate) struct RecordStore {
    flux: Flux<'static>,
    /// The key of the records, in the directory of the job.
    key: &'static str,
    owner: Weak<Inner>,
    /// Records that wait for a commit, by number of the delivery.
    sealed: RefCell<BTreeMap<u64, Stored>>,
    /// The commits under way, by number, and when the last of them began.
    commits: RefCell<HashMap<u64, PendingFuture>>,
    began: Cell<Option<Instant>>,
    numbers: Cell<u64>,
    committed: RefCell<VecDeque<Committed>>,
    /// The next turn of those that were committed.
    turn: RefCell<Option<Watcher>>,
    ended: RefCell<Ended>,
    removal: RefCell<Option<PendingFuture>>,
    /// Whether the last removal failed.
    is_failing: Cell<bool>,
}

impl RecordStore {
    pub fn new(flux: Flux<'static>, key: &'static str, owner: Weak<Inner>) -> Rc<Self> {
        Rc::new(Self {
            flux,
            key,
            owner,
            sealed: RefCell::default(),
            commits: RefCell::default(),
            began: Cell::default(),
            numbers: Cell::default(),
            committed: RefCell::default(),
            turn: RefCell::default(),
            ended: RefCell::default(),
            removal: RefCell::default(),
            is_failing: Cell::default(),
        })
    }

    /// Commits a record soon.
    pub fn store(self: &Rc<Self>, number: u64, job: JobId, record: String) {
        self.sealed.borrow_mut().insert(number, Stored { job, record });
        self.commit();
    }

    /// A record that waits for a commit is not wanted any more.
    pub fn withdraw(&self, number: u64) {
        self.sealed.borrow_mut().remove(&number);
    }

    /// Removes the records of jobs that have ended, when it is time.
    pub fn remove(&self, jobs: impl IntoIterator<Item = JobId>) {
        self.ended.borrow_mut().push(jobs, Instant::now());
    }

    /// Returns whether no record waits to be removed.
    pub fn is_idle(&self) -> bool {
        self.ended.borrow().is_empty()
    }

    /// Time has passed. `is_idle`: no delivery is under way.
    pub fn tick(self: &Rc<Self>, is_idle: bool) {
        if self.ended.borrow().is_due(Instant::now(), is_idle) {
            self.remove_next();
        }
        self.commit();
        crate::deliveries::shrink(&mut self.commits.borrow_mut());
    }

    /// Takes the next delivery out whose commit has ended. While there are more, another turn comes.
    pub fn next_committed(&self) -> Option<Committed> {
        let mut committed = self.committed.borrow_mut();
        let next = committed.pop_front();
        if committed.is_empty() {
            committed.shrink_to(ROOM);
        }
        next
    }

    /// The plugin is being removed: records are removed and, if they `matter`, those of deliveries under way committed. The
    /// requests are on their way when this returns, and nobody sees the answers.
    pub fn leave(&self, matter: bool, arrived: impl IntoIterator<Item = (u64, JobId, String)>) {
        let commits = std::mem::take(&mut *self.commits.borrow_mut());
        drop(commits);
        let (removal, turn) = (self.removal.borrow_mut().take(), self.turn.borrow_mut().take());
        drop((removal, turn));
        loop {
            let jobs = self.ended.borrow_mut().take(REMOVAL);
            if jobs.is_empty() {
                break;
            }
            if let Err(e) = self.unlink_all(&jobs) {
                let line = format!("{} sealed records could not be removed: {e}", jobs.len());
                self.log(LogLevel::Err, &line);
            }
        }
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
            self.log(LogLevel::Err, &line);
        }
    }

    /// Commits records that wait, unless a commit is under way that they can wait for. More are under way only if more
    /// wait than one has; the KVS makes one of them.
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
            let stay = Stay::begin();
            let jobs: Vec<(JobId, u64)> = records.iter().map(|(number, stored)| (stored.job, *number)).collect();
            let panicked = || {
                Err(io::Error::other(
                    "an internal error: its place is in the broker's output",
                ))
            };
            match ffi::guard(panicked(), || self.put(&records, &jobs)) {
                Ok(()) => {
                    let share = stay.cpu() / u32::try_from(jobs.len()).unwrap_or(u32::MAX);
                    if let Some(owner) = self.owner.upgrade() {
                        owner.committing(&jobs, share);
                    }
                    // Others have their turn.
                    return;
                }
                Err(e) => self.have_ended(jobs, Some(&e)),
            }
        }
    }

    /// Takes the records of the next commit out, with the numbers of their deliveries.
    fn next_records(&self) -> Vec<(u64, Stored)> {
        let mut sealed = self.sealed.borrow_mut();
        let (mut records, mut bytes) = (Vec::new(), 0);
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
            let stay = Stay::begin();
            let done = store.commits.borrow_mut().remove(&number);
            let failed = future.get().err();
            let failed = failed.as_ref().map(|e| e as &dyn std::fmt::Display);
            store.have_ended(jobs, failed);
            // The KVS does not wait for the jobs to start.
            store.commit();
            drop(done);
            if let Some(owner) = store.owner.upgrade() {
                owner.stats.borrow_mut().callback(&stay);
            }
        })?;
        self.commits.borrow_mut().insert(number, pending);
        self.began.set(Some(Instant::now()));
        Ok(())
    }

    fn have_ended(self: &Rc<Self>, jobs: Vec<(JobId, u64)>, failed: Option<&dyn std::fmt::Display>) {
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
        // Commits that end together share one row of turns.
        if self.turn.borrow().is_none() {
            self.next_turn();
        }
    }

    fn next_turn(self: &Rc<Self>) {
        let weak = Rc::downgrade(self);
        let turn = self.flux.after(0.0, move || {
            let Some(store) = weak.upgrade() else { return };
            let done = store.turn.borrow_mut().take();
            let stay = Stay::begin();
            if let Some(owner) = store.owner.upgrade() {
                owner.finish_committed();
                owner.stats.borrow_mut().callback(&stay);
            }
            if !store.committed.borrow().is_empty() && store.turn.borrow().is_none() {
                store.next_turn();
            }
            drop(done);
        });
        match turn {
            Ok(turn) => *self.turn.borrow_mut() = Some(turn),
            Err(e) => self.log(LogLevel::Err, &format!("no timer can be started: {e}")),
        }
    }

    /// Removes as many records as one commit takes: one commit at a time.
    fn remove_next(self: &Rc<Self>) {
        if self.removal.borrow().is_some() {
            return;
        }
        let jobs = self.ended.borrow_mut().take(REMOVAL);
        if jobs.is_empty() {
            return;
        }
        let (weak, again) = (Rc::downgrade(self), jobs.clone());
        let removed = self.unlink_all(&jobs).and_then(|commit| {
            commit.then(KVS_TIMEOUT, move |future| {
                let Some(store) = weak.upgrade() else { return };
                let done = store.removal.borrow_mut().take();
                ffi::inject_fault("unlinked");
                match future.get() {
                    Ok(()) => store.were_removed(again.len()),
                    Err(e) => store.not_removed(again, &e),
                }
                drop(done);
            })
        });
        match removed {
            Ok(pending) => *self.removal.borrow_mut() = Some(pending),
            Err(e) => self.not_removed(jobs, &e),
        }
    }

    fn were_removed(self: &Rc<Self>, count: usize) {
        self.is_failing.set(false);
        let Some(owner) = self.owner.upgrade() else { return };
        owner.stats.borrow_mut().unlinked += count as u64;
        // There may be more than one commit took.
        let is_idle = owner.deliveries.borrow().len() == 0;
        if self.ended.borrow().is_due(Instant::now(), is_idle) {
            self.remove_next();
        }
    }

    /// They are tried again, with those that have ended by then. It is logged once, until it works again.
    fn not_removed(&self, jobs: Vec<JobId>, e: &dyn std::fmt::Display) {
        if !self.is_failing.replace(true) {
            let line = format!("{} sealed records could not be removed: {e}: trying again", jobs.len());
            self.log(LogLevel::Err, &line);
        }
        self.ended.borrow_mut().put_back(jobs, Instant::now());
    }

    fn put_all<'a>(&self, records: impl Iterator<Item = &'a Stored>) -> io::Result<Future> {
        let mut transaction = ffi::Transaction::new()?;
        for stored in records {
            transaction.put(&stored.job.kvs_key(self.key)?, &stored.record)?;
        }
        self.flux.commit(transaction)
    }

    fn unlink_all(&self, jobs: &[JobId]) -> io::Result<Future> {
        let mut transaction = ffi::Transaction::new()?;
        for job in jobs {
            transaction.unlink(&job.kvs_key(self.key)?)?;
        }
        self.flux.commit(transaction)
    }

    fn log(&self, level: LogLevel, line: &str) {
        if let Some(owner) = self.owner.upgrade() {
            owner.log(level, line);
        }
    }
}

/// Jobs whose records are to be removed.
#[derive(Default)]
struct Ended {
    jobs: VecDeque<JobId>,
    /// When the first and the last of them ended.
    since: Option<(Instant, Instant)>,
}

impl Ended {
    fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    fn push(&mut self, jobs: impl IntoIterator<Item = JobId>, now: Instant) {
        self.jobs.extend(jobs);
        let first = self.since.map_or(now, |(first, _)| first);
        self.since = Some((first, now)).filter(|_| !self.jobs.is_empty());
    }

    /// These could not be removed. All wait as long as if they had just ended: the KVS is not asked again at once.
    fn put_back(&mut self, jobs: Vec<JobId>, now: Instant) {
        self.since = None;
        self.push(jobs, now);
    }

    /// Whether it is time to remove records.
    fn is_due(&self, now: Instant, is_idle: bool) -> bool {
        self.since.is_some_and(|(first, last)| {
            (is_idle && now.saturating_duration_since(last) >= QUIET) || now.saturating_duration_since(first) >= LATEST
        })
    }

    /// The first of them.
    fn take(&mut self, most: usize) -> Vec<JobId> {
        let count = self.jobs.len().min(most);
        let jobs = self.jobs.drain(..count).collect();
        if self.jobs.is_empty() {
            self.since = None;
            self.jobs.shrink_to(REMOVAL);
        }
        jobs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_removed_when_it_is_quiet_and_after_a_while_whatever_goes_on() {
        let start = Instant::now();
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut ended = Ended::default();
        assert!(!ended.is_due(after(60_000), true));
        ended.push([JobId(1)], start);
        ended.push([JobId(2)], after(800));
        assert!(!ended.is_due(after(1_500), true));
        assert!(ended.is_due(after(1_800), true));
        assert!(!ended.is_due(after(9_900), false));
        ended.push([JobId(3)], after(9_900));
        assert!(ended.is_due(after(10_000), false));
        let take = |ended: &mut Ended| ended.take(2).iter().map(|job| job.0).collect::<Vec<_>>();
        assert_eq!(take(&mut ended), [1, 2]);
        assert!(ended.is_due(after(10_000), false));
        assert_eq!(take(&mut ended), [3]);
        assert!(ended.is_empty() && !ended.is_due(after(60_000), true));
        ended.push([], start);
        assert!(!ended.is_due(after(60_000), true));
    }

    #[test]
    fn what_could_not_be_removed_is_not_tried_again_at_once_though_others_wait() {
        let start = Instant::now();
        let mut ended = Ended::default();
        ended.push([JobId(1), JobId(2)], start);
        let jobs = ended.take(1);
        let failed = start + LATEST;
        ended.put_back(jobs, failed);
        assert!(!ended.is_due(failed, true) && !ended.is_due(failed + QUIET, false));
        assert!(ended.is_due(failed + QUIET, true) && ended.is_due(failed + LATEST, false));
        assert!(ended.take(2).len() == 2);
    }
}
