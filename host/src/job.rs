//! Jobs: their data, and what each event changes in it.
//!
//! Of Flux: the state machine of RFC 21, as far as a job goes through it here. There are no dependencies other than
//! those that nobody adds, and one resource that never runs out.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use serde_json::{Map, Value, json};

use crate::eventlog::Entry;
use crate::jobid::JobId;

/// A job has no more nodes: each is a shell, a process of this node.
pub const NODES_MAX: u64 = 64;

/// The states of a job, with the numbers that Flux gives them.
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
    /// Gives its resources back.
    Cleanup = 32,
    /// Ended.
    Inactive = 64,
}

impl State {
    /// The name of the state.
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

    /// The topic of the callback for the transition to this state.
    pub fn topic(self) -> String {
        format!("job.state.{}", self.name().to_lowercase())
    }
}

/// A job that was validated as far as the host needs it.
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// The job owner.
    pub userid: Cell<u32>,
    /// The state, driven by events.
    pub state: Cell<State>,
    /// What the user asked for, with the environment.
    pub jobspec: Value,
    /// Event lines as they were posted.
    pub eventlog: RefCell<Vec<Entry>>,
    /// How many of them are in the KVS.
    pub committed: Cell<usize>,
    /// Events that wait to be processed; the first is in process.
    pub queue: RefCell<VecDeque<Entry>>,
    /// Events wait until the job's submission is in the KVS.
    pub hold_events: Cell<bool>,
    /// 0 to 31.
    pub urgency: Cell<i64>,
    /// Set by the event `priority`; -1 before.
    pub priority: Cell<i64>,
    /// When it was submitted.
    pub t_submit: Cell<f64>,
    /// Prologs and epilogs that have not finished.
    pub perilog_active: Cell<u8>,
    /// The request to start the job awaits its last response.
    pub start_pending: Cell<bool>,
    /// The job was started.
    pub started: Cell<bool>,
    /// Resources are allocated.
    pub has_resources: Cell<bool>,
    /// A request for resources is outstanding.
    pub alloc_pending: Cell<bool>,
    /// `depend` was posted.
    pub depend_posted: Cell<bool>,
    /// `free` was posted.
    pub free_posted: Cell<bool>,
    /// The event that ended the job: `finish` or `exception`.
    pub end_event: RefCell<Option<Entry>>,
}

impl Job {
    /// A job before its first event.
    pub fn new(id: JobId, userid: u32, urgency: i64, jobspec: Value) -> Job {
        Job {
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
            depend_posted: Cell::new(false),
            free_posted: Cell::new(false),
            end_event: RefCell::default(),
        }
    }

    /// The jobspec as plugins and the KVS get it: without the environment.
    pub fn redacted(&self) -> Value {
        redacted(&self.jobspec)
    }

    /// The number of nodes that the job asks for.
    pub fn nodes(&self) -> usize {
        let resource = &self.jobspec["resources"][0];
        match resource["type"] == "node" {
            true => resource["count"].as_u64().unwrap_or(1).max(1) as usize,
            false => 1,
        }
    }

    /// The resource set, version 1 of RFC 20, with one core on each node.
    pub fn resources(&self) -> Value {
        let ranks = match self.nodes() {
            1 => "0".to_owned(),
            n => format!("0-{}", n - 1),
        };
        let hosts: Vec<String> = vec![hostname(); self.nodes()];
        json!({
            "version": 1,
            "execution": {
                "R_lite": [{"rank": ranks, "children": {"core": "0"}}],
                "starttime": 0, "expiration": 0, "nodelist": hosts,
            },
        })
    }

    /// What a callback gets to know of the job.
    pub fn args(&self) -> Value {
        let mut args = json!({
            "jobspec": self.redacted(),
            "id": self.id.0,
            "userid": self.userid.get(),
            "urgency": self.urgency.get(),
            "state": self.state.get() as i64,
            "priority": self.priority.get(),
            "t_submit": self.t_submit.get(),
        });
        if self.has_resources.get() {
            args["R"] = self.resources();
        }
        if let Some(entry) = &*self.end_event.borrow() {
            args["end_event"] = entry.object();
        }
        args
    }

    /// Whether an event of this name waits to be processed.
    pub fn is_queued(&self, name: &str) -> bool {
        self.queue.borrow().iter().any(|entry| entry.name == name)
    }

    /// Changes the job as an event says. An error is what is wrong with the event.
    pub fn update(&self, entry: &Entry) -> Result<(), String> {
        let state = self.state.get();
        let context = &entry.context;
        let integer = |key: &str| {
            context[key]
                .as_i64()
                .ok_or_else(|| format!("event {}: context has no integer {key:?}", entry.name))
        };
        match entry.name.as_str() {
            "submit" => {
                self.t_submit.set(entry.timestamp);
                self.urgency.set(integer("urgency")?);
                self.userid
                    .set(u32::try_from(integer("userid")?).map_err(|e| e.to_string())?);
            }
            "validate" => self.state.set(State::Depend),
            "depend" if state == State::Depend => self.state.set(State::Priority),
            "priority" if state == State::Priority || state == State::Sched => {
                self.priority.set(integer("priority")?);
                self.state.set(State::Sched);
            }
            "exception" if state != State::Inactive && state != State::New && integer("severity")? == 0 => {
                self.end_event.borrow_mut().get_or_insert_with(|| entry.clone());
                self.state.set(State::Cleanup);
            }
            "alloc" => {
                self.has_resources.set(true);
                if state == State::Sched {
                    self.state.set(State::Run);
                }
            }
            "start" => self.started.set(true),
            "free" => self.has_resources.set(false),
            "finish" if state == State::Run => {
                self.end_event.borrow_mut().get_or_insert_with(|| entry.clone());
                self.state.set(State::Cleanup);
            }
            "clean" if state == State::Cleanup => self.state.set(State::Inactive),
            "prolog-start" | "epilog-start" => {
                let count = self
                    .perilog_active
                    .get()
                    .checked_add(1)
                    .ok_or("too many prologs and epilogs")?;
                self.perilog_active.set(count);
            }
            "prolog-finish" | "epilog-finish" => {
                self.perilog_active.set(self.perilog_active.get().saturating_sub(1));
            }
            "flux-restart" if state == State::Sched => self.state.set(State::Priority),
            _ => (),
        }
        Ok(())
    }
}

/// A jobspec without its environment.
pub fn redacted(jobspec: &Value) -> Value {
    let mut copy = jobspec.clone();
    if let Some(system) = copy.pointer_mut("/attributes/system").and_then(Value::as_object_mut) {
        system.remove("environment");
    }
    copy
}

/// The name of this node.
pub fn hostname() -> String {
    nix::sys::utsname::uname()
        .map(|name| name.nodename().to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// A jobspec, version 1, for a command with one task on each of some nodes.
pub fn jobspec(command: &[String], nodes: u64, environment: Value, attributes: &Value) -> Value {
    let mut all = attributes.as_object().cloned().unwrap_or_default();
    let mut system = Map::from_iter([("duration".into(), json!(0)), ("environment".into(), environment)]);
    match all.remove("system") {
        Some(Value::Object(given)) => system.extend(given),
        None => (),
        // Left as it is, for the check to name it.
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

/// What is wrong with a jobspec, if anything of that which the host uses.
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
    if nodes["type"] == "node"
        && !nodes["count"]
            .as_u64()
            .is_some_and(|count| (1..=NODES_MAX).contains(&count))
    {
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
