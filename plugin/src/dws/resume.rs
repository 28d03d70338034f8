//! Rabbit jobs that were active when the plugin was loaded: from a plugin that was removed, from an earlier job manager, or
//! from the plugin of flux-coral2.
//!
//! Within one job manager, this plugin leaves with the handle where each job was that had resources. In all other cases the
//! eventlog tells: it is complete in the KVS after a restart; where another plugin was removed a moment ago it may be behind
//! by a batch, so it is read only after that batch is written.
//!
//! What is in CLEANUP then may be gone before its eventlog is read, so it is held by an epilog of its own meanwhile. If it
//! turns out to have had one, one of the two is finished. What is in RUN, and came there while no plugin or another one was
//! loaded into this job manager, is held by a prolog in the same way.

use std::{collections::HashSet, ffi::CStr, rc::Rc};

use ffi::{Args, JobId, JobState, LogLevel, PluginError};

use crate::{
    dws::{Call, DEPENDENCY, EPILOG, EVENT, PROLOG, Rabbits, Stage, gone, service::Unanswered},
    manager::Inner,
    resume::{Past, described, has_finished, has_started, past},
};

/// After how many seconds an eventlog is complete in the KVS: the job manager writes events in batches of 10 ms.
pub(super) const WRITTEN: f64 = 0.5;

/// After how many seconds the service is asked again, if it was not there; and an eventlog, if it could not be read.
pub(super) const AGAIN: f64 = 5.0;

/// There is no such key. It is removed to learn when all is written that was to be written before.
const NO_KEY: &str = "dws-jobtap-was-here";

const LEFT_PROLOGS: &CStr = c"workflow-token::dws-prologs";
const LEFT_EPILOGS: &CStr = c"workflow-token::dws-epilogs";
const LEFT_EPILOGS_DONE: &CStr = c"workflow-token::dws-epilogs-done";
const LEFT_STARTED: &CStr = c"workflow-token::dws-started";
const LEFT_TO_TEAR_DOWN: &CStr = c"workflow-token::dws-to-tear-down";
const LEFT_TO_SET_UP: &CStr = c"workflow-token::dws-to-set-up";
/// Jobs that are held until their eventlogs are read.
const LEFT_HELD_IN_PROLOG: &CStr = c"workflow-token::dws-held-in-prolog";
const LEFT_HELD_IN_EPILOG: &CStr = c"workflow-token::dws-held-in-epilog";
/// Jobs whose stages are known. Of those that had no resources yet nothing is: what comes in between may have handled them.
const LEFT_KNOWN: &CStr = c"workflow-token::dws-known";
/// Jobs that may have a workflow which nobody has torn down yet.
const LEFT_WITH_WORKFLOWS: &CStr = c"workflow-token::dws-with-workflows";
/// Those of them that are inactive, of whose end the service has heard, and may have heard.
const LEFT_GONE_TOLD: &CStr = c"workflow-token::dws-gone-told";
const LEFT_GONE_ASKED: &CStr = c"workflow-token::dws-gone-asked";

/// What the plugin that was loaded before left.
pub(super) struct Left {
    prologs: HashSet<JobId>,
    epilogs: HashSet<JobId>,
    epilogs_done: HashSet<JobId>,
    to_set_up: HashSet<JobId>,
    to_tear_down: HashSet<JobId>,
    started: HashSet<JobId>,
    held_in_prolog: HashSet<JobId>,
    held_in_epilog: HashSet<JobId>,
    known: HashSet<JobId>,
    gone: gone::Left,
}

impl Left {
    pub fn gone(&self) -> &gone::Left {
        &self.gone
    }

    /// Nothing where no plugin was loaded into this job manager.
    pub fn of(inner: &Inner) -> Option<Self> {
        let set = |name: &CStr| -> HashSet<JobId> {
            let left = inner.flux().left_jobs(name);
            left.unwrap_or_default().into_iter().collect()
        };
        inner.flux().left_jobs(LEFT_KNOWN)?;
        Some(Self {
            prologs: set(LEFT_PROLOGS),
            epilogs: set(LEFT_EPILOGS),
            epilogs_done: set(LEFT_EPILOGS_DONE),
            to_set_up: set(LEFT_TO_SET_UP),
            to_tear_down: set(LEFT_TO_TEAR_DOWN),
            started: set(LEFT_STARTED),
            held_in_prolog: set(LEFT_HELD_IN_PROLOG),
            held_in_epilog: set(LEFT_HELD_IN_EPILOG),
            known: set(LEFT_KNOWN),
            gone: gone::Left {
                with_workflows: set(LEFT_WITH_WORKFLOWS).into_iter().collect(),
                told: set(LEFT_GONE_TOLD).into_iter().collect(),
                asked: set(LEFT_GONE_ASKED).into_iter().collect(),
            },
        })
    }
}

impl Rabbits {
    /// Leaves what the next plugin is to know. Who waits for an answer hears that it will not come.
    /// Returns the jobs for whose records it was being looked.
    pub(super) fn leave(&self) -> Vec<JobId> {
        if !self.inner.active.get() {
            return Vec::new();
        }
        let jobs = std::mem::take(&mut *self.jobs.borrow_mut());
        let those = |f: fn(&super::Rabbit) -> bool| -> Vec<JobId> {
            let jobs = jobs.iter().filter(|(_, rabbit)| f(rabbit));
            jobs.map(|(job, _)| *job).collect()
        };
        let which = |f: fn(&super::Rabbit) -> bool| -> Vec<JobId> {
            let mut known = those(|rabbit| rabbit.unread.is_none());
            known.retain(|job| jobs.get(job).is_some_and(f));
            known
        };
        let flux = self.inner.flux();
        flux.leave_jobs(LEFT_PROLOGS, &which(|rabbit| rabbit.prolog == Stage::Outstanding));
        flux.leave_jobs(LEFT_EPILOGS, &which(|rabbit| rabbit.epilog == Stage::Outstanding));
        flux.leave_jobs(LEFT_EPILOGS_DONE, &which(|rabbit| rabbit.epilog == Stage::Finished));
        flux.leave_jobs(LEFT_TO_SET_UP, &which(|rabbit| rabbit.setup_to_come));
        flux.leave_jobs(LEFT_TO_TEAR_DOWN, &which(|rabbit| rabbit.post_run_to_come));
        flux.leave_jobs(LEFT_STARTED, &which(|rabbit| rabbit.started));
        flux.leave_jobs(LEFT_HELD_IN_PROLOG, &those(|rabbit| rabbit.held_in_prolog));
        flux.leave_jobs(LEFT_HELD_IN_EPILOG, &those(|rabbit| rabbit.held));
        let had_resources = |rabbit: &super::Rabbit| (rabbit.prolog, rabbit.epilog) != (Stage::ToCome, Stage::ToCome);
        flux.leave_jobs(LEFT_KNOWN, &which(had_resources));
        let mut with_workflows = those(|rabbit| rabbit.epilog != Stage::Finished);
        let gone = self.gone.leave();
        with_workflows.extend(gone.with_workflows);
        flux.leave_jobs(LEFT_WITH_WORKFLOWS, &with_workflows);
        flux.leave_jobs(LEFT_GONE_TOLD, &Vec::from_iter(gone.told));
        flux.leave_jobs(LEFT_GONE_ASKED, &Vec::from_iter(gone.asked));
        let looking = those(|rabbit| rabbit.looking);
        drop(jobs);
        looking
    }

    /// Leaves those with the deliveries that are under way, which the engine has left.
    pub(super) fn leave_looking(&self, looking: Vec<JobId>) {
        if looking.is_empty() {
            return;
        }
        let flux = self.inner.flux();
        let mut in_flight = flux.left_jobs(self.inner.kind.left_in_flight).unwrap_or_default();
        in_flight.extend(looking);
        flux.leave_jobs(self.inner.kind.left_in_flight, &in_flight);
    }

    /// `job.new`: of a job that has just been submitted, or of one from before.
    pub(super) fn job_new(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        let Some((_, _, state)) = args.job_owner_state() else {
            return Ok(());
        };
        if matches!(state, JobState::New | JobState::Inactive) {
            return Ok(());
        }
        let Some(job) = self.rabbit_job(args) else {
            return Ok(());
        };
        self.with(job, |rabbit| (rabbit.from_before, rabbit.created) = (true, true));
        self.subscribe(job)?;
        if state == JobState::Pending {
            return Ok(());
        }
        if state == JobState::Depend {
            self.with(job, |rabbit| rabbit.unread = Some(Vec::new()));
            self.read_eventlog(job, WRITTEN);
            return Ok(());
        }
        // It is active: its record, if it has one, is not to be removed yet.
        self.inner.ended_meanwhile.borrow_mut().remove(&job);
        let (same_manager, known, held_in_prolog, held_in_epilog) = {
            let left = self.left.borrow();
            let is_in =
                |which: fn(&Left) -> &HashSet<JobId>| left.as_ref().is_some_and(|left| which(left).contains(&job));
            (
                left.is_some(),
                is_in(|left| &left.known),
                is_in(|left| &left.held_in_prolog),
                is_in(|left| &left.held_in_epilog),
            )
        };
        if known {
            return self.take_up(job, state);
        }
        self.with(job, |rabbit| {
            rabbit.unread = Some(Vec::new());
            rabbit.held_in_prolog = held_in_prolog;
        });
        self.read_eventlog(job, WRITTEN);
        if state == JobState::Run && same_manager && !held_in_prolog && !self.has_started(job) {
            // After a restart, Flux does not tell whether it has started.
            let held = self.jobtap().prolog_start(PROLOG).is_ok();
            self.with(job, |rabbit| rabbit.held_in_prolog = held);
        }
        if state == JobState::Cleanup {
            let posted = |event| self.jobtap().was_posted(job, event);
            // Of shells from before a restart nothing is heard, unless the job was in RUN after it.
            let over = posted(c"finish") || !(posted(c"start") || posted(c"exception"));
            self.with(job, |rabbit| (rabbit.over, rabbit.held) = (over, true));
            if held_in_epilog {
                self.with(job, |rabbit| {
                    (rabbit.epilog, rabbit.post_run_to_come) = (Stage::Outstanding, true);
                });
                return Ok(());
            }
            return self.start_epilog(job);
        }
        Ok(())
    }

    /// A job that the plugin before this one knew.
    fn take_up(self: &Rc<Self>, job: JobId, state: JobState) -> Result<(), PluginError> {
        let (prolog, epilog, to_set_up, started) = {
            let left = self.left.borrow();
            let is_in =
                |which: fn(&Left) -> &HashSet<JobId>| left.as_ref().is_some_and(|left| which(left).contains(&job));
            let stage = |outstanding, finished| match (outstanding, finished) {
                (true, _) => Stage::Outstanding,
                (false, true) => Stage::Finished,
                (false, false) => Stage::ToCome,
            };
            (
                stage(is_in(|left| &left.prologs), true),
                stage(is_in(|left| &left.epilogs), is_in(|left| &left.epilogs_done)),
                is_in(|left| &left.to_set_up),
                is_in(|left| &left.started),
            )
        };
        self.with(job, |rabbit| rabbit.started = started);
        // The plugin of flux-coral2, loaded in between, finishes the prologs of jobs that it did not know, and posts the event.
        let prolog = if self.has_started(job) || self.jobtap().was_posted(job, EVENT) {
            Stage::Finished
        } else {
            prolog
        };
        let (in_flight, had_record) = {
            let left = self.inner.left.borrow();
            let left = left.as_ref();
            (
                left.is_some_and(|left| left.in_flight.contains(&job)),
                left.is_some_and(|left| left.delivered.contains(&job)),
            )
        };
        if had_record || in_flight {
            self.inner.delivered.borrow_mut().insert(job);
        }
        self.with(job, |rabbit| (rabbit.prolog, rabbit.epilog) = (prolog, epilog));
        if state == JobState::Cleanup {
            return self.take_up_cleanup(job, epilog);
        }
        if prolog == Stage::Outstanding && in_flight {
            self.look_for_record(job);
        } else if prolog == Stage::Outstanding && to_set_up {
            self.set_up(job);
        }
        Ok(())
    }

    /// What the service sent was in memory only, but may have been sealed and committed when the plugin was removed.
    fn look_for_record(self: &Rc<Self>, job: JobId) {
        self.with(job, |rabbit| rabbit.looking = true);
        let written = self.commit_nothing();
        let sent = self.call(job, Call::Record, written, move |me, future| {
            let asked = job.kvs_key(me.inner.kind.key);
            let asked = asked.and_then(|key| match future.get() {
                Ok(()) => me.inner.flux().lookup(&key),
                Err(e) => Err(std::io::Error::other(e.to_string())),
            });
            let sent = me.call(job, Call::Record, asked, move |me, future| {
                let record = future.value().ok().flatten();
                me.looked_for_record(job, record.and_then(|text| seal::Record::from_json(&text).ok()));
            });
            if sent.is_err() {
                me.looked_for_record(job, None);
            }
        });
        if sent.is_err() {
            self.looked_for_record(job, None);
        }
    }

    fn looked_for_record(&self, job: JobId, record: Option<seal::Record>) {
        let looking = self.with(job, |rabbit| std::mem::take(&mut rabbit.looking));
        if !looking || self.with(job, |rabbit| rabbit.prolog != Stage::Outstanding) {
            return;
        }
        match record {
            Some(record) => {
                self.inner.stats.borrow_mut().resumed += 1;
                self.delivered(job, record.variables());
            }
            None => {
                self.inner.stats.borrow_mut().failed += 1;
                self.fail_prolog(
                    job,
                    "the plugin dws-jobtap was removed while the environment of the job was being delivered: submit it \
                     again",
                );
            }
        }
    }

    /// When that is done, all is written that was to be written before.
    pub(super) fn commit_nothing(&self) -> std::io::Result<ffi::Future> {
        let mut transaction = ffi::Transaction::new()?;
        transaction.unlink(NO_KEY)?;
        self.inner.flux().commit(transaction)
    }

    /// Its prolog is finished last: nothing else may hold the job, which would be gone then.
    fn take_up_cleanup(self: &Rc<Self>, job: JobId, epilog: Stage) -> Result<(), PluginError> {
        let over = self.jobtap().was_posted(job, c"finish");
        let to_tear_down = {
            let left = self.left.borrow();
            left.as_ref().is_some_and(|left| left.to_tear_down.contains(&job))
        };
        self.with(job, |rabbit| {
            (rabbit.over, rabbit.post_run_to_come) = (over, to_tear_down);
        });
        let started = match epilog {
            Stage::Outstanding if to_tear_down => {
                self.send_post_run(job);
                Ok(())
            }
            Stage::Outstanding => {
                self.mind_epilog(job);
                Ok(())
            }
            // It ended while there was no plugin.
            Stage::ToCome if over || !self.has_started(job) => self.start_epilog(job),
            Stage::ToCome | Stage::Finished => Ok(()),
        };
        self.end_prolog(job);
        started
    }

    /// A job of which it is not known how far it is.
    fn read_eventlog(self: &Rc<Self>, job: JobId, seconds: f64) {
        let weak = Rc::downgrade(self);
        let later = self.inner.flux().after(seconds, move || {
            if let Some(me) = weak.upgrade() {
                me.unless_it_panics(job, || {
                    ffi::inject_fault("timer");
                    me.look_up_eventlog(job);
                });
            }
        });
        match later {
            Ok(later) => self.with(job, |rabbit| rabbit.later = Some(later)),
            Err(e) => self
                .inner
                .log(LogLevel::Err, &format!("{job}: no timer: {e}: load the plugin again")),
        }
    }

    fn look_up_eventlog(self: &Rc<Self>, job: JobId) {
        let written = self.commit_nothing();
        let sent = self.call(job, Call::Written, written, move |me, future| match future.get() {
            Ok(()) => me.look_up_what_is_written(job),
            Err(e) => me.unread(job, &e),
        });
        if let Err(e) = sent {
            self.unread(job, &e);
        }
    }

    fn look_up_what_is_written(self: &Rc<Self>, job: JobId) {
        let asked = job.kvs_key("eventlog").and_then(|key| self.inner.flux().lookup(&key));
        let sent = self.call(job, Call::Eventlog, asked, move |me, future| match future.value() {
            Ok(eventlog) => me.resume_from(job, &eventlog.unwrap_or_default()),
            Err(e) => me.unread(job, &e),
        });
        if let Err(e) = sent {
            self.unread(job, &e);
        }
    }

    /// It is asked for again: until then, the job may wait in its prolog or epilog.
    fn unread(self: &Rc<Self>, job: JobId, e: &dyn std::fmt::Display) {
        if self.with(job, |rabbit| rabbit.unread.is_some()) {
            let line = format!("{job}: its eventlog could not be read: {e}: trying again");
            self.inner.log(LogLevel::Err, &line);
            self.read_eventlog(job, AGAIN);
        }
    }

    fn resume_from(self: &Rc<Self>, job: JobId, eventlog: &str) {
        let Some(waiting) = self.with(job, |rabbit| rabbit.unread.take()) else {
            return;
        };
        match self.state(job) {
            Some(JobState::Depend) => self.resume_depend(job, eventlog),
            Some(state @ (JobState::Run | JobState::Cleanup)) => self.resume_run(job, state, eventlog),
            Some(JobState::New | JobState::Pending | JobState::Inactive) | None => {}
        }
        for f in waiting {
            f(self);
        }
    }

    /// Has the service create the workflow of a job that still waits for it, which may be there already.
    fn resume_depend(self: &Rc<Self>, job: JobId, eventlog: &str) {
        if self.with(job, |rabbit| rabbit.released) {
            return;
        }
        if was_released(eventlog) {
            // It waits for something else. Flux does not take the same dependency twice.
            self.with(job, |rabbit| rabbit.released = true);
            return;
        }
        let Some(args) = self.jobtap().lookup(job) else { return };
        // What failed was said to the job.
        let _ = self.hold(job).and_then(|()| self.ask_to_create(job, &args));
    }

    fn resume_run(self: &Rc<Self>, job: JobId, state: JobState, eventlog: &str) {
        let prolog = Stage::from(past(eventlog, "prolog", &PROLOG.to_string_lossy()));
        let held = self.with(job, |rabbit| {
            rabbit.started |= has_started(eventlog);
            rabbit.over |= has_finished(eventlog);
            rabbit.prolog = prolog;
            std::mem::take(&mut rabbit.held_in_prolog)
        });
        let is_new = if held {
            self.release_from_prolog(job, eventlog)
        } else {
            prolog == Stage::ToCome
        };
        if self.with(job, |rabbit| rabbit.prolog == Stage::Finished) {
            // There may be a record.
            self.inner.delivered.borrow_mut().insert(job);
        }
        if state == JobState::Cleanup {
            self.end_prolog(job);
            self.resume_epilog(job, eventlog);
        } else if is_new && held && was_released(eventlog) {
            self.set_up(job);
        } else if is_new && !self.has_started(job) {
            self.raise(
                job,
                c"dws",
                "the job was allocated before the plugin dws-jobtap was loaded: its rabbits are not set up: submit it again",
            );
        }
    }

    /// Finishes the prolog that was started to hold a job, if it had one before. Returns whether it had none.
    fn release_from_prolog(&self, job: JobId, eventlog: &str) -> bool {
        let (started, finished) = counts(eventlog, "prolog", &PROLOG.to_string_lossy());
        self.with(job, |rabbit| rabbit.prolog = Stage::Outstanding);
        if started > finished + 1 {
            // One of the two.
            if let Err(e) = self.jobtap().prolog_finish(job, PROLOG, 0) {
                let line = format!("{job}: one of its two prologs could not be finished: {e}");
                self.inner.log(LogLevel::Err, &line);
            }
        } else if started > 1 {
            // The other one is over. The log says what goes wrong.
            let _ = self.finish_prolog(job, 0);
        }
        started <= 1
    }

    /// A job in CLEANUP, which is held by an epilog that was started for that.
    fn resume_epilog(self: &Rc<Self>, job: JobId, eventlog: &str) {
        let held = self.with(job, |rabbit| std::mem::take(&mut rabbit.held));
        if held && self.in_epilog(job) {
            let (started, finished) = counts(eventlog, "epilog", &EPILOG.to_string_lossy());
            if started > finished + 1 {
                // It had one before. Whether the service was told, nobody knows; if it was, it has no use for it.
                self.with(job, |rabbit| (rabbit.over, rabbit.post_run_again) = (true, true));
                if let Err(e) = self.jobtap().epilog_finish(job, EPILOG, 0) {
                    let line = format!("{job}: one of its two epilogs could not be finished: {e}");
                    self.inner.log(LogLevel::Err, &line);
                }
            } else if started > 1 {
                // It is over. The log says what goes wrong.
                let _ = self.finish_epilog(job, 0);
                return;
            }
        }
        self.send_post_run(job);
    }

    /// Asks the service again, later: after a restart it may take longer to be there than the job manager.
    pub(super) fn again(self: &Rc<Self>, job: JobId, topic: &str, ask: impl Fn(&Rc<Self>, JobId) + 'static) {
        if !self.no_service.replace(true) {
            let line = format!("{job}: {topic}: {}: asking again", Unanswered::NoService.text());
            self.inner.log(LogLevel::Err, &line);
        }
        let weak = Rc::downgrade(self);
        let later = self.inner.flux().after(AGAIN, move || {
            if let Some(me) = weak.upgrade() {
                me.unless_it_panics(job, || ask(&me, job));
            }
        });
        match later {
            Ok(later) => self.with(job, |rabbit| rabbit.later = Some(later)),
            Err(e) => self.inner.log(LogLevel::Err, &format!("{job}: no timer: {e}")),
        }
    }

    pub(super) fn create_again(self: &Rc<Self>, job: JobId) {
        if self.with(job, |rabbit| rabbit.released) || self.state(job) != Some(JobState::Depend) {
            return;
        }
        if let Some(args) = self.jobtap().lookup(job) {
            // What failed was said to the job.
            let _ = self.ask_to_create(job, &args);
        }
    }

    /// Does something that depends on how far a job is, now or once that is known.
    pub(super) fn when_known(self: &Rc<Self>, job: JobId, f: impl FnOnce(&Rc<Self>) + 'static) {
        let mut jobs = self.jobs.borrow_mut();
        if let Some(waiting) = jobs.get_mut(&job).and_then(|rabbit| rabbit.unread.as_mut()) {
            waiting.push(Box::new(f));
            return;
        }
        drop(jobs);
        f(self);
    }
}

impl From<Past> for Stage {
    fn from(past: Past) -> Self {
        match past {
            Past::None => Stage::ToCome,
            Past::Outstanding => Stage::Outstanding,
            Past::Finished(_) => Stage::Finished,
        }
    }
}

/// Whether the dependency of a job was removed: its resources are known, and are in its jobspec.
fn was_released(eventlog: &str) -> bool {
    let name = DEPENDENCY.to_string_lossy();
    described(eventlog).any(|(event, description)| event == "dependency-remove" && description == name)
}

/// How many prologs or epilogs (`which`) of a description were started, and how many were finished.
fn counts(eventlog: &str, which: &str, description: &str) -> (usize, usize) {
    let (start, finish) = (format!("{which}-start"), format!("{which}-finish"));
    let (mut started, mut finished) = (0, 0);
    for (name, _) in described(eventlog).filter(|(_, described)| described == description) {
        started += usize::from(name == start);
        finished += usize::from(name == finish);
    }
    (started, finished)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_that_was_removed_is_known_though_it_was_added_again() {
        let line = |name: &str, description: &str| {
            format!("{{\"timestamp\":1.0,\"name\":\"{name}\",\"context\":{{\"description\":\"{description}\"}}}}\n")
        };
        let (add, remove) = (
            line("dependency-add", "dws-create"),
            line("dependency-remove", "dws-create"),
        );
        let other = [line("dependency-add", "after"), line("dependency-remove", "after")].concat();
        for (eventlog, released) in [
            (other.clone(), false),
            (add.clone() + &other, false),
            (add.clone() + &remove, true),
            (add.clone() + &remove + &add + &other, true),
        ] {
            assert_eq!(was_released(&eventlog), released, "{eventlog}");
        }
    }
}
