// SPDX-License-Identifier: MIT OR Apache-2.0

//! The state of the plugin, and the lifecycle of a job with ports.

use std::{
    cell::{Cell, RefCell},
    ffi::CStr,
    io,
    rc::Rc,
    time::Duration,
};

use config::Part;
use ffi::{Args, JobId, JobState, Jobtap, LogLevel, Plugin, PluginError, Watcher, guard};
use plugin::{CallbackTimer, Counter, Engine, Identity, Past};
use protocol::{Code, Failure};
use serde_json::json;

use crate::{
    hosts,
    ports::{EVENT, Pair, Ports},
    variables::variables,
    waiting::{WaitingJob, WaitingJobs},
};

/// The event with the ports of a job, and the prolog.
const EVENT_NAME: &CStr = c"cray-pmi-bootstrap";

static CRAY_PMI: Identity = Identity {
    name: "cray-pmi-bootstrap",
    prolog: c"cray-pmi-bootstrap",
    key: seal::key::CRAY_PMI_BOOTSTRAP,
    looks_for_records: false,
    what: "secret for Cray PMI",
    part: Part::Sealing,
    handover: c"workflow-token::cray-pmi-bootstrap::handover",
    active: c"workflow-token::cray-pmi-bootstrap::active",
    events: &[EVENT],
};

/// The plugin's own part of the handover: the jobs with ports.
pub type PortsLeft = Vec<(JobId, Pair)>;

pub struct PmiJobs {
    pub engine: Rc<Engine>,
    pub ports: RefCell<Ports>,
    /// Jobs in their prologs that wait until the free ports are known.
    pub waiting: RefCell<WaitingJobs>,
    /// Fails the first of these jobs at its timeout.
    pub timer: RefCell<Option<Watcher>>,
    /// The number of jobs that continued without ports, because none were free.
    pub without: Cell<u64>,
}

impl PmiJobs {
    /// Reads the configuration of the plugin: the range of ports, and overrides for the engine.
    ///
    /// # Errors
    /// The range is invalid, or the engine rejects the overrides.
    pub fn new(jobtap: Jobtap<'static>, plugin: Plugin<'_>) -> io::Result<Self> {
        let mut conf = plugin.conf()?;
        let ports = Ports::from_conf(&mut conf, |level, line| {
            jobtap.flux().log(level, &format!("{}: {line}", CRAY_PMI.name));
        });
        let ports = ports.map_err(io::Error::other)?;
        Ok(Self {
            engine: Engine::new(&CRAY_PMI, jobtap, plugin, conf),
            ports: RefCell::new(ports),
            waiting: RefCell::default(),
            timer: RefCell::default(),
            without: Cell::new(0),
        })
    }

    /// Takes over the ports in the handover whose jobs still need them.
    pub fn take_over(&self) {
        let left: PortsLeft = self.engine.inherited().unwrap_or_default();
        for (job, pair) in left {
            let Some(args) = self.engine.jobtap().lookup(job) else {
                continue;
            };
            if !is_over(&args) {
                self.ports.borrow_mut().claim(job, pair);
            }
        }
    }

    /// `job.new`: resumes a job that was in RUN or CLEANUP before this plugin was loaded.
    pub fn job_new(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        let Some((job, uid, state)) = args.job_owner_state() else {
            return Ok(());
        };
        if !matches!(state, JobState::Run | JobState::Cleanup) {
            return Ok(());
        }
        let engine = &self.engine;
        // The job is active, so its record must not be removed.
        engine.is_active_still(job);
        match engine.past(job) {
            // Another plugin was loaded meanwhile, and assigned ports to the job.
            Some(Past::None)
                if self.ports.borrow().of(job).is_none() && engine.jobtap().was_posted(job, EVENT_NAME) =>
            {
                Engine::read_eventlog(engine, job);
            }
            // In the same job manager, the handover is exact, and the eventlog in the KVS may lack events.
            Some(Past::None) if state == JobState::Run => self.late(args, job, uid),
            Some(past) => self.go_on(job, uid, state, past),
            None => Engine::read_eventlog(engine, job),
        }
        Ok(())
    }

    pub fn job_run(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        let callback = CallbackTimer::start();
        let Some((job, uid, _)) = args.job_owner_state() else {
            return Ok(());
        };
        if self.is_for(args, job) {
            self.begin(job, uid);
        }
        self.engine.deliveries.account(&callback, None);
        Ok(())
    }

    /// Returns whether a job must get ports: it has several nodes, and no ports yet.
    fn is_for(&self, args: &Args<'_>, job: JobId) -> bool {
        let nodelist = args.json(&["R", "execution", "nodelist"]);
        let hosts = nodelist
            .ok_or_else(|| "the job has no R".to_owned())
            .and_then(|text| hosts::count(&text));
        match hosts {
            Ok(hosts) => hosts > 1 && self.ports.borrow().of(job).is_none(),
            Err(e) => {
                let line = format!(
                    "{job}: the hosts in execution.nodelist of its R cannot be counted: {e}: it goes on without ports"
                );
                self.engine.log(LogLevel::Err, &line);
                false
            }
        }
    }

    /// Starts the prolog of a job, within its callback `job.state.run`.
    fn begin(self: &Rc<Self>, job: JobId, uid: u32) {
        let known = self.all_known();
        // Before the prolog starts: if no ports are free, the job starts without any.
        let pair = if known { self.take_ports(job) } else { None };
        if known && pair.is_none() {
            return;
        }
        if let Err(e) = self.engine.prologs.start() {
            self.ports.borrow_mut().give_back(job);
            self.engine.prologs.raise(job, &e);
            return;
        }
        self.engine.deliveries.unless_it_panics(job, || match pair {
            Some(pair) => self.post_and_deliver(job, uid, pair),
            None => self.wait(job, uid),
        });
    }

    /// Resumes a job that entered RUN while no plugin was loaded. If it has started, Flux rejects the prolog, and the
    /// job is left alone; otherwise another prolog still holds it.
    fn late(self: &Rc<Self>, args: &Args<'_>, job: JobId, uid: u32) {
        if self.is_for(args, job) && self.engine.prologs.start().is_ok() {
            self.engine.deliveries.unless_it_panics(job, || self.assign(job, uid));
        }
    }

    /// Resumes a job from before the plugin was loaded. Its ports, if any, are known.
    pub fn go_on(self: &Rc<Self>, job: JobId, uid: u32, state: JobState, past: Past) {
        if self.engine.settle(job, state, past) {
            let pair = self.ports.borrow().of(job);
            self.engine.deliveries.unless_it_panics(job, || match pair {
                // The job has not started, so it can get a new secret.
                Some(pair) => self.deliver(job, uid, pair),
                None => self.assign(job, uid),
            });
        }
    }

    /// Returns whether the ports of all jobs are known.
    fn all_known(&self) -> bool {
        self.engine.knows_all()
    }

    /// Assigns ports to a job in its prolog, once the free ports are known.
    fn assign(self: &Rc<Self>, job: JobId, uid: u32) {
        if !self.all_known() {
            self.wait(job, uid);
            return;
        }
        match self.take_ports(job) {
            Some(pair) => self.post_and_deliver(job, uid, pair),
            None => self.engine.prologs.finish(job, 0),
        }
    }

    fn wait(self: &Rc<Self>, job: JobId, uid: u32) {
        self.waiting.borrow_mut().push(job, uid);
        self.start_timer();
    }

    /// Starts the timer that fails jobs after they have waited for the timeout.
    fn start_timer(self: &Rc<Self>) {
        let Some(current) = self.engine.current() else { return };
        let timeout = current.config.timeout;
        let Some(longest) = self.waiting.borrow().longest() else {
            return;
        };
        let weak = Rc::downgrade(self);
        let left = timeout.saturating_sub(longest);
        let timer = self.engine.flux().after(left.as_secs_f64(), move || {
            if let Some(me) = weak.upgrade() {
                let done = me.timer.take();
                guard((), || me.fail_late(timeout));
                guard((), || me.start_timer());
                drop(done);
            }
        });
        match timer {
            Ok(timer) => drop(self.timer.replace(Some(timer))),
            Err(e) => self
                .engine
                .log(LogLevel::Err, &format!("no timer: {e}: jobs may wait for ports")),
        }
    }

    fn fail_late(&self, timeout: Duration) {
        let late = self.waiting.borrow().late(timeout);
        for job in late {
            if self.waiting.borrow_mut().remove(job) {
                let what = "the ports of running jobs could not be read from their eventlogs in time (timeout)";
                self.engine
                    .deliveries
                    .fail(job, &Failure::new(Code::PortsTimeout, "it took too long", what));
            }
        }
    }

    /// Resumes the waiting jobs once the ports of all jobs are known.
    pub fn proceed(self: &Rc<Self>) {
        if !self.all_known() {
            return;
        }
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for WaitingJob { job, uid, .. } in waiting {
            self.engine.deliveries.unless_it_panics(job, || self.assign(job, uid));
        }
    }

    fn take_ports(&self, job: JobId) -> Option<Pair> {
        let pair = self.ports.borrow_mut().take(job);
        if pair.is_none() {
            self.without.set(self.without.get() + 1);
            let line = format!("{job}: no ports are free: it goes on without: raise port-max");
            self.engine.log(LogLevel::Err, &line);
        }
        pair
    }

    /// Posts the event with the ports of a job in its prolog, and begins the delivery of its variables.
    fn post_and_deliver(&self, job: JobId, uid: u32, pair: Pair) {
        if let Err(e) = self.engine.jobtap().post(job, EVENT_NAME, &json!({ "ports": pair })) {
            // Without the event, the ports would be unknown after a restart.
            self.ports.borrow_mut().give_back(job);
            let why = format!("the event with its ports could not be posted: {e}");
            self.engine.deliveries.fail(
                job,
                &Failure::new(Code::EventFailed, "its ports could not be recorded", why),
            );
            return;
        }
        self.deliver(job, uid, pair);
    }

    fn deliver(&self, job: JobId, uid: u32, pair: Pair) {
        match variables(pair) {
            Ok(variables) => self.engine.provide(job, uid, variables, None),
            Err(e) => {
                let why = format!("the system returned no random bytes: {e}");
                self.engine.deliveries.fail(
                    job,
                    &Failure::new(Code::RandomFailed, "its secret could not be created", why),
                );
            }
        }
    }

    /// `job.state.cleanup`: the job was canceled or has ended. If it was canceled, its tasks may still run.
    pub fn job_cleanup(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        let callback = CallbackTimer::start();
        let Some(job) = args.job() else { return Ok(()) };
        if self.waiting.borrow_mut().remove(job) {
            self.engine.deliveries.count(Counter::Canceled);
            self.engine.prologs.finish(job, 1);
        } else if self.engine.deliveries.give_up(job) {
            self.engine.prologs.finish(job, 1);
        }
        if is_over(args) {
            self.ports.borrow_mut().give_back(job);
        }
        self.engine.deliveries.account(&callback, None);
        Ok(())
    }

    pub fn job_inactive(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        if let Some(job) = args.job() {
            self.engine.ended(job);
            self.ports.borrow_mut().give_back(job);
            self.proceed();
        }
        Ok(())
    }
}

/// Returns whether the tasks of a job have ended. After an exception, they may still run.
pub fn is_over(args: &Args<'_>) -> bool {
    let ended = args.string(&["end_event", "name"]).is_some_and(|name| name == "finish");
    ended || matches!(args.job_owner_state(), Some((_, _, JobState::Inactive)))
}
