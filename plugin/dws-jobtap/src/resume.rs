// SPDX-License-Identifier: MIT OR Apache-2.0

//! Resumes rabbit jobs that were active when the plugin was loaded: those of a removed plugin, of an earlier job
//! manager, or of the plugin of flux-coral2.
//!
//! Within one job manager, the handover contains the state of each job with resources. In all other cases, the eventlog
//! is read. A job in CLEANUP may end before that, so an epilog holds it. If the job already had an epilog, one of the
//! two is finished. In the same way, a prolog holds a job in RUN that entered it while no plugin, or another one, was
//! loaded in this job manager.

use std::{ffi::CString, rc::Rc};

use ffi::{Args, JobId, JobState, LogLevel, PluginError};
use plugin::{Counter, Eventlog, Past, Perilog};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    lifecycle::{
        Epilog, EpilogEvent, Knowledge, Lifecycle, Machine, Prolog, PrologEvent, ShellsEvent, Workflow, WorkflowEvent,
    },
    orphans::OrphanState,
    rabbit_jobs::{Call, DEPENDENCY, DWS, EPILOG, EVENT, MEMO, MEMO_WORKFLOW, PROLOG, RabbitJobs},
};

/// The plugin's own part of the handover.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RabbitHandover {
    jobs: Vec<(JobId, Lifecycle)>,
    orphans: Vec<OrphanState>,
}

impl RabbitJobs {
    /// Returns the state of all jobs for the handover. Pending requests of the service get an error.
    pub fn leave_jobs(&self) -> Value {
        let jobs = self.jobs.take();
        let left = RabbitHandover {
            jobs: jobs.iter().map(|(job, rabbit)| (*job, rabbit.life)).collect(),
            orphans: self.orphans.leave(),
        };
        drop(jobs);
        serde_json::to_value(left).unwrap_or_default()
    }

    /// Takes over the handover of the former plugin.
    pub fn take_over(self: &Rc<Self>) {
        let left = self.engine.inherited::<RabbitHandover>();
        let Some(RabbitHandover { jobs, orphans }) = left else {
            return;
        };
        let ended = jobs.iter().map(|(job, life)| {
            let mut epilog = life.epilog;
            epilog.on(EpilogEvent::Orphaned);
            OrphanState(*job, epilog)
        });
        self.take_up_orphans(ended.chain(orphans));
        *self.inherited.borrow_mut() = Some(jobs.into_iter().collect());
    }

    /// `job.new`: resumes an active job. Flux calls it for each active job on load, and for each submitted job.
    pub fn job_new(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        let Some((_, _, state)) = args.job_owner_state() else {
            return Ok(());
        };
        if matches!(state, JobState::New | JobState::Inactive) {
            return Ok(());
        }
        let Some(job) = self.rabbit_job(args) else {
            return Ok(());
        };
        let is_same_manager = self.inherited.borrow().is_some();
        let left = self.inherited.borrow_mut().as_mut().and_then(|left| left.remove(&job));
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
        // The job is active, so its record must not be removed.
        self.engine.is_active_still(job);
        let left = left.unwrap_or_default();
        self.with(job, |rabbit| {
            rabbit.life = Lifecycle::inherited(Some(left));
        });
        // Another plugin may have handled jobs without resources meanwhile.
        if left.knowledge == Knowledge::Known && left.had_resources() {
            return self.take_up(job, state);
        }
        self.read_eventlog(job);
        if state == JobState::Run && is_same_manager && left.prolog != Prolog::Held && !self.has_started(job) {
            // After a restart, Flux does not know whether the job has started.
            if self.jobtap().prolog_start(PROLOG).is_ok() {
                self.on_prolog(job, PrologEvent::Held);
            }
        }
        if state == JobState::Cleanup {
            let posted = |event| self.jobtap().was_posted(job, event);
            // There are no events of shells from before a restart, unless the job was in RUN after it.
            if posted(c"finish") || !(posted(c"start") || posted(c"exception")) {
                self.on_shells(job, ShellsEvent::Silent);
            }
            if left.epilog == Epilog::None {
                return self.start_epilog_as(job, EpilogEvent::Held);
            }
        }
        Ok(())
    }

    /// Resumes a job of the handover.
    fn take_up(self: &Rc<Self>, job: JobId, state: JobState) -> Result<(), PluginError> {
        let past = self.engine.past(job);
        if past.is_some_and(|past| past != Past::None) {
            self.engine.may_have_record(job);
        }
        // If the plugin of flux-coral2 was loaded in between, it finished the prologs of unknown jobs and posted the
        // event.
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

    /// Looks up the record of a job. Its variables were only in memory, but may have been sealed and committed.
    fn look_for_record(self: &Rc<Self>, job: JobId) {
        self.on_prolog(job, PrologEvent::LookedFor);
        let written = self.engine.commit_nothing();
        let sent = self.call(job, Call::Record, written, move |me, future| {
            let asked = CString::new(DWS.key).map_err(Into::into);
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

    /// Resumes a job in CLEANUP. Its prolog is finished last, because nothing else may hold the job.
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
                self.start_epilog_timer(job);
                Ok(())
            }
            // The job ended while no plugin was loaded.
            Epilog::None if shells.are_over() || !self.has_started(job) => self.start_epilog(job),
            Epilog::None | Epilog::Held | Epilog::Finished => Ok(()),
        };
        self.end_prolog(job);
        started
    }

    /// Resumes a job whose eventlog was read.
    pub fn resume_from(self: &Rc<Self>, job: JobId, eventlog: &Eventlog) {
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

    /// Makes the service create the workflow of a job that still waits for it. The workflow may already exist.
    fn resume_depend(self: &Rc<Self>, job: JobId, eventlog: &Eventlog) {
        if self.life(job).workflow == Workflow::ResourcesKnown {
            return;
        }
        if eventlog.was_removed(&DEPENDENCY.to_string_lossy()) {
            // The job waits for something else. Flux does not accept the same dependency twice.
            self.on_workflow(job, WorkflowEvent::ResourcesKnown);
            return;
        }
        let Some(args) = self.jobtap().lookup(job) else { return };
        // Errors raise an exception.
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
            // The job may have a record.
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

    /// Finishes one of two prologs: the one that holds the job, or an earlier one. Returns true if the job had no
    /// earlier one.
    fn release_from_prolog(&self, job: JobId, eventlog: &Eventlog) -> bool {
        let (started, finished) = eventlog.counts(Perilog::Prolog, &PROLOG.to_string_lossy());
        if started > finished + 1 {
            // One of the two is finished.
            self.on_prolog(job, PrologEvent::FoundOutstanding);
            if let Err(e) = self.jobtap().prolog_finish(job, PROLOG, 0) {
                let line = format!("{job}: one of its two prologs could not be finished: {e}");
                self.engine.log(LogLevel::Err, &line);
            }
        } else if started > 1 {
            // The earlier one has finished. An error is logged.
            self.on_prolog(job, PrologEvent::FoundOutstanding);
            let _ = self.finish_prolog(job, 0);
        } else {
            self.on_prolog(job, PrologEvent::Started);
        }
        started <= 1
    }

    /// Resumes a job in CLEANUP that an epilog holds.
    fn resume_epilog(self: &Rc<Self>, job: JobId, eventlog: &Eventlog) {
        if self.life(job).epilog == Epilog::Held {
            let (started, finished) = eventlog.counts(Perilog::Epilog, &EPILOG.to_string_lossy());
            if started > finished + 1 {
                // The job already had an epilog. If `dws.post_run` was sent before, the service refuses it, which is
                // harmless.
                self.on_shells(job, ShellsEvent::Silent);
                self.on_epilog(job, EpilogEvent::FoundOutstanding);
                if let Err(e) = self.jobtap().epilog_finish(job, EPILOG, 0) {
                    let line = format!("{job}: one of its two epilogs could not be finished: {e}");
                    self.engine.log(LogLevel::Err, &line);
                }
            } else if started > 1 {
                // The epilog had finished before. An error is logged.
                let _ = self.finish_epilog(job, 0);
                return;
            } else {
                self.on_epilog(job, EpilogEvent::Started);
            }
        }
        self.send_post_run(job);
    }
}
