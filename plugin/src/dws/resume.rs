//! Rabbit jobs that were active when the plugin was loaded: from a plugin that was removed, from an earlier job manager, or
//! from the plugin of flux-coral2.
//!
//! Within one job manager, this plugin leaves with the handle where each job was. In all other cases the eventlog tells: it
//! is complete in the KVS after a restart; where another plugin was removed a moment ago it may be behind by a batch, so it
//! is read only after that batch is written.

use std::{collections::HashSet, ffi::CStr, rc::Rc};

use ffi::{Args, JobId, JobState, LogLevel, PluginError};

use crate::{
    dws::{Call, EPILOG, PROLOG, Rabbits, Stage},
    manager::Inner,
    resume::{Past, has_finished, has_started, past},
};

/// After how many seconds an eventlog is complete in the KVS: the job manager writes events in batches of 10 ms.
const WRITTEN: f64 = 0.5;

/// After how many seconds a job in DEPEND gets its callback, if at all: it comes when a plugin is loaded, not when jobs are
/// replayed after a restart.
const CALLED: f64 = 0.5;

/// After how many seconds the service is asked again, if it was not there.
pub(super) const NO_SERVICE: f64 = 5.0;

const LEFT_PROLOGS: &CStr = c"workflow-token::dws-prologs";
const LEFT_EPILOGS: &CStr = c"workflow-token::dws-epilogs";
const LEFT_EPILOGS_DONE: &CStr = c"workflow-token::dws-epilogs-done";
const LEFT_STARTED: &CStr = c"workflow-token::dws-started";
const LEFT_TO_SET_UP: &CStr = c"workflow-token::dws-to-set-up";
/// All jobs whose stages are known.
const LEFT_KNOWN: &CStr = c"workflow-token::dws-known";

/// What the plugin that was loaded before left.
pub(super) struct Left {
    prologs: HashSet<JobId>,
    epilogs: HashSet<JobId>,
    epilogs_done: HashSet<JobId>,
    to_set_up: HashSet<JobId>,
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
        flux.leave_jobs(LEFT_STARTED, &which(|rabbit| rabbit.started));
        flux.leave_jobs(LEFT_KNOWN, &which(|_| true));
        for request in jobs.into_values().flat_map(|rabbit| rabbit.requests) {
            self.answer(request, Err("the plugin dws-jobtap is being removed".to_owned()));
        }
    }

    /// `job.new`: of a job that has just been submitted, or of one from before.
    pub(super) fn job_new(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        let Some((_, _, state)) = args.job_owner_state() else {
            return Ok(());
        };
        if !matches!(state, JobState::Depend | JobState::Run | JobState::Cleanup) {
            return Ok(());
        }
        let Some(job) = self.rabbit_job(args) else {
            return Ok(());
        };
        self.with(job, |rabbit| rabbit.from_before = true);
        self.subscribe(job)?;
        if state == JobState::Depend {
            self.create_later(job, CALLED);
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
            self.take_up(job, state)
        } else {
            self.read_eventlog(job)
        }
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
            self.end_prolog(job);
            if epilog == Stage::Outstanding {
                self.mind_epilog(job);
            }
            // It ended while there was no plugin.
            if !has_run || self.jobtap().was_posted(job, c"finish") {
                return self.start_epilog(job, has_run);
            }
            return Ok(());
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

    /// A job that no plugin of this kind knew.
    fn read_eventlog(self: &Rc<Self>, job: JobId) -> Result<(), PluginError> {
        self.with(job, |rabbit| rabbit.unread = Some(Vec::new()));
        let weak = Rc::downgrade(self);
        let later = self.inner.flux().after(WRITTEN, move || {
            if let Some(me) = weak.upgrade() {
                me.look_up_eventlog(job);
            }
        });
        match later {
            Ok(later) => self.with(job, |rabbit| rabbit.later = Some(later)),
            Err(e) => self.unread(job, &e),
        }
        Ok(())
    }

    fn look_up_eventlog(self: &Rc<Self>, job: JobId) {
        let asked = job.kvs_key("eventlog").and_then(|key| self.inner.flux().lookup(&key));
        let sent = self.call(job, Call::Eventlog, asked, move |me, future| match future.value() {
            Ok(eventlog) => me.resume_from(job, &eventlog.unwrap_or_default()),
            Err(e) => me.unread(job, &e),
        });
        if let Err(e) = sent {
            self.unread(job, &e);
        }
    }

    fn unread(&self, job: JobId, e: &dyn std::fmt::Display) {
        let line =
            format!("{job}: its eventlog could not be read: {e}: if it waits in its prolog or epilog, load again");
        self.inner.log(LogLevel::Err, &line);
    }

    fn resume_from(self: &Rc<Self>, job: JobId, eventlog: &str) {
        let Some(waiting) = self.with(job, |rabbit| rabbit.unread.take()) else {
            return;
        };
        let stage = |past| match past {
            Past::None => Stage::ToCome,
            Past::Outstanding => Stage::Outstanding,
            Past::Finished(_) => Stage::Finished,
        };
        let prolog = stage(past(eventlog, "prolog", &PROLOG.to_string_lossy()));
        let epilog = stage(past(eventlog, "epilog", &EPILOG.to_string_lossy()));
        let started = has_started(eventlog);
        self.with(job, |rabbit| {
            rabbit.started |= started;
            rabbit.prolog = prolog;
            // It may have begun since.
            if rabbit.epilog == Stage::ToCome {
                rabbit.epilog = epilog;
            }
        });
        let epilog = self.with(job, |rabbit| rabbit.epilog);
        if prolog == Stage::Finished {
            // There may be a record.
            self.inner.delivered.borrow_mut().insert(job);
        }
        match self.state(job) {
            Some(JobState::Run) if prolog == Stage::ToCome && !started => self.raise(
                job,
                c"dws",
                "the job was allocated before the plugin dws-jobtap was loaded: its rabbits are not set up: submit it again",
            ),
            Some(JobState::Cleanup) => {
                self.end_prolog(job);
                match epilog {
                    Stage::Outstanding if self.with(job, |rabbit| rabbit.timer.is_none()) => self.mind_epilog(job),
                    // Its shells may still be running: then its epilog begins when they have finished.
                    Stage::ToCome if !started || has_finished(eventlog) => self.start_epilog_soon(job, started),
                    _ => {}
                }
            }
            _ => {}
        }
        for f in waiting {
            f(self);
        }
    }

    /// An epilog can be started from within a callback about its job only, so one is brought about.
    fn start_epilog_soon(&self, job: JobId, has_run: bool) {
        self.with(job, |rabbit| rabbit.epilog_due = Some(has_run));
        let text = "it ended while the plugin dws-jobtap was not there: its rabbits are torn down now";
        if let Err(e) = self.jobtap().raise(job, c"dws", 3, text) {
            let line =
                format!("{job}: its epilog could not be started: {e}: see that its workflow is removed in Kubernetes");
            self.inner.log(LogLevel::Err, &line);
        }
    }

    /// Has the service create the workflow of a job from before, unless it was asked meanwhile. The workflow may be there
    /// already, which is no error then.
    pub(super) fn create_later(self: &Rc<Self>, job: JobId, seconds: f64) {
        let weak = Rc::downgrade(self);
        let later = self.inner.flux().after(seconds, move || {
            let Some(me) = weak.upgrade() else { return };
            if me.with(job, |rabbit| rabbit.asked) {
                return;
            }
            let Some(args) = me.jobtap().lookup(job) else { return };
            if args
                .job_owner_state()
                .is_some_and(|(_, _, state)| state == JobState::Depend)
            {
                // What failed was said to the job.
                let _ = me.ask_to_create(job, &args);
            }
        });
        match later {
            Ok(later) => self.with(job, |rabbit| rabbit.later = Some(later)),
            Err(e) => self.inner.log(LogLevel::Err, &format!("{job}: no timer: {e}")),
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
