// SPDX-License-Identifier: MIT OR Apache-2.0

//! The instance: the job manager, with its KVS, its log and its configuration.
//!
//! Imitates how job-ingest and job-manager take a job from submission to its end, commit events in batches, and replay
//! jobs when an instance restarts. Names and order follow RFC 21 and the job manager 0.88.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt;
use std::path::Path;
use std::rc::{Rc, Weak};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use libc::c_int;
use serde_json::{Value, json};

use crate::Plugins;
use crate::eventlog::{self, Entry};
use crate::exec::Exec;
use crate::future::{Done, Failure, Outcome};
use crate::handle::{Broker, Handle, Message, level_name};
use crate::job::{self, Job, State};
use crate::jobid::{Generator, JobId};
use crate::jobtap::Jobtap;
use crate::kvs::{Kvs, Txn};
use crate::plugin::Plugin;
use crate::stage::{Act, Stage};

/// The maximum number of event names: Flux numbers them, and keeps a bitmap of this size for each job.
const EVENT_NAMES_MAX: usize = 64;

/// Called when a submission is accepted or rejected.
type Submitted = Box<dyn FnOnce(Result<JobId, String>)>;

/// The events of one turn, and the callbacks that wait until they are in the KVS.
#[derive(Default)]
struct Batch {
    txn: Txn,
    jobs: Vec<Rc<Job>>,
    events: Vec<Rc<Job>>,
    responses: Vec<Box<dyn FnOnce()>>,
}

/// A running instance.
pub struct Instance {
    /// A reference to itself, for the plugins.
    pub me: Weak<Instance>,
    /// The handle that plugins receive.
    pub handle: Rc<Handle>,
    /// The store.
    pub kvs: Rc<Kvs>,
    /// The uid of the instance.
    pub owner: u32,
    /// The plugins.
    pub jobtap: Jobtap,
    /// The job shells.
    pub exec: Exec,
    config: RefCell<Value>,
    jobs: RefCell<BTreeMap<JobId, Rc<Job>>>,
    ids: RefCell<Generator>,
    batch: RefCell<Option<Batch>>,
    log: RefCell<Vec<String>>,
    /// The services that a test plays, and the requests to missing services.
    pub stage: Stage,
    /// The names of events that were posted or queried, in order of first use.
    event_names: RefCell<Vec<String>>,
    /// Set while the scheduler allocates no resources.
    allocs_held: Cell<bool>,
    failed: Cell<bool>,
}

impl Instance {
    /// Starts an instance: loads the plugins of the configuration, then replays the jobs found in the state directory.
    pub fn start(statedir: &Path, plugins: &Plugins) -> Result<Rc<Instance>, String> {
        // A process has only one instance.
        let rundir = std::path::absolute(statedir).unwrap_or_else(|_| statedir.to_owned());
        let _ = crate::handle::RUNDIR.set(CString::new(rundir.as_os_str().as_encoded_bytes()).unwrap_or_default());
        if let Some(path) = &plugins.config {
            let path = CString::new(path.as_os_str().as_encoded_bytes()).unwrap_or_default();
            let _ = crate::handle::CONFIG_PATH.set(path);
        }
        let (config, shell_plugins) = (plugins.config()?, plugins.shell_plugins()?);
        let handle = Handle::new();
        let kvs = Kvs::open(statedir, handle.reactor.clone()).map_err(|e| format!("{}: {e}", statedir.display()))?;
        let last = job_dirs(&kvs).last().copied();
        let instance = Rc::new_cyclic(|me| Instance {
            me: me.clone(),
            kvs,
            owner: nix::unistd::geteuid().as_raw(),
            jobtap: Jobtap::default(),
            exec: Exec::new(shell_plugins),
            config: RefCell::new(config),
            jobs: RefCell::default(),
            ids: RefCell::new(Generator::after(last)),
            batch: RefCell::default(),
            log: RefCell::default(),
            stage: Stage::default(),
            event_names: RefCell::default(),
            allocs_held: Cell::new(false),
            failed: Cell::new(false),
            handle,
        });
        instance.handle.connect(instance.me.clone());
        if let Err(error) = instance.load_configured(&plugins.jobtap) {
            instance.jobtap.unload_all(&instance);
            return Err(error);
        }
        instance.restart();
        Ok(instance)
    }

    /// Returns the whole configuration.
    pub fn config(&self) -> Value {
        self.config.borrow().clone()
    }

    /// Accepts a new configuration, unless a plugin rejects it.
    pub fn reconfigure(self: &Rc<Self>, config: Value) -> Result<(), Failure> {
        self.jobtap.conf_update_all(&config)?;
        *self.config.borrow_mut() = config;
        Ok(())
    }

    /// Logs a message of the simulator.
    pub fn log(&self, level: c_int, text: fmt::Arguments<'_>) {
        self.log_from("job-manager", level, &text.to_string());
    }

    /// Logs a message of a component of the instance.
    pub fn log_from(&self, name: &str, level: c_int, text: &str) {
        let line = format!("{:.6} {name}.{}[0]: {text}", eventlog::now(), level_name(level));
        self.log.borrow_mut().push(line);
    }

    /// Returns all messages so far.
    pub fn dmesg(&self) -> Vec<String> {
        self.log.borrow().clone()
    }

    /// Returns the messages after the first `seen`.
    pub fn dmesg_after(&self, seen: usize) -> Vec<String> {
        self.log.borrow()[seen..].to_vec()
    }

    /// Returns a job by its id.
    pub fn job(&self, id: JobId) -> Option<Rc<Job>> {
        self.jobs.borrow().get(&id).cloned()
    }

    /// Returns the jobs that are not inactive, the oldest first.
    pub fn active_jobs(&self) -> Vec<Rc<Job>> {
        self.jobs
            .borrow()
            .values()
            .filter(|job| job.state.get() != State::Inactive)
            .cloned()
            .collect()
    }

    /// Stops notifying a plugin of events.
    pub fn unsubscribe(&self, plugin: &Rc<Plugin>) {
        for job in self.jobs.borrow().values() {
            job.subscribers
                .borrow_mut()
                .retain(|subscriber| !Rc::ptr_eq(subscriber, plugin));
        }
    }

    /// Shuts everything down in order: kills shells, unloads plugins, commits events.
    pub fn shutdown(self: &Rc<Self>) {
        self.exec.kill_all();
        self.jobtap.unload_all(self);
        self.flush();
        while self.handle.reactor.run_services() {}
        self.stage.close();
        self.handle.aux.destroy();
    }

    // Submission

    /// Submits a job. Calls `done` once the job is accepted and its first events are in the KVS.
    pub fn submit(self: &Rc<Self>, userid: u32, urgency: i64, jobspec: Value, done: Submitted) {
        if let Err(error) = job::check_jobspec(&jobspec) {
            return done(Err(error));
        }
        if !(0..=31).contains(&urgency) {
            return done(Err(format!("urgency {urgency} is not between 0 and 31")));
        }
        let id = self.ids.borrow_mut().next();
        let job = Rc::new(Job::new(id, userid, urgency, jobspec));
        let txn = Txn::default()
            .put(id.kvs_key("J"), sign(userid, &job.jobspec))
            .put(id.kvs_key("jobspec"), job.current.borrow().to_string());
        let instance = Rc::clone(self);
        self.kvs.commit(txn, move |outcome| match outcome {
            Ok(_) => {
                let reactor = instance.handle.reactor.clone();
                reactor.defer(move || instance.announce(job, done));
            }
            Err(failure) => done(Err(format!("KVS commit failed: {}", failure.text))),
        });
    }

    fn announce(self: &Rc<Self>, job: Rc<Job>, done: Submitted) {
        let id = job.id;
        self.jobs.borrow_mut().insert(id, job.clone());
        let context = json!({"userid": job.userid.get(), "urgency": job.urgency.get(), "flags": 0, "version": 1});
        self.post(&job, "submit", context);
        let accepted = ["job.create", "job.validate"]
            .iter()
            .try_for_each(|topic| self.jobtap.call_early(self, &job, topic, Value::Null));
        if let Err(error) = accepted {
            self.jobtap.call(self, &job, "job.destroy", Value::Null);
            self.jobs.borrow_mut().remove(&id);
            self.flush();
            self.kvs
                .commit(Txn::default().unlink(format!("job.{}", id.dothex())), |_| ());
            return done(Err(error));
        }
        self.jobtap.call(self, &job, "job.new", Value::Null);
        job.hold_events.set(true);
        self.with_batch(|batch| {
            batch.jobs.push(job.clone());
            batch.responses.push(Box::new(move || done(Ok(id))));
        });
        self.post(&job, "validate", Value::Null);
    }

    // Events

    /// Posts an event of the simulator itself. Returns false if the event is impossible.
    pub fn post(self: &Rc<Self>, job: &Rc<Job>, name: &str, context: Value) -> bool {
        self.try_post(job, name, context).is_ok()
    }

    /// Posts an event: changes the job, notifies the plugins, takes the next step, and commits the event. Returns an
    /// error number if the event is known to be impossible.
    pub fn try_post(self: &Rc<Self>, job: &Rc<Job>, name: &str, context: Value) -> Result<(), c_int> {
        if name.is_empty() || !(context.is_object() || context.is_null()) {
            return Err(libc::EINVAL);
        }
        if job.state.get() == State::Inactive {
            return Err(libc::EROFS);
        }
        job.queue.borrow_mut().push_back(Entry::now(name, context));
        // Events caused by this one are processed after it, not within it.
        let later = job.queue.borrow().len() > 1 || job.hold_events.get();
        match later {
            true => Ok(()),
            false => self.post_deferred(job),
        }
    }

    fn post_deferred(self: &Rc<Self>, job: &Rc<Job>) -> Result<(), c_int> {
        while job.state.get() != State::Inactive {
            let Some(entry) = job.queue.borrow().front().cloned() else {
                break;
            };
            if let Err(failure) = self.process(job, &entry) {
                self.log(libc::LOG_ERR, format_args!("{}: {}", job.id, failure.text));
                // As in Flux: events queued behind an impossible event are lost with it.
                job.queue.take();
                return Err(failure.errnum);
            }
            job.queue.borrow_mut().pop_front();
        }
        Ok(())
    }

    fn process(self: &Rc<Self>, job: &Rc<Job>, entry: &Entry) -> Result<(), Failure> {
        let old_state = job.state.get();
        if old_state == State::New && entry.name == "exception" && entry.context["severity"] == 0 {
            let text = "fatal job exception was posted in NEW state";
            return Err(Failure::new(libc::EINVAL, text));
        }
        job.update(entry)?;
        let number = self.event_number(&entry.name).ok_or_else(|| {
            let text = format!("event {}: too many names of events", entry.name);
            Failure::new(libc::ENOSPC, text)
        })?;
        job.posted.borrow_mut().insert(number);
        job.eventlog.borrow_mut().push(entry.clone());
        self.with_batch(|batch| {
            batch.txn.append(job.id.kvs_key("eventlog"), entry.line());
            batch.events.push(job.clone());
        });
        // The order matters: a party notified of the new state already knows the event and the update.
        self.jobtap.notify_subscribers(self, job, entry);
        if entry.name == "jobspec-update" {
            self.jobtap
                .call(self, job, "job.update", json!({"updates": entry.context}));
        }
        if job.state.get() != old_state {
            let more = json!({"entry": entry.object(), "prev_state": old_state as i64});
            self.jobtap.call(self, job, &job.state.get().topic(), more);
        }
        self.act(job);
        Ok(())
    }

    /// Notifies plugins of an event that changes nothing and appears in no eventlog.
    fn publish(self: &Rc<Self>, job: &Rc<Job>, name: &str, context: Value) {
        if let Some(number) = self.event_number(name) {
            job.posted.borrow_mut().insert(number);
            self.jobtap.notify_subscribers(self, job, &Entry::now(name, context));
        }
    }

    /// Returns whether this job manager posted an event of a name on a job. Replayed events do not count. Returns None
    /// if there are too many names to know.
    pub fn was_posted(&self, job: &Job, name: &str) -> Option<bool> {
        let number = self.event_number(name)?;
        Some(job.posted.borrow().contains(&number))
    }

    fn event_number(&self, name: &str) -> Option<usize> {
        let mut names = self.event_names.borrow_mut();
        let at = names.iter().position(|known| known == name).unwrap_or_else(|| {
            names.push(name.to_owned());
            names.len() - 1
        });
        // The first number is 1.
        (at + 1 < EVENT_NAMES_MAX).then_some(at + 1)
    }

    /// Takes the step that the state of a job requires. Idempotent.
    fn act(self: &Rc<Self>, job: &Rc<Job>) {
        match job.state.get() {
            State::New => (),
            State::Depend => {
                let waits = !job.dependencies.borrow().is_empty() || job.is_queued("dependency-add");
                if !waits && !job.depend_posted.replace(true) {
                    self.post(job, "depend", Value::Null);
                }
            }
            State::Priority => {
                if !job.is_queued("priority") {
                    self.prioritize(job, job.urgency.get());
                }
            }
            State::Sched => self.alloc(job),
            State::Run => {
                if job.perilog_active.get() == 0 && !job.is_queued("prolog-start") && !job.start_pending.get() {
                    self.exec.start(self, job);
                }
            }
            State::Cleanup => self.clean_up(job),
            State::Inactive => {
                self.jobtap.call(self, job, "job.inactive-add", Value::Null);
                self.jobtap.call(self, job, "job.destroy", Value::Null);
            }
        }
    }

    /// Posts a priority for a job that awaits one. Urgency 0 holds a job, and 31 expedites it.
    pub fn prioritize(self: &Rc<Self>, job: &Rc<Job>, priority: i64) {
        if job.state.get() != State::Priority && job.state.get() != State::Sched {
            return;
        }
        let priority = match job.urgency.get() {
            0 => 0,
            31 => i64::from(u32::MAX),
            _ => priority,
        };
        if job.state.get() == State::Sched && job.priority.get() == priority {
            return;
        }
        self.post(job, "priority", json!({"priority": priority}));
    }

    /// Leaves jobs in SCHED from now on.
    pub fn hold_allocs(&self) {
        self.allocs_held.set(true);
    }

    /// Allocates resources to all waiting jobs at once.
    pub fn release_allocs(self: &Rc<Self>) {
        self.allocs_held.set(false);
        for job in self.active_jobs() {
            if job.state.get() == State::Sched {
                self.alloc(&job);
            }
        }
    }

    /// Requests resources from the scheduler, which always has enough. A held job receives none.
    fn alloc(self: &Rc<Self>, job: &Rc<Job>) {
        if job.priority.get() == 0 || self.allocs_held.get() || job.alloc_pending.replace(true) {
            return;
        }
        let (instance, job) = (Rc::clone(self), Rc::clone(job));
        self.handle.reactor.defer(move || {
            job.alloc_pending.set(false);
            match job.state.get() {
                State::Sched => {
                    let Some(nodes) = job.wanted() else {
                        instance.raise(&job, "alloc", 0, "unsatisfiable request", instance.owner);
                        return;
                    };
                    job.allocate(nodes);
                    let resources = job.resources.borrow().clone().unwrap_or_default();
                    let txn = Txn::default().put(job.id.kvs_key("R"), resources.to_string());
                    instance.kvs.commit(txn, |_| ());
                    let ranks = match nodes {
                        1 => "rank0/core0".to_owned(),
                        _ => format!("rank[0-{}]/core0", nodes - 1),
                    };
                    let summary = json!({"sched": {"resource_summary": ranks}});
                    let context = json!({"annotations": summary});
                    instance.publish(&job, "annotations", context.clone());
                    instance.post(&job, "alloc", context);
                }
                _ => instance.act(&job),
            }
        });
    }

    fn clean_up(self: &Rc<Self>, job: &Rc<Job>) {
        if job.perilog_active.get() > 0 || job.start_pending.get() || job.is_queued("epilog-start") {
            return;
        }
        if job.has_resources.get() {
            if !job.free_posted.replace(true) {
                self.post(job, "free", Value::Null);
            }
        } else if !job.alloc_pending.get() && !job.is_queued("clean") {
            self.post(job, "clean", Value::Null);
        }
    }

    fn with_batch(self: &Rc<Self>, change: impl FnOnce(&mut Batch)) {
        let mut batch = self.batch.borrow_mut();
        if batch.is_none() {
            let instance = Rc::clone(self);
            self.handle.reactor.defer(move || instance.flush());
        }
        change(batch.get_or_insert_with(Batch::default));
    }

    /// Commits the events of this turn.
    fn flush(self: &Rc<Self>) {
        let Some(mut batch) = self.batch.take() else { return };
        let instance = Rc::clone(self);
        self.kvs.commit(std::mem::take(&mut batch.txn), move |outcome| {
            if let Err(failure) = outcome {
                // As in Flux: a job manager that cannot save its eventlogs cannot continue.
                instance.log(libc::LOG_CRIT, format_args!("eventlog update failed: {}", failure.text));
                eprintln!("flux-sim: eventlog update failed: {}", failure.text);
                instance.failed.set(true);
                instance.handle.reactor.stop();
                return;
            }
            let reactor = instance.handle.reactor.clone();
            reactor.defer(move || instance.committed(batch));
        });
    }

    fn committed(self: &Rc<Self>, batch: Batch) {
        for job in batch.events {
            job.committed.set(job.committed.get() + 1);
        }
        for job in batch.jobs {
            job.hold_events.set(false);
            // An impossible event was logged.
            let _ = self.post_deferred(&job);
        }
        for respond in batch.responses {
            respond();
        }
    }

    /// Returns whether the instance had to stop.
    pub fn has_failed(&self) -> bool {
        self.failed.get()
    }

    // Exceptions

    /// Raises an exception on a job.
    pub fn raise(self: &Rc<Self>, job: &Rc<Job>, kind: &str, severity: i64, note: &str, userid: u32) -> bool {
        self.try_raise(job, kind, severity, note, userid).is_ok()
    }

    /// Like `raise`, but returns an error number if it is impossible.
    pub fn try_raise(
        self: &Rc<Self>,
        job: &Rc<Job>,
        kind: &str,
        severity: i64,
        note: &str,
        userid: u32,
    ) -> Result<(), c_int> {
        let context = json!({"type": kind, "severity": severity, "note": note, "userid": userid});
        self.try_post(job, "exception", context)?;
        if severity == 0 {
            self.exec.cancel(self, job);
        }
        Ok(())
    }

    /// Handles a request of `flux job raise`, `flux cancel`, or a failing shell.
    pub fn raise_request(self: &Rc<Self>, payload: &Value, userid: u32) -> Result<(), Failure> {
        let (Some(id), Some(severity), Some(kind)) = (
            payload["id"].as_u64(),
            payload["severity"].as_i64(),
            payload["type"].as_str(),
        ) else {
            return Err(Failure::errno(libc::EPROTO));
        };
        if !(0..=7).contains(&severity) {
            return Err(Failure::new(libc::EPROTO, "invalid exception severity"));
        }
        if kind.is_empty() || kind.contains(|c: char| c.is_whitespace() || c == '=') {
            return Err(Failure::new(libc::EPROTO, "invalid exception type"));
        }
        let job = self
            .job(JobId(id))
            .ok_or_else(|| Failure::new(libc::ENOENT, "unknown job id"))?;
        if job.state.get() == State::Inactive {
            return Err(Failure::new(libc::ENOENT, "job is inactive"));
        }
        if userid != self.owner && userid != job.userid.get() {
            return Err(Failure::new(
                libc::EPERM,
                "guests can only raise exceptions on their own jobs",
            ));
        }
        self.raise(&job, kind, severity, payload["note"].as_str().unwrap_or(""), userid);
        Ok(())
    }

    // Requests

    /// Answers a request of a user on a later turn.
    pub fn request_as(self: &Rc<Self>, userid: u32, topic: String, payload: Option<CString>, done: Done) {
        let reactor = &self.handle.reactor;
        let instance = Rc::clone(self);
        if let Some(act) = self.stage.act(&topic) {
            match act {
                Act::Answer(answer) => {
                    self.stage.record(&topic, payload.as_ref(), None);
                    reactor.defer_service(move || done(answer.map(|value| json_payload(&value))));
                }
                Act::Hold => self.stage.record(&topic, payload.as_ref(), Some(done)),
            }
        } else if topic == "job-info.lookup" {
            reactor.defer_service(move || done(instance.job_info_lookup(payload.as_ref(), userid)));
        } else {
            // Services of the job manager itself make no progress while a plugin blocks.
            reactor.defer(move || instance.dispatch(userid, &topic, payload, done));
        }
    }

    fn dispatch(self: &Rc<Self>, userid: u32, topic: &str, payload: Option<CString>, done: Done) {
        if topic == "job-manager.raise" {
            let raised = parse(payload.as_ref()).and_then(|payload| self.raise_request(&payload, userid));
            return done(raised.map(|()| None));
        }
        if !self.jobtap.serves(topic) {
            self.stage.record(topic, payload.as_ref(), None);
            let text = format!("No service matching {topic} is registered");
            return done(Err(Failure::new(libc::ENOSYS, text)));
        }
        self.jobtap
            .serve(self, topic, userid, &Message::new(topic, payload, userid, done));
    }

    /// job-info.lookup: returns keys of a job to its owner and to the instance owner.
    fn job_info_lookup(&self, payload: Option<&CString>, userid: u32) -> Outcome {
        const JSON_DECODE: i64 = 1;
        const CURRENT: i64 = 2;
        let request = parse(payload)?;
        let (Some(id), Some(keys), Some(flags)) = (
            request["id"].as_u64(),
            request["keys"].as_array(),
            request["flags"].as_i64(),
        ) else {
            return Err(Failure::errno(libc::EPROTO));
        };
        if flags & !(JSON_DECODE | CURRENT) != 0 {
            return Err(Failure::new(libc::EPROTO, "lookup request rejected with invalid flag"));
        }
        let keys = keys.iter().map(Value::as_str).collect::<Option<Vec<&str>>>();
        let keys = keys.ok_or_else(|| Failure::errno(libc::EPROTO))?;

        let id = JobId(id);
        let eventlog = self
            .kvs
            .get(&id.kvs_key("eventlog"))
            .map_err(|failure| match failure.errnum {
                libc::ENOENT => Failure::new(libc::ENOENT, "invalid job id"),
                _ => failure,
            })?;
        let entries = eventlog::decode(&String::from_utf8_lossy(&eventlog)).unwrap_or_default();
        let owner = entries
            .first()
            .and_then(|entry| entry.context["userid"].as_u64())
            .ok_or_else(|| Failure::new(libc::EPROTO, "error parsing eventlog"))?;
        if userid != self.owner && u64::from(userid) != owner {
            return Err(Failure::new(libc::EPERM, "access is restricted to job/instance owner"));
        }
        let mut response = json!({"id": id.0});
        for key in keys {
            let value = self.kvs.get(&id.kvs_key(key)).map_err(|failure| match failure.errnum {
                libc::ENOENT => Failure::new(libc::ENOENT, format!("{key}: key not found")),
                _ => Failure::new(failure.errnum, format!("{key}: {}", failure.text)),
            })?;
            if value.is_empty() {
                return Err(Failure::new(
                    libc::EPROTO,
                    format!("{key}: value is unexpectedly empty"),
                ));
            }
            let mut text = String::from_utf8_lossy(&value).into_owned();
            if flags & CURRENT != 0 && key == "jobspec" {
                text = with_updates(&text, &entries)
                    .map_err(|e| Failure::new(e.errnum, format!("{key}: {}", e.text)))?
                    .to_string();
            }
            let decode = flags & JSON_DECODE != 0 && (key == "jobspec" || key == "R");
            response[key] = match decode {
                true => serde_json::from_str(&text).map_err(|e| Failure::new(libc::EINVAL, format!("{key}: {e}")))?,
                false => json!(text),
            };
        }
        Ok(json_payload(&response))
    }

    // Restart

    fn load_configured(self: &Rc<Self>, jobtap: &[String]) -> Result<(), String> {
        let config = self.config();
        let plugins = match config.pointer("/job-manager/plugins") {
            None => Vec::new(),
            Some(Value::Array(plugins)) => plugins.clone(),
            Some(_) => return Err("[job-manager.plugins] config must be an array".into()),
        };
        let plugins = plugins
            .into_iter()
            .chain(jobtap.iter().map(|path| json!({"load": path})));
        for (i, entry) in plugins.enumerate() {
            let what = format!("[job-manager.plugins][{i}]");
            if let Some(name) = entry.get("remove").and_then(Value::as_str) {
                self.jobtap
                    .remove(self, name)
                    .map_err(|e| format!("{what}: remove {name}: {}", e.text))?;
            }
            if let Some(path) = entry.get("load").and_then(Value::as_str) {
                let conf = entry.get("conf").cloned().unwrap_or(Value::Null);
                self.jobtap
                    .load(self, path, &conf)
                    .map_err(|e| format!("{what}: load: {}", e.text))?;
            }
        }
        self.jobtap.conf_update_all(&config).map_err(|e| e.text)
    }

    fn restart(self: &Rc<Self>) {
        for id in job_dirs(&self.kvs) {
            match self.replay(id) {
                Ok(job) => {
                    self.jobs.borrow_mut().insert(id, job.clone());
                    self.act(&job);
                }
                Err(error) => self.log(libc::LOG_ERR, format_args!("job {id} not replayed: {error}")),
            }
        }
        let active = self.active_jobs();
        self.log(libc::LOG_INFO, format_args!("restart: {} active jobs", active.len()));
        for job in &active {
            self.jobtap.call(self, job, "job.create", Value::Null);
            self.jobtap.call(self, job, "job.new", Value::Null);
            if job.state.get() == State::Sched {
                job.priority.set(-1);
                self.post(job, "flux-restart", Value::Null);
            }
        }
        // As in Flux, shells start only now: job-exec says hello when the job manager is ready.
        self.start_jobs();
    }

    /// Starts the jobs in RUN that wait for nothing else, and those that arrive from now on.
    pub fn start_jobs(self: &Rc<Self>) {
        self.exec.hello();
        for job in self.active_jobs() {
            if job.state.get() == State::Run {
                self.act(&job);
            }
        }
    }

    fn replay(&self, id: JobId) -> Result<Rc<Job>, String> {
        let read = |key: &str| {
            let value = self
                .kvs
                .get(&id.kvs_key(key))
                .map_err(|e| format!("lookup {key}: {}", e.text))?;
            String::from_utf8(value).map_err(|e| format!("{key}: {e}"))
        };
        let entries = eventlog::decode(&read("eventlog")?).ok_or("eventlog is malformed")?;
        if entries.first().is_none_or(|entry| entry.name != "submit") {
            return Err("eventlog does not begin with submit".into());
        }
        let job = Rc::new(Job::new(id, 0, 16, unsign(&read("J")?).ok_or("J is malformed")?));
        for entry in entries {
            job.update(&entry).map_err(|e| format!("eventlog: {}", e.text))?;
            job.eventlog.borrow_mut().push(entry);
            job.committed.set(job.committed.get() + 1);
        }
        *job.resources.borrow_mut() = read("R").ok().and_then(|text| serde_json::from_str(&text).ok());
        let seen = |name: &str| job.eventlog.borrow().iter().any(|entry| entry.name == name);
        job.depend_posted.set(seen("depend"));
        job.free_posted.set(seen("free"));
        Ok(job)
    }
}

impl Broker for Instance {
    fn log(&self, level: c_int, text: &str) {
        self.log_from("job-manager", level, text);
    }

    fn request(&self, topic: String, payload: Option<CString>, done: Done) {
        if let Some(instance) = self.me.upgrade() {
            instance.request_as(self.owner, topic, payload, done);
        }
    }

    fn commit(&self, txn: Txn, done: Done) {
        self.kvs.commit_faulty(txn, done);
    }

    fn lookup(&self, key: String, done: Done) {
        let kvs = self.kvs.clone();
        self.handle.reactor.defer_service(move || {
            kvs.look_up(Box::new(move |kvs: &Kvs| {
                let value = kvs.get(&key);
                done(value.map(|value| (!value.is_empty()).then(|| crate::c::cstring(value))));
            }));
        });
    }

    fn progress(&self, deadline: Option<Instant>) -> Result<(), c_int> {
        // The services are in this process. If none of them has work, the future waits for an event that cannot occur
        // while the job manager blocks. Flux would hang here.
        match self.handle.reactor.run_services() {
            true => Ok(()),
            false if deadline.is_some() => Err(libc::ETIMEDOUT),
            false => Err(libc::EDEADLK),
        }
    }
}

/// Returns the ids of all jobs in the store, the oldest first.
fn job_dirs(kvs: &Kvs) -> Vec<JobId> {
    let mut ids: Vec<JobId> = kvs
        .keys()
        .iter()
        .filter_map(|key| JobId::parse(key.strip_prefix("job.")?.strip_suffix(".eventlog")?))
        .collect();
    ids.sort();
    ids
}

/// Returns a jobspec as a user submits it (RFC 15), signed with the mechanism "none".
fn sign(userid: u32, jobspec: &Value) -> String {
    let header = format!("version\0i1\0mechanism\0snone\0userid\0i{userid}\0");
    format!("{}.{}.none", BASE64.encode(header), BASE64.encode(jobspec.to_string()))
}

fn unsign(signed: &str) -> Option<Value> {
    let payload = BASE64.decode(signed.split('.').nth(1)?).ok()?;
    serde_json::from_slice(&payload).ok()
}

/// Parses the payload of a request, which must be a JSON object.
fn parse(payload: Option<&CString>) -> Result<Value, Failure> {
    payload
        .and_then(|payload| serde_json::from_slice(payload.to_bytes()).ok())
        .filter(Value::is_object)
        .ok_or_else(|| Failure::errno(libc::EPROTO))
}

/// Returns the jobspec of a job, with the updates from the job's events applied.
fn with_updates(jobspec: &str, entries: &[Entry]) -> Result<Value, Failure> {
    let mut jobspec = serde_json::from_str(jobspec).map_err(|e| Failure::new(libc::EINVAL, e.to_string()))?;
    let mut updates = entries.iter().filter(|entry| entry.name == "jobspec-update");
    updates.try_for_each(|entry| job::apply_updates(&mut jobspec, &entry.context))?;
    Ok(jobspec)
}

/// Returns a JSON value as the payload of a response. Its text contains no NUL, because JSON escapes it.
pub fn json_payload(value: &Value) -> Option<CString> {
    Some(crate::c::cstring(value.to_string()))
}
