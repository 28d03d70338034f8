//! Rabbit jobs that were active when the plugin was loaded: from a plugin that was removed, from an earlier job manager, or
//! from the plugin of flux-coral2.
//!
//! Within one job manager, this plugin leaves where each job was that had resources. In all other cases the eventlog tells.
//! What is in CLEANUP then may be gone before its eventlog is read, so it is held by an epilog of its own meanwhile. If it
//! turns out to have had one, one of the two is finished. What is in RUN, and came there while no plugin or another one was
//! loaded into this job manager, is held by a prolog in the same way.

use std::{ffi::CString, rc::Rc};

use ffi::{Args, JobId, JobState, LogLevel, PluginError};
use plugin::{Counter, Eventlog, Past, Perilog};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    AGAIN, Call, DEPENDENCY, EPILOG, EVENT, MEMO, MEMO_WORKFLOW, PROLOG, Rabbits, Waiting,
    lifecycle::{
        Epilog, EpilogEvent, Knowledge, KnowledgeEvent, Lifecycle, Machine, Prolog, PrologEvent, ShellsEvent, Workflow,
        WorkflowEvent,
    },
    orphans::LeftOrphan,
    service::Unanswered,
};

/// What is left for the next plugin.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Left {
    jobs: Vec<(JobId, Lifecycle)>,
    orphans: Vec<LeftOrphan>,
}

impl Rabbits {
    /// Returns what the next plugin is to know. Who waits for an answer hears that it will not come.
    pub(super) fn leave_jobs(&self) -> Value {
        let jobs = self.jobs.take();
        let left = Left {
            jobs: jobs.iter().map(|(job, rabbit)| (*job, rabbit.life)).collect(),
            orphans: self.orphans.leave(),
        };
        drop(jobs);
        serde_json::to_value(left).unwrap_or_default()
    }

    /// Takes what the plugin before this one left.
    pub(super) fn take_over(self: &Rc<Self>) {
        let left = self.engine.inherited::<Left>();
        let Some(Left { jobs, orphans }) = left else { return };
        let ended = jobs.iter().map(|(job, life)| {
            let mut epilog = life.epilog;
            epilog.on(EpilogEvent::Orphaned);
            LeftOrphan(*job, epilog)
        });
        self.take_up_orphans(ended.chain(orphans));
        *self.left.borrow_mut() = Some(jobs.into_iter().collect());
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
        let is_same_manager = self.left.borrow().is_some();
        let left = self.left.borrow_mut().as_mut().and_then(|left| left.remove(&job));
        let workflow = left.map(|left| left.workflow).unwrap_or_default();
        let life = Lifecycle::inherited(Some(Lifecycle {
            workflow,
            ..Lifecycle::default()
        }));
        self.with(job, |rabbit| rabbit.life = life);
        self.subscribe(job)?;
        match state {
            JobState::New | JobState::Pending | JobState::Inactive => return Ok(()),
            JobState::Depend => {
                self.read_eventlog(job);
                return Ok(());
            }
            JobState::Run | JobState::Cleanup => {}
        }
        // It is active: its record, if it has one, is not to be removed yet.
        self.engine.is_active_still(job);
        let left = left.unwrap_or_default();
        self.with(job, |rabbit| {
            rabbit.life = Lifecycle::inherited(Some(left));
        });
        // Of jobs that had no resources nothing is known: another plugin may have handled them since.
        if left.knowledge == Knowledge::Known && left.had_resources() {
            return self.take_up(job, state);
        }
        self.read_eventlog(job);
        if state == JobState::Run && is_same_manager && left.prolog != Prolog::Held && !self.has_started(job) {
            // After a restart, Flux does not tell whether it has started.
            if self.jobtap().prolog_start(PROLOG).is_ok() {
                self.on_prolog(job, PrologEvent::Held);
            }
        }
        if state == JobState::Cleanup {
            let posted = |event| self.jobtap().was_posted(job, event);
            // Of shells from before a restart nothing is heard, unless the job was in RUN after it.
            if posted(c"finish") || !(posted(c"start") || posted(c"exception")) {
                self.on_shells(job, ShellsEvent::Silent);
            }
            if left.epilog == Epilog::None {
                return self.start_epilog_as(job, EpilogEvent::Held);
            }
        }
        Ok(())
    }

    /// A job that the plugin before this one knew.
    fn take_up(self: &Rc<Self>, job: JobId, state: JobState) -> Result<(), PluginError> {
        let past = self.engine.past(job);
        if past.is_some_and(|past| past != Past::None) {
            self.engine.may_have_record(job);
        }
        // The plugin of flux-coral2, loaded in between, finishes the prologs of jobs that it did not know, and posts the event.
        if self.has_started(job) || self.jobtap().was_posted(job, EVENT) {
            self.on_prolog(job, PrologEvent::FoundFinished);
        }
        if state == JobState::Cleanup {
            return self.take_up_cleanup(job);
        }
        match self.life(job).prolog {
            Prolog::SetupDue | Prolog::Waiting if past == Some(Past::Outstanding) => self.look_for_record(job),
            Prolog::Looking => self.look_for_record(job),
            Prolog::SetupDue => self.set_up(job),
            Prolog::None | Prolog::Held | Prolog::Waiting | Prolog::Finished => {}
        }
        Ok(())
    }

    /// What the service sent was in memory only, but may have been sealed and committed when the plugin was removed.
    fn look_for_record(self: &Rc<Self>, job: JobId) {
        self.on_prolog(job, PrologEvent::LookedFor);
        let written = self.engine.commit_nothing();
        let sent = self.call(job, Call::Record, written, move |me, future| {
            let asked = CString::new(super::DWS.key).map_err(Into::into);
            let asked = asked
                .and_then(|key| job.kvs_key(&key))
                .and_then(|key| match future.get() {
                    Ok(()) => me.engine.flux().lookup(&key),
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
        if !self.on_prolog(job, PrologEvent::Answered) {
            return;
        }
        match record {
            Some(record) => {
                self.engine.deliveries.count(Counter::Resumed);
                self.delivered(job, record.variables());
            }
            None => {
                self.engine.deliveries.count(Counter::Failed);
                self.fail_prolog(
                    job,
                    "the plugin dws-jobtap was removed while the environment of the job was being delivered: submit it \
                     again",
                );
            }
        }
    }

    /// Its prolog is finished last: nothing else may hold the job, which would be gone then.
    fn take_up_cleanup(self: &Rc<Self>, job: JobId) -> Result<(), PluginError> {
        if self.jobtap().was_posted(job, c"finish") {
            self.on_shells(job, ShellsEvent::Silent);
        }
        let Lifecycle { epilog, shells, .. } = self.life(job);
        let started = match epilog {
            Epilog::Due | Epilog::DueAgain => {
                self.send_post_run(job);
                Ok(())
            }
            Epilog::Sent | Epilog::SentAgain => {
                self.mind_epilog(job);
                Ok(())
            }
            // It ended while there was no plugin.
            Epilog::None if shells.are_over() || !self.has_started(job) => self.start_epilog(job),
            Epilog::None | Epilog::Held | Epilog::Finished => Ok(()),
        };
        self.end_prolog(job);
        started
    }

    /// A job of which it is not known how far it is.
    fn read_eventlog(self: &Rc<Self>, job: JobId) {
        self.on(job, |life| &mut life.knowledge, KnowledgeEvent::Lost);
        self.engine.read_eventlog(job);
    }

    /// It is known how far a job is. Returns what is to be done now.
    pub(super) fn now_known(&self, job: JobId) -> Vec<Waiting> {
        self.engine.forget_eventlog(job);
        self.on(job, |life| &mut life.knowledge, KnowledgeEvent::Gained);
        self.with(job, |rabbit| std::mem::take(&mut rabbit.waiting))
    }

    /// The eventlog of a job was read.
    pub(super) fn resume_from(self: &Rc<Self>, job: JobId, eventlog: &Eventlog) {
        if self.life(job).knowledge == Knowledge::Known {
            return;
        }
        let waiting = self.now_known(job);
        let mut memos = eventlog.contexts(MEMO);
        if memos.any(|context| context.get(MEMO_WORKFLOW).is_some()) {
            self.on_workflow(job, WorkflowEvent::Created);
        }
        match self.engine.state(job) {
            Some(JobState::Depend) => self.resume_depend(job, eventlog),
            Some(state @ (JobState::Run | JobState::Cleanup)) => self.resume_run(job, state, eventlog),
            Some(JobState::New | JobState::Pending | JobState::Inactive) | None => {}
        }
        for f in waiting {
            f(self);
        }
    }

    /// Has the service create the workflow of a job that still waits for it, which may be there already.
    fn resume_depend(self: &Rc<Self>, job: JobId, eventlog: &Eventlog) {
        if self.life(job).workflow == Workflow::ResourcesKnown {
            return;
        }
        if eventlog.was_removed(&DEPENDENCY.to_string_lossy()) {
            // It waits for something else. Flux does not take the same dependency twice.
            self.on_workflow(job, WorkflowEvent::ResourcesKnown);
            return;
        }
        let Some(args) = self.jobtap().lookup(job) else { return };
        // What failed was said to the job.
        let _ = self.hold(job).and_then(|()| self.ask_to_create(job, &args));
    }

    fn resume_run(self: &Rc<Self>, job: JobId, state: JobState, eventlog: &Eventlog) {
        if eventlog.has_started() {
            self.on_shells(job, ShellsEvent::Started);
        }
        if eventlog.has_finished() {
            self.on_shells(job, ShellsEvent::Finished);
        }
        let is_held = self.life(job).prolog == Prolog::Held;
        let is_first = if is_held {
            self.release_from_prolog(job, eventlog)
        } else {
            match eventlog.past(Perilog::Prolog, &PROLOG.to_string_lossy()) {
                Past::None => true,
                Past::Outstanding => {
                    self.on_prolog(job, PrologEvent::FoundOutstanding);
                    false
                }
                Past::Finished(_) => {
                    self.on_prolog(job, PrologEvent::FoundFinished);
                    false
                }
            }
        };
        if self.life(job).prolog == Prolog::Finished {
            // There may be a record.
            self.engine.may_have_record(job);
        }
        let resources_are_known = eventlog.was_removed(&DEPENDENCY.to_string_lossy());
        if state == JobState::Cleanup {
            self.end_prolog(job);
            self.resume_epilog(job, eventlog);
        } else if is_first && is_held && resources_are_known {
            self.set_up(job);
        } else if is_first && !self.has_started(job) {
            self.raise(
                job,
                c"dws",
                "the job was allocated before the plugin dws-jobtap was loaded: its rabbits are not set up: submit it again",
            );
        }
    }

    /// Finishes the prolog that was started to hold a job, if it had one before. Returns whether it had none.
    fn release_from_prolog(&self, job: JobId, eventlog: &Eventlog) -> bool {
        let (started, finished) = eventlog.counts(Perilog::Prolog, &PROLOG.to_string_lossy());
        if started > finished + 1 {
            // One of the two.
            self.on_prolog(job, PrologEvent::FoundOutstanding);
            if let Err(e) = self.jobtap().prolog_finish(job, PROLOG, 0) {
                let line = format!("{job}: one of its two prologs could not be finished: {e}");
                self.engine.log(LogLevel::Err, &line);
            }
        } else if started > 1 {
            // The other one is over. The log says what goes wrong.
            self.on_prolog(job, PrologEvent::FoundOutstanding);
            let _ = self.finish_prolog(job, 0);
        } else {
            self.on_prolog(job, PrologEvent::Started);
        }
        started <= 1
    }

    /// A job in CLEANUP, which is held by an epilog that was started for that.
    fn resume_epilog(self: &Rc<Self>, job: JobId, eventlog: &Eventlog) {
        if self.life(job).epilog == Epilog::Held {
            let (started, finished) = eventlog.counts(Perilog::Epilog, &EPILOG.to_string_lossy());
            if started > finished + 1 {
                // It had one before. Whether the service was told, nobody knows; if it was, it has no use for it.
                self.on_shells(job, ShellsEvent::Silent);
                self.on_epilog(job, EpilogEvent::FoundOutstanding);
                if let Err(e) = self.jobtap().epilog_finish(job, EPILOG, 0) {
                    let line = format!("{job}: one of its two epilogs could not be finished: {e}");
                    self.engine.log(LogLevel::Err, &line);
                }
            } else if started > 1 {
                // It is over. The log says what goes wrong.
                let _ = self.finish_epilog(job, 0);
                return;
            } else {
                self.on_epilog(job, EpilogEvent::Started);
            }
        }
        self.send_post_run(job);
    }

    /// Asks the service again, later: after a restart it may take longer to be there than the job manager.
    pub(super) fn again(self: &Rc<Self>, job: JobId, topic: &str, ask: impl Fn(&Rc<Self>, JobId) + 'static) {
        self.say_that_there_is_no_service(job, topic);
        let weak = Rc::downgrade(self);
        let later = self.engine.flux().after(AGAIN, move || {
            if let Some(me) = weak.upgrade() {
                me.unless_it_panics(job, || ask(&me, job));
            }
        });
        match later {
            Ok(later) => self.with(job, |rabbit| rabbit.later = Some(later)),
            Err(e) => self.engine.log(LogLevel::Err, &format!("{job}: no timer: {e}")),
        }
    }

    /// Says so once, until it is there again.
    pub(super) fn say_that_there_is_no_service(&self, job: JobId, topic: &str) {
        if !self.no_service.replace(true) {
            let line = format!("{job}: {topic}: {}: asking again", Unanswered::NoService.text());
            self.engine.log(LogLevel::Err, &line);
        }
    }

    pub(super) fn create_again(self: &Rc<Self>, job: JobId) {
        let is_known = self.life(job).workflow == Workflow::ResourcesKnown;
        if is_known || self.engine.state(job) != Some(JobState::Depend) {
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
        if let Some(rabbit) = jobs
            .get_mut(&job)
            .filter(|rabbit| rabbit.life.knowledge == Knowledge::Reading)
        {
            rabbit.waiting.push(Box::new(f));
            return;
        }
        drop(jobs);
        f(self);
    }
}
