// SPDX-License-Identifier: MIT OR Apache-2.0

//! The callbacks of the plugin as a whole, and the functions that the engine calls.

use std::{ffi::CStr, io, rc::Rc};

use ffi::{Args, JobId, JobState, Jobtap, Plugin, PluginError};
use plugin::{CallbackTimer, Eventlog, Handover, Hooks, Perilog};
use protocol::Failure;
use serde_json::json;

use crate::{
    pmi_jobs::{PmiJobs, PortsLeft, is_over},
    ports,
};

/// The state of the plugin, which Flux passes to callbacks.
pub struct Pmi(pub Rc<PmiJobs>);

impl Pmi {
    pub fn new(jobtap: Jobtap<'static>, plugin: Plugin<'_>) -> io::Result<Self> {
        let jobs = Rc::new(PmiJobs::new(jobtap, plugin)?);
        let hooks = Rc::downgrade(&jobs);
        jobs.engine.hook(hooks);
        Ok(Self(jobs))
    }

    pub fn conf_update(&self, args: &Args<'_>) -> Result<(), PluginError> {
        if self.0.engine.configure(args)? {
            self.0.take_over();
        }
        Ok(())
    }

    pub fn query(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let me = &self.0;
        let mut answer = me.engine.counters();
        let ports = me.ports.borrow();
        answer["port-min"] = json!(ports.range().start);
        answer["port-max"] = json!(ports.range().end);
        answer["ports-free"] = json!(ports.free());
        answer["jobs-with-ports"] = json!(ports.assigned().count());
        answer["jobs-waiting"] = json!(me.waiting.borrow().len());
        answer["out-of-ports"] = json!(me.without.get());
        args.answer(&answer);
        Ok(())
    }
}

impl ffi::State for Pmi {
    fn panicked(&self, topic: &CStr, args: &Args<'_>) {
        self.0.engine.panicked(topic, args);
    }
}

impl Drop for Pmi {
    fn drop(&mut self) {
        self.0.engine.end();
    }
}

impl Hooks for PmiJobs {
    fn resume(self: Rc<Self>, job: JobId, eventlog: &Eventlog) {
        let engine = &self.engine;
        let callback = CallbackTimer::start();
        // The job may have changed since its eventlog was requested.
        if let Some(args) = engine.jobtap().lookup(job)
            && let Some((_, uid, state)) = args.job_owner_state()
            && state != JobState::Inactive
            && !engine.deliveries.is_under_way(job)
        {
            if let Some(pair) = ports::from_eventlog(eventlog).filter(|_| !is_over(&args)) {
                self.ports.borrow_mut().claim(job, pair);
            }
            self.go_on(job, uid, state, eventlog.past(Perilog::Prolog, ports::EVENT));
        }
        self.proceed();
        engine.deliveries.account(&callback, None);
    }

    fn leave(&self, handover: &mut Handover) {
        drop(self.timer.take());
        let waiting = self.waiting.take();
        handover
            .in_flight
            .extend(waiting.into_iter().map(|waiting| waiting.job));
        let ports: PortsLeft = self.ports.borrow().assigned().collect();
        handover.own = json!(ports);
    }

    fn failed(&self, job: JobId, why: &Failure) {
        self.engine.prologs.refuse(job, why);
    }
}
