// SPDX-License-Identifier: MIT OR Apache-2.0

//! Jobs: their data, and the effect of each event.
//!
//! Imitates the state machine of RFC 21, as far as it is needed here. Only plugins add dependencies, and resources
//! never run out.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use serde_json::{Map, Value, json};

use crate::eventlog::{self, Entry};
use crate::future::Failure;
use crate::jobid::JobId;
use crate::plugin::Plugin;

/// The maximum number of nodes of a job. Each node is a shell, which is a process on this machine.
pub const NODES_MAX: u64 = 64;

/// The states of a job, with Flux's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Submitted, not validated.
    New = 1,
    /// Waits for dependencies.
    Depend = 2,
    /// Waits for a priority.
    Priority = 4,
    /// Waits for resources.
    Sched = 8,
    /// Has resources: a prolog may run, then its shells.
    Run = 16,
    /// Releases its resources.
    Cleanup = 32,
    /// Ended.
    Inactive = 64,
}

impl State {
    /// Returns the name of the state.
    pub fn name(self) -> &'static str {
        match self {
            State::New => "NEW",
            State::Depend => "DEPEND",
            State::Priority => "PRIORITY",
            State::Sched => "SCHED",
            State::Run => "RUN",
            State::Cleanup => "CLEANUP",
            State::Inactive => "INACTIVE",
        }
    }

    /// Returns the topic of the callback for the transition to this state.
    pub fn topic(self) -> String {
        format!("job.state.{}", self.name().to_lowercase())
    }
}

/// A job, validated as far as the simulator requires.
pub struct Job {
    /// The job id.
    pub id: JobId,
    /// The job owner.
    pub userid: Cell<u32>,
    /// The state, driven by events.
    pub state: Cell<State>,
    /// The jobspec that the user submitted, with the environment. Shells receive it unchanged, without later updates.
    pub jobspec: Value,
    /// The jobspec as seen by plugins: without the environment, with updates.
    pub current: RefCell<Value>,
    /// The resource set, once allocated. It remains after the resources are released.
    pub resources: RefCell<Option<Value>>,
    /// Outstanding dependencies, in the order in which they were added.
    pub dependencies: RefCell<Vec<String>>,
    /// All dependencies ever added. A removed dependency cannot be added again.
    grudges: RefCell<BTreeSet<String>>,
    /// The plugins notified of each event, once for each subscription.
    pub subscribers: RefCell<Vec<Rc<Plugin>>>,
    /// The numbers of the names of events that this job manager has posted.
    pub posted: RefCell<BTreeSet<usize>>,
    /// The events as posted.
    pub eventlog: RefCell<Vec<Entry>>,
    /// The number of events that are in the KVS.
    pub committed: Cell<usize>,
    /// Events that wait to be processed. The first is being processed.
    pub queue: RefCell<VecDeque<Entry>>,
    /// Set until the job's submission is in the KVS. Meanwhile, events wait.
    pub hold_events: Cell<bool>,
    /// 0 to 31.
    pub urgency: Cell<i64>,
    /// Set by the event `priority`; -1 before.
    pub priority: Cell<i64>,
    /// The time of submission.
    pub t_submit: Cell<f64>,
    /// The number of prologs and epilogs that have not finished.
    pub perilog_active: Cell<u8>,
    /// Set while the request to start the job awaits its last response.
    pub start_pending: Cell<bool>,
    /// Set once the job was started.
    pub started: Cell<bool>,
    /// Set while resources are allocated.
    pub has_resources: Cell<bool>,
    /// Set while a request for resources is outstanding.
    pub alloc_pending: Cell<bool>,
    /// Set if only the instance owner may update the job.
    pub immutable: Cell<bool>,
    /// Set once `depend` was posted.
    pub depend_posted: Cell<bool>,
    /// Set once `free` was posted.
    pub free_posted: Cell<bool>,
    /// The event that ended the job: `finish` or `exception`.
    pub end_event: RefCell<Option<Entry>>,
}

impl Job {
    /// Creates a job before its first event.
    pub fn new(id: JobId, userid: u32, urgency: i64, jobspec: Value) -> Job {
        Job {
            current: RefCell::new(redacted(&jobspec)),
            resources: RefCell::default(),
            dependencies: RefCell::default(),
            grudges: RefCell::default(),
            subscribers: RefCell::default(),
            posted: RefCell::default(),
            id,
            userid: Cell::new(userid),
            state: Cell::new(State::New),
            jobspec,
            eventlog: RefCell::default(),
            committed: Cell::new(0),
            queue: RefCell::default(),
            hold_events: Cell::new(false),
            urgency: Cell::new(urgency),
            priority: Cell::new(-1),
            t_submit: Cell::new(0.0),
            perilog_active: Cell::new(0),
            start_pending: Cell::new(false),
            started: Cell::new(false),
            has_resources: Cell::new(false),
            alloc_pending: Cell::new(false),
            immutable: Cell::new(false),
            depend_posted: Cell::new(false),
            free_posted: Cell::new(false),
            end_event: RefCell::default(),
        }
    }

    /// Returns the number of nodes that the job requests, or None if it is too large.
    pub fn wanted(&self) -> Option<usize> {
        let resource = &self.current.borrow()["resources"][0];
        match resource["type"] == "node" {
            true => usize::try_from(node_count(resource)?).ok(),
            false => Some(1),
        }
    }

    /// Returns the number of nodes that the job has, or had.
    pub fn nodes(&self) -> usize {
        let ranks = |resources: &Value| {
            resources
                .pointer("/execution/R_lite/0/rank")?
                .as_str()
                .and_then(size_of_range)
        };
        self.resources.borrow().as_ref().and_then(ranks).unwrap_or(1)
    }

    /// Allocates this number of nodes to the job: a resource set, version 1 of RFC 20, with one core on each.
    pub fn allocate(&self, nodes: usize) {
        let ranks = match nodes {
            1 => "0".to_owned(),
            n => format!("0-{}", n - 1),
        };
        // All nodes are this machine, as in a test instance of Flux. Its name appears once for each, in one hostlist.
        let hosts = vec![hostname(); nodes].join(",");
        *self.resources.borrow_mut() = Some(json!({
            "version": 1,
            "execution": {
                "R_lite": [{"rank": ranks, "children": {"core": "0"}}],
                "starttime": eventlog::now(), "expiration": 0.0, "nslots": nodes, "nodelist": [hosts],
            },
        }));
    }

    /// Returns the job's arguments for callbacks.
    pub fn args(&self) -> Value {
        let mut args = json!({
            "jobspec": *self.current.borrow(),
            "id": self.id.0,
            "userid": self.userid.get(),
            "urgency": self.urgency.get(),
            "state": self.state.get() as i64,
            "priority": self.priority.get(),
            "t_submit": self.t_submit.get(),
        });
        if let Some(resources) = &*self.resources.borrow() {
            args["R"] = resources.clone();
        }
        if let Some(entry) = &*self.end_event.borrow() {
            args["end_event"] = entry.object();
        }
        args
    }

    /// Returns whether an event of this name waits to be processed.
    pub fn is_queued(&self, name: &str) -> bool {
        self.queue.borrow().iter().any(|entry| entry.name == name)
    }

    /// Applies an event to the job. A failure describes the error in the event.
    pub fn update(&self, entry: &Entry) -> Result<(), Failure> {
        let state = self.state.get();
        let context = &entry.context;
        let malformed = |what: &str| Failure::new(libc::EPROTO, format!("event {}: {what}", entry.name));
        let integer = |key: &str| {
            let value = context[key].as_i64();
            value.ok_or_else(|| malformed(&format!("context has no integer {key:?}")))
        };
        let string = |key: &str| {
            let value = context[key].as_str();
            value.ok_or_else(|| malformed(&format!("context has no string {key:?}")))
        };
        match entry.name.as_str() {
            "submit" => {
                self.t_submit.set(entry.timestamp);
                self.urgency.set(integer("urgency")?);
                let userid = u32::try_from(integer("userid")?);
                self.userid.set(userid.map_err(|e| malformed(&e.to_string()))?);
            }
            "validate" => self.state.set(State::Depend),
            "jobspec-update" => {
                apply_updates(&mut self.current.borrow_mut(), context)?;
                // The priority may depend on the changed values.
                if state == State::Sched {
                    self.state.set(State::Priority);
                }
            }
            "dependency-add" if state == State::Depend || state == State::New => {
                let description = string("description")?;
                if self.grudges.borrow_mut().insert(description.to_owned()) {
                    self.dependencies.borrow_mut().push(description.to_owned());
                }
            }
            "dependency-remove" if state == State::Depend || state == State::New => {
                let description = string("description")?;
                let mut dependencies = self.dependencies.borrow_mut();
                match dependencies.iter().position(|known| known == description) {
                    Some(at) => drop(dependencies.remove(at)),
                    None => return Err(Failure::new(libc::ENOENT, format!("no dependency {description}"))),
                }
            }
            "depend" if state == State::Depend => self.state.set(State::Priority),
            "priority" if state == State::Priority || state == State::Sched => {
                self.priority.set(integer("priority")?);
                self.state.set(State::Sched);
            }
            "urgency" => {
                self.urgency.set(integer("urgency")?);
                if state == State::Sched {
                    self.state.set(State::Priority);
                }
            }
            "exception" if state != State::Inactive && state != State::New => {
                string("type")?;
                if integer("severity")? == 0 {
                    self.end_event.borrow_mut().get_or_insert_with(|| entry.clone());
                    self.state.set(State::Cleanup);
                }
            }
            "alloc" => {
                self.has_resources.set(true);
                if state == State::Sched {
                    self.state.set(State::Run);
                }
            }
            "set-flags" => {
                let flags = context["flags"].as_array().into_iter().flatten();
                if flags.into_iter().any(|flag| flag == "immutable") {
                    self.immutable.set(true);
                }
            }
            "start" => self.started.set(true),
            "free" => self.has_resources.set(false),
            "finish" if state == State::Run => {
                self.end_event.borrow_mut().get_or_insert_with(|| entry.clone());
                self.state.set(State::Cleanup);
            }
            "clean" if state == State::Cleanup => self.state.set(State::Inactive),
            "flux-restart" if state == State::Sched => self.state.set(State::Priority),
            name => match (name.strip_prefix("prolog-"), name.strip_prefix("epilog-")) {
                (Some(what), _) if !self.start_pending.get() => self.update_perilog(what)?,
                (_, Some(what)) if state == State::Cleanup => self.update_perilog(what)?,
                _ => (),
            },
        }
        Ok(())
    }

    /// Counts a prolog or an epilog that has started or finished.
    fn update_perilog(&self, what: &str) -> Result<(), Failure> {
        let active = self.perilog_active.get();
        self.perilog_active.set(match what {
            "start" => active.checked_add(1).ok_or_else(|| Failure::errno(libc::EOVERFLOW))?,
            "finish" => active.saturating_sub(1),
            _ => return Err(Failure::errno(libc::EPROTO)),
        });
        Ok(())
    }
}

/// Returns whether a plugin may make these updates to a jobspec. Only the prefix of each path is checked.
pub fn may_update(updates: &Value) -> bool {
    let mut paths = updates.as_object().into_iter().flat_map(Map::keys);
    paths.all(|path| matches!(path.split('.').next(), Some("attributes" | "resources" | "tasks")))
}

/// Sets the value at each path, whose parts are separated by dots. Creates missing objects on the path.
pub fn apply_updates(jobspec: &mut Value, updates: &Value) -> Result<(), Failure> {
    for (path, value) in updates.as_object().into_iter().flatten() {
        let mut place = &mut *jobspec;
        for part in path.split('.') {
            let object = place.as_object_mut().filter(|_| !part.is_empty());
            let Some(object) = object else {
                return Err(Failure::new(
                    libc::EINVAL,
                    format!("jobspec-update: there is no place for {path}"),
                ));
            };
            place = object.entry(part).or_insert_with(|| json!({}));
        }
        *place = value.clone();
    }
    Ok(())
}

/// Returns the number of ids in "N" or "N-M".
fn size_of_range(range: &str) -> Option<usize> {
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
    last.checked_sub(first)?.checked_add(1)
}

/// Returns a jobspec without its environment.
pub fn redacted(jobspec: &Value) -> Value {
    let mut copy = jobspec.clone();
    if let Some(system) = copy.pointer_mut("/attributes/system").and_then(Value::as_object_mut) {
        system.remove("environment");
    }
    copy
}

/// Returns the name of this node.
pub fn hostname() -> String {
    nix::sys::utsname::uname()
        .map(|name| name.nodename().to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Returns a jobspec, version 1, for a command with one task on each of some nodes.
pub fn jobspec(command: &[String], nodes: u64, environment: Value, attributes: &Value) -> Value {
    let mut all = attributes.as_object().cloned().unwrap_or_default();
    let mut system = Map::from_iter([("duration".into(), json!(0)), ("environment".into(), environment)]);
    match all.remove("system") {
        Some(Value::Object(given)) => system.extend(given),
        None => (),
        // Left unchanged, so that the check reports it.
        Some(other) => return json!({"attributes": {"system": other}}),
    }
    all.insert("system".into(), system.into());
    let slot = json!({"type": "slot", "count": 1, "label": "task", "with": [{"type": "core", "count": 1}]});
    json!({
        "version": 1,
        "resources": [{"type": "node", "count": nodes, "with": [slot]}],
        "tasks": [{"command": command, "slot": "task", "count": {"per_slot": 1}}],
        "attributes": all,
    })
}

/// Returns the number of nodes that a resource requests, or None if it is too large.
fn node_count(resource: &Value) -> Option<u64> {
    resource["count"]
        .as_u64()
        .filter(|count| (1..=NODES_MAX).contains(count))
}

/// Returns an error if a part of the jobspec that the simulator uses is invalid.
pub fn check_jobspec(jobspec: &Value) -> Result<(), String> {
    crate::c::Json::parse(&jobspec.to_string()).map_err(|e| format!("jobspec: {e}"))?;
    for name in [
        "",
        "/attributes",
        "/attributes/system",
        "/attributes/system/environment",
    ] {
        if jobspec.pointer(name).is_some_and(|value| !value.is_object()) {
            return Err(format!("jobspec{}: must be a dictionary", name.replace('/', ".")));
        }
    }
    let nodes = &jobspec["resources"][0];
    if nodes["type"] == "node" && node_count(nodes).is_none() {
        return Err(format!(
            "jobspec: resources[0].count must be a number of nodes from 1 to {NODES_MAX}"
        ));
    }
    let command = jobspec.pointer("/tasks/0/command").and_then(Value::as_array);
    if !command.is_some_and(|words| !words.is_empty() && words.iter().all(Value::is_string)) {
        return Err("jobspec: tasks[0].command must be an array of strings".into());
    }
    Ok(())
}
