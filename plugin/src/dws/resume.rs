//! Rabbit jobs that were active when the plugin was loaded: from a plugin that was removed, from an earlier job manager, or
//! from the plugin of flux-coral2.
//!
//! Within one job manager, this plugin leaves with the handle where each job was. In all other cases the eventlog tells: it
//! is complete in the KVS after a restart; where another plugin was removed a moment ago it may be behind by a batch, so it
//! is read only after that batch is written.
//!
//! What is in CLEANUP then may be gone before its eventlog is read, so it is held by an epilog of its own meanwhile. If it
//! turns out to have had one, one of the two is finished.

use std::{collections::HashSet, ffi::CStr, rc::Rc};

use ffi::{Args, JobId, JobState, LogLevel, PluginError};

use crate::{
    dws::{Call, DEPENDENCY, EPILOG, PROLOG, Rabbits, Stage, Unanswered},
    manager::Inner,
    resume::{Past, described, has_finished, has_started, past},
};

/// After how many seconds an eventlog is complete in the KVS: the job manager writes events in batches of 10 ms.
const WRITTEN: f64 = 0.5;

/// After how many seconds the service is asked again, if it was not there; and an eventlog, if it could not be read.
const AGAIN: f64 = 5.0;

/// There is no such key. It is removed to learn when all is written that was to be written before.
const NO_KEY: &str = "dws-jobtap-was-here";

const LEFT_PROLOGS: &CStr = c"workflow-token::dws-prologs";
const LEFT_EPILOGS: &CStr = c"workflow-token::dws-epilogs";
const LEFT_EPILOGS_DONE: &CStr = c"workflow-token::dws-epilogs-done";
const LEFT_STARTED: &CStr = c"workflow-token::dws-started";
const LEFT_TO_TEAR_DOWN: &CStr = c"workflow-token::dws-to-tear-down";
const LEFT_TO_SET_UP: &CStr = c"workflow-token::dws-to-set-up";
/// All jobs whose stages are known.
const LEFT_KNOWN: &CStr = c"workflow-token::dws-known";

/// What the plugin that was loaded before left.
pub(super) struct Left {
    prologs: HashSet<JobId>,
    epilogs: HashSet<JobId>,
    epilogs_done: HashSet<JobId>,
    to_set_up: HashSet<JobId>,
    to_tear_down: HashSet<JobId>,
    started: HashSet<JobId>,
    known: HashSet<JobId>,
}

impl Left {
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
            known: set(LEFT_KNOWN),
        })
    }
}

impl Rabbits {
    /// Leaves what the next plugin is to know. Who waits for an answer hears that it will not come.
    pub(super) fn leave(&self) {
        if !self.inner.active.get() {
            return;
        }
        let jobs = std::mem::take(&mut *self.jobs.borrow_mut());
        let which = |f: fn(&super::Rabbit) -> bool| -> Vec<JobId> {
            let jobs = jobs.iter().filter(|(_, rabbit)| rabbit.unread.is_none() && f(rabbit));
            jobs.map(|(job, _)| *job).collect()
        };
        let flux = self.inner.flux();
        flux.leave_jobs(LEFT_PROLOGS, &which(|rabbit| rabbit.prolog == Stage::Outstanding));
        flux.leave_jobs(LEFT_EPILOGS, &which(|rabbit| rabbit.epilog == Stage::Outstanding));
        flux.leave_jobs(LEFT_EPILOGS_DONE, &which(|rabbit| rabbit.epilog == Stage::Finished));
        flux.leave_jobs(LEFT_TO_SET_UP, &which(|rabbit| rabbit.setup_to_come));
        flux.leave_jobs(LEFT_TO_TEAR_DOWN, &which(|rabbit| rabbit.post_run_to_come));
        flux.leave_jobs(LEFT_STARTED, &which(|rabbit| rabbit.started));
        flux.leave_jobs(LEFT_KNOWN, &which(|_| true));
        drop(jobs);
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
        let known = self
            .left
            .borrow()
            .as_ref()
            .is_some_and(|left| left.known.contains(&job));
        if known {
            return self.take_up(job, state);
        }
        self.with(job, |rabbit| rabbit.unread = Some(Vec::new()));
        self.read_eventlog(job, WRITTEN);
        if state == JobState::Cleanup {
            let posted = |event| self.jobtap().was_posted(job, event);
            // Of shells from before a restart nothing is heard, unless the job was in RUN after it.
            let over = posted(c"finish") || !(posted(c"start") || posted(c"exception"));
            self.with(job, |rabbit| (rabbit.over, rabbit.held) = (over, true));
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
            // In RUN, a prolog that is not outstanding is over, unless the job came there while there was no plugin.
            let prolog = stage(is_in(|left| &left.prologs), true);
            let epilog = stage(is_in(|left| &left.epilogs), is_in(|left| &left.epilogs_done));
            (
                prolog,
                epilog,
                is_in(|left| &left.to_set_up),
                is_in(|left| &left.started),
            )
        };
        self.with(job, |rabbit| rabbit.started = started);
        let has_run = self.has_started(job);
        let in_flight = {
            let left = self.inner.left.borrow();
            left.as_ref().is_some_and(|left| left.in_flight.contains(&job))
        };
        let had_record = {
            let left = self.inner.left.borrow();
            left.as_ref().is_some_and(|left| left.delivered.contains(&job))
        };
        if had_record || in_flight {
            self.inner.delivered.borrow_mut().insert(job);
        }
        // A job of DEPEND or SCHED may have come to RUN meanwhile: then nothing held it, or another prolog does.
        let never_ran = !had_record && prolog == Stage::Finished && state == JobState::Run;
        if never_ran && !has_run && self.jobtap().prolog_start(PROLOG).is_ok() {
            self.with(job, |rabbit| rabbit.prolog = Stage::Outstanding);
            self.set_up(job);
            return Ok(());
        }
        self.with(job, |rabbit| (rabbit.prolog, rabbit.epilog) = (prolog, epilog));
        if state == JobState::Cleanup {
            return self.take_up_cleanup(job, epilog);
        }
        if prolog == Stage::Outstanding && in_flight {
            // What the service sent was in memory only.
            self.inner.stats.borrow_mut().failed += 1;
            self.fail_prolog(
                job,
                "the plugin dws-jobtap was removed while the environment of the job was being delivered: submit it again",
            );
        } else if prolog == Stage::Outstanding && to_set_up {
            self.set_up(job);
        }
        Ok(())
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
                me.look_up_eventlog(job);
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
        let written = ffi::Transaction::new().and_then(|mut transaction| {
            transaction.unlink(NO_KEY)?;
            self.inner.flux().commit(transaction)
        });
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
        self.with(job, |rabbit| {
            rabbit.started |= has_started(eventlog);
            rabbit.over |= has_finished(eventlog);
            rabbit.prolog = prolog;
        });
        if prolog == Stage::Finished {
            // There may be a record.
            self.inner.delivered.borrow_mut().insert(job);
        }
        if state == JobState::Cleanup {
            self.end_prolog(job);
            self.resume_epilog(job, eventlog);
        } else if prolog == Stage::ToCome && !self.has_started(job) {
            self.raise(
                job,
                c"dws",
                "the job was allocated before the plugin dws-jobtap was loaded: its rabbits are not set up: submit it again",
            );
        }
    }

    /// A job in CLEANUP, which is held by an epilog that was started for that.
    fn resume_epilog(self: &Rc<Self>, job: JobId, eventlog: &str) {
        let held = self.with(job, |rabbit| std::mem::take(&mut rabbit.held));
        if held && self.in_epilog(job) {
            let (mut started, mut finished) = (0_usize, 0_usize);
            for (name, description) in described(eventlog) {
                if description == EPILOG.to_string_lossy() {
                    started += usize::from(name == "epilog-start");
                    finished += usize::from(name == "epilog-finish");
                }
            }
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
                ask(&me, job);
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
