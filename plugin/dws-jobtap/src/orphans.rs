// SPDX-License-Identifier: MIT OR Apache-2.0

//! Orphaned workflows: those of rabbit jobs that became inactive while no plugin was loaded. No plugin requested their
//! teardown, so they still occupy storage on the rabbits.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    ops::Bound,
};

use ffi::{JobId, PendingFuture, Watcher};
use serde::{Deserialize, Serialize};

use crate::lifecycle::{Epilog, EpilogEvent, Machine};

/// The jobs of orphaned workflows, and the pending step for one of them.
#[derive(Default)]
pub struct Orphans {
    jobs: RefCell<BTreeMap<JobId, Orphan>>,
    pub step: RefCell<Option<Step>>,
    /// The current job of the round.
    pub at: Cell<Option<JobId>>,
    /// The pause before the next round, in seconds.
    pub pause: Cell<f64>,
}

#[derive(Clone, Copy)]
struct Orphan {
    /// Records whether the service received `dws.post_run`. The job itself has no epilog any more.
    epilog: Epilog,
    /// Known once the eventlog was read.
    end: Option<End>,
    refusals: u32,
}

/// The end of a job.
#[derive(Clone, Copy)]
pub enum End {
    Purged,
    HasRun(bool),
}

/// A pending step. Dropping it cancels it.
pub enum Step {
    Later(#[expect(dead_code, reason = "it is kept")] Watcher),
    Asked(#[expect(dead_code, reason = "it is kept")] PendingFuture),
}

/// An orphan in the handover.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct OrphanState(pub JobId, pub Epilog);

impl Orphans {
    /// Takes over the orphans of the former plugin. Returns those that the service has not been told of.
    pub fn take_over(&self, inherited: impl Iterator<Item = OrphanState>) -> Vec<JobId> {
        let orphans = inherited.map(|OrphanState(job, epilog)| {
            let (end, refusals) = (None, 0);
            (job, Orphan { epilog, end, refusals })
        });
        let orphans: BTreeMap<JobId, Orphan> = orphans.collect();
        let due = orphans.iter().filter(|(_, orphan)| orphan.epilog.is_due());
        let due = due.map(|(job, _)| *job).collect();
        *self.jobs.borrow_mut() = orphans;
        due
    }

    /// Removes all orphans, and returns them for the handover.
    pub fn leave(&self) -> Vec<OrphanState> {
        let is_asked = matches!(self.step.take(), Some(Step::Asked(_)));
        let jobs = self.jobs.take();
        let states = jobs.into_iter().map(|(job, mut orphan)| {
            if is_asked && self.at.get() == Some(job) {
                orphan.epilog.on(EpilogEvent::Unanswered);
            }
            OrphanState(job, orphan.epilog)
        });
        states.collect()
    }

    /// Removes a job. Returns false if it is not an orphan.
    pub fn forget(&self, job: JobId) -> bool {
        self.jobs.borrow_mut().remove(&job).is_some()
    }

    pub fn contains(&self, job: JobId) -> bool {
        self.jobs.borrow().contains_key(&job)
    }

    pub fn count(&self) -> usize {
        self.jobs.borrow().len()
    }

    pub fn on(&self, job: JobId, event: EpilogEvent) {
        if let Some(orphan) = self.jobs.borrow_mut().get_mut(&job) {
            orphan.epilog.on(event);
        }
    }

    pub fn has_ended(&self, job: JobId, end: End) {
        if let Some(orphan) = self.jobs.borrow_mut().get_mut(&job) {
            orphan.end = Some(end);
        }
    }

    /// Counts a refusal of the service. Returns the number of refusals.
    pub fn refused(&self, job: JobId) -> Option<u32> {
        let mut jobs = self.jobs.borrow_mut();
        let orphan = jobs.get_mut(&job)?;
        orphan.refusals += 1;
        Some(orphan.refusals)
    }

    pub fn is_repeated(&self, job: JobId) -> bool {
        let jobs = self.jobs.borrow();
        jobs.get(&job).is_some_and(|orphan| orphan.epilog.is_repeated())
    }

    /// Returns the next job of the round whose workflow must be torn down.
    pub fn next(&self) -> Option<(JobId, End)> {
        let jobs = self.jobs.borrow();
        let after = self.at.get().map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = jobs.range((after, Bound::Unbounded));
        rest.find_map(|(job, orphan)| Some((*job, orphan.end.filter(|_| orphan.epilog.is_due())?)))
    }
}
