// SPDX-License-Identifier: MIT OR Apache-2.0

//! The control of an instance: one JSON request per line on standard input, and one JSON response per line on standard
//! output.
//!
//! A request is an object with the member `cmd`. The response contains `ok` and, if that is false, `error` (and
//! `errnum`, if known). It repeats the `id` of its request. A response is sent when its request completes, so the
//! response to a wait may follow those to later requests. A `jobid` is a string in any encoding, or a number. The
//! default `userid` is that of the instance owner.
//!
//! | `cmd` | members (`?`: may be left out) | response |
//! |---|---|---|
//! | `load` | `path`, `conf?` | `name`, for `remove` and `query` |
//! | `remove` | `name`, a glob, or `all` | `count` |
//! | `list` | | `plugins` |
//! | `query` | `name` | `result` of `plugin.query` |
//! | `config-reload` | `config` (object) or `path` | |
//! | `submit` | `jobspec`, or `command` `env?` `attributes?` `nodes?`; `userid?` `urgency?` | `jobid`, `jobid_dec` |
//! | `cancel`, `raise` | `jobid`, `userid?` `type?` `severity?` `note?` | |
//! | `update` | `jobid`, `updates`, `userid?` | |
//! | `post` | `jobid`, `name`, `context?` | |
//! | `wait` | `jobid`, `event`, `count?` | `event`, once the count-th of that name is in the KVS |
//! | `state` | `jobid` | `state`, `dependencies`, `perilog_active`, `priority`, `userid`, `end_event` |
//! | `eventlog` | `jobid` | `events` that are in the KVS |
//! | `output` | `jobid` | `output`, and its parts `stdout` and `stderr` |
//! | `lookup` | `jobid`, `key` or `keys`, `userid?` `flags?` | `value` or, by key, `values`, through job-info.lookup |
//! | `kvs-get`, `kvs-put`, `kvs-list` | `key`; `key`, `value` (null to unlink it); | `value`; ; `keys` |
//! | `rpc` | `topic`, `payload?` `userid?` | `payload` |
//! | `service` | `topic`, and `payload`, or `errnum` `errstr?`, or `hold` true, or none | sets the response to the topic |
//! | `requests` | | `requests`: the payloads so far, for each topic that a test plays or nobody serves |
//! | `wait-request` | `topic`, `count?` | `payload` of the count-th request of the topic, once it has arrived |
//! | `respond` | `topic`, `count?`, and `payload` or `errnum` `errstr?` or neither | `payload` of the request |
//! | `dmesg` | | `lines` |
//! | `wait-log` | `text` | `line`, the first that contains the text |
//! | `fault` | `what`: `commit` with `errnum?` `count?`, `hold-commits`, `release-commits`, and the same for `lookups`, `allocs` and `starts` | |
//! | `wait-held` | `count?` | `held`, once this number of commits is held |
//! | `stats` | `reset?` | `turns`, `longest_us`, `held_commits`, `held_operations` in them, `futures` and `watchers` of plugins, and `count`, `total_us` and `max_us` for each of `topics` |
//! | `shutdown` | | |
//!
//! If a topic is held, its requests wait for a `respond`, which addresses the count-th request of the topic, or the
//! first that waits. A request that a plugin neither answers nor keeps fails with EPROTO. A request kept by a plugin
//! that is removed fails with ENOSYS.
//!
//! A fault affects the commits of plugins: `count` of them fail (all if negative, 0 to stop), or they stay outstanding.
//! Lookups in the KVS can be left outstanding, too. Jobs stay in SCHED while allocations are held. While starts are
//! held, they stay in RUN without a process.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde_json::{Value, json};

use crate::Plugins;
use crate::c::cstring;
use crate::exec::Stream;
use crate::future::{Failure, Outcome};
use crate::instance::{Instance, json_payload};
use crate::job::{self, Job, State};
use crate::jobid::JobId;
use crate::kvs::{self, Txn};
use crate::stage::Act;

/// The maximum length of a request.
const LINE_MAX: usize = 16 << 20;

/// The outcome of a request: the fields of the result, or a failure.
type Answer = Result<Value, Failure>;

/// The condition for which a request waits. It returns None while the wait continues.
type Condition = Box<dyn FnMut() -> Option<Answer>>;

struct Control {
    instance: Rc<Instance>,
    input: RefCell<Vec<u8>>,
    waiting: RefCell<Vec<(Reply, Condition)>>,
}

/// Sends the response to a request.
struct Reply(Option<Value>);

impl Reply {
    fn send(&self, answer: Answer) {
        let mut response = match answer {
            Ok(Value::Object(fields)) => Value::Object(fields),
            Ok(_) => json!({}),
            Err(Failure { errnum: 0, text }) => json!({"error": text}),
            Err(Failure { errnum, text }) => json!({"error": text, "errnum": errnum}),
        };
        response["ok"] = json!(response.get("error").is_none());
        if let Some(id) = &self.0 {
            response["id"] = id.clone();
        }
        // If nobody reads the responses, standard input ends, too.
        let _ = std::io::stdout().lock().write_all(format!("{response}\n").as_bytes());
    }
}

/// Runs an instance until standard input ends, or until a shutdown request.
pub fn main(statedir: &Path, plugins: &Plugins) -> Result<ExitCode, String> {
    let error = |e: std::io::Error| format!("{}: {e}", statedir.display());
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(statedir)
        .map_err(error)?;
    let signals = signals()?;
    let instance = Instance::start(statedir, plugins)?;
    let control = Rc::new(Control {
        instance: instance.clone(),
        input: RefCell::default(),
        waiting: RefCell::default(),
    });

    let reactor = instance.handle.reactor.clone();
    let stdin = File::from(
        std::io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|e| format!("stdin: {e}"))?,
    );
    let (stdin_fd, reader) = (stdin.as_raw_fd(), control.clone());
    let _stdin = reactor.watch(stdin_fd, move || reader.read(&stdin));
    let stopped = reactor.clone();
    let _signals = reactor.watch(signals.as_fd().as_raw_fd(), move || stopped.stop());

    reactor.run(|| control.check_waiting());
    for (reply, _) in control.waiting.take() {
        reply.send(Err(plain("the instance was shut down")));
    }
    instance.shutdown();
    Ok(if instance.has_failed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Delivers SIGTERM and SIGINT as events.
pub fn signals() -> Result<SignalFd, String> {
    let set: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    set.thread_block()
        .and_then(|()| SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC))
        .map_err(|e| format!("signalfd: {}", e.desc()))
}

/// A failure without an error number.
fn plain(text: impl Into<String>) -> Failure {
    Failure::new(0, text)
}

fn required<'a>(request: &'a Value, key: &str) -> Result<&'a str, Failure> {
    request[key]
        .as_str()
        .ok_or_else(|| plain(format!("the request needs a string {key:?}")))
}

fn userid(request: &Value, default: u32) -> Result<u32, Failure> {
    match &request["userid"] {
        Value::Null => Ok(default),
        value => value
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| plain("\"userid\" is not a uid")),
    }
}

/// Returns the failure with which a request wants another one answered.
fn failure(request: &Value) -> Option<Failure> {
    let errnum = request["errnum"]
        .as_i64()
        .and_then(|errnum| i32::try_from(errnum).ok())?;
    Some(match request["errstr"].as_str() {
        Some(text) => Failure::new(errnum, text),
        None => Failure::errno(errnum),
    })
}

fn jobid(request: &Value) -> Result<JobId, Failure> {
    match &request["jobid"] {
        Value::String(text) => JobId::parse(text).ok_or_else(|| plain(format!("{text:?} is not a job id"))),
        value => value
            .as_u64()
            .map(JobId)
            .ok_or_else(|| plain("the request needs a \"jobid\"")),
    }
}

impl Control {
    fn read(self: &Rc<Self>, mut stdin: &File) {
        let mut buf = [0; 65536];
        let n = stdin.read(&mut buf).unwrap_or(0);
        let mut input = self.input.borrow_mut();
        input.extend_from_slice(&buf[..n]);
        if n == 0 || input.len() > LINE_MAX {
            self.instance.handle.reactor.stop();
        }
        let complete = input.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
        let lines: Vec<u8> = input.drain(..complete).collect();
        drop(input);
        for line in lines
            .split(|&b| b == b'\n')
            .filter(|line| !line.trim_ascii().is_empty())
        {
            match serde_json::from_slice::<Value>(line) {
                Ok(request) if request.is_object() => {
                    let reply = Reply(request.get("id").cloned());
                    self.request(&request, reply);
                }
                Ok(_) => Reply(None).send(Err(plain("a request is a JSON object"))),
                Err(e) => Reply(None).send(Err(plain(format!("the request is not JSON: {e}")))),
            }
        }
    }

    fn check_waiting(&self) {
        let mut waiting = self.waiting.take();
        waiting.retain_mut(|(reply, condition)| match condition() {
            Some(answer) => {
                reply.send(answer);
                false
            }
            None => true,
        });
        self.waiting.borrow_mut().extend(waiting);
    }

    fn request(self: &Rc<Self>, request: &Value, reply: Reply) {
        let result = match request["cmd"].as_str() {
            Some("submit") => return self.submit(request, reply),
            Some("rpc") => return self.rpc(request, reply),
            Some("lookup") => return self.lookup(request, reply),
            Some("kvs-put") => return self.kvs_put(request, reply),
            Some("wait") => self.wait(request),
            Some("wait-held") => Ok(self.wait_held(request)),
            Some("wait-log") => self.wait_log(request),
            Some("wait-request") => self.wait_request(request),
            _ => return reply.send(self.answer(request)),
        };
        match result {
            Ok(condition) => self.waiting.borrow_mut().push((reply, condition)),
            Err(failure) => reply.send(Err(failure)),
        }
    }

    /// Answers requests that complete immediately.
    fn answer(&self, request: &Value) -> Answer {
        let instance = &self.instance;
        let jobtap = &instance.jobtap;
        match required(request, "cmd")? {
            "load" => {
                let name = jobtap.load(instance, required(request, "path")?, &request["conf"])?;
                Ok(json!({"name": name}))
            }
            "remove" => Ok(json!({"count": jobtap.remove(instance, required(request, "name")?)?})),
            "list" => Ok(json!({"plugins": jobtap.list()})),
            "query" => Ok(json!({"result": jobtap.query(required(request, "name")?)?})),
            "config-reload" => {
                let config = match request["path"].as_str() {
                    Some(path) => crate::read_config(Path::new(path)).map_err(plain)?,
                    None => request["config"].clone(),
                };
                match config.is_object() {
                    true => instance.reconfigure(config).map(|()| json!({})),
                    false => Err(plain("the request needs a \"path\" or an object \"config\"")),
                }
            }
            "cancel" | "raise" => {
                let kind = request["type"].as_str().unwrap_or("cancel");
                let severity = request["severity"].as_i64().unwrap_or(0);
                let note = request["note"].as_str().unwrap_or("");
                let id = jobid(request)?.0;
                let payload = json!({"id": id, "type": kind, "severity": severity, "note": note});
                instance
                    .raise_request(&payload, userid(request, instance.owner)?)
                    .map(|()| json!({}))
            }
            "update" => {
                let userid = userid(request, instance.owner)?;
                let updated = instance.update_request(jobid(request)?, &request["updates"], userid);
                updated.map(|()| json!({}))
            }
            "state" => {
                let job = self.job(request)?;
                Ok(json!({
                    "state": job.state.get().name(),
                    "dependencies": *job.dependencies.borrow(),
                    "perilog_active": job.perilog_active.get(),
                    "priority": job.priority.get(),
                    "userid": job.userid.get(),
                    "end_event": job.end_event.borrow().as_ref().map(|entry| entry.object()),
                }))
            }
            "eventlog" => {
                let job = self.job(request)?;
                let entries = job.eventlog.borrow();
                let events: Vec<Value> = entries[..job.committed.get()]
                    .iter()
                    .map(|entry| entry.object())
                    .collect();
                Ok(json!({"events": events}))
            }
            "post" => {
                let job = self.active_job(request)?;
                let context = match &request["context"] {
                    Value::Null => Value::Null,
                    Value::Object(context) => Value::Object(context.clone()),
                    _ => return Err(plain("\"context\" is not an object")),
                };
                match instance.post(&job, required(request, "name")?, context) {
                    true => Ok(json!({})),
                    false => Err(plain("the event is impossible: see dmesg")),
                }
            }
            "output" => {
                let id = self.job(request)?.id;
                let output = |stream| instance.exec.output(id, stream);
                let (stdout, stderr) = (output(Some(Stream::Stdout)), output(Some(Stream::Stderr)));
                Ok(json!({"output": output(None), "stdout": stdout, "stderr": stderr}))
            }
            "kvs-get" => {
                let value = instance.kvs.get(required(request, "key")?)?;
                Ok(json!({"value": String::from_utf8_lossy(&value)}))
            }
            "kvs-list" => Ok(json!({"keys": instance.kvs.keys()})),
            "dmesg" => Ok(json!({"lines": instance.dmesg()})),
            "fault" => self.fault(request),
            "service" => self.service(request),
            "requests" => Ok(json!({"requests": instance.stage.requests()})),
            "respond" => self.respond(request),
            "stats" => {
                let reactor = &instance.handle.reactor;
                let mut stats = reactor.stats();
                stats["held_commits"] = json!(instance.kvs.held());
                stats["held_operations"] = json!(instance.kvs.held_operations());
                stats["futures"] = json!(crate::c::FUTURES.count());
                stats["watchers"] = json!(crate::c::WATCHERS.count());
                if request["reset"] == true {
                    reactor.reset_stats();
                }
                Ok(stats)
            }
            "shutdown" => {
                instance.handle.reactor.stop();
                Ok(json!({}))
            }
            other => Err(plain(format!("unknown command {other:?}"))),
        }
    }

    fn job(&self, request: &Value) -> Result<Rc<Job>, Failure> {
        let id = jobid(request)?;
        self.instance
            .job(id)
            .ok_or_else(|| Failure::new(libc::ENOENT, format!("{id}: unknown job id")))
    }

    fn active_job(&self, request: &Value) -> Result<Rc<Job>, Failure> {
        let job = self.job(request)?;
        match job.state.get() {
            State::Inactive => Err(Failure::new(libc::ENOENT, format!("{}: job is inactive", job.id))),
            _ => Ok(job),
        }
    }

    fn fault(&self, request: &Value) -> Answer {
        let kvs = &self.instance.kvs;
        match required(request, "what")? {
            "commit" => {
                let errnum = request["errnum"].as_i64().and_then(|errnum| i32::try_from(errnum).ok());
                kvs.refuse(request["count"].as_i64().unwrap_or(1), errnum.unwrap_or(libc::EIO));
            }
            "hold-commits" => kvs.hold(),
            "release-commits" => kvs.release(),
            "hold-lookups" => kvs.hold_lookups(),
            "release-lookups" => kvs.release_lookups(),
            "hold-allocs" => self.instance.hold_allocs(),
            "release-allocs" => self.instance.release_allocs(),
            "hold-starts" => self.instance.exec.hold(),
            "release-starts" => self.instance.start_jobs(),
            other => return Err(plain(format!("unknown fault {other:?}"))),
        }
        Ok(json!({}))
    }

    /// Answers a topic in place of a service of Flux: with a payload, with an error, later, or no longer.
    fn service(&self, request: &Value) -> Answer {
        let act = match (failure(request), request.get("payload")) {
            _ if request["hold"] == true => Some(Act::Hold),
            (Some(failure), _) => Some(Act::Answer(Err(failure))),
            (None, Some(payload)) => Some(Act::Answer(Ok(payload.clone()))),
            (None, None) => None,
        };
        self.instance.stage.play(required(request, "topic")?.to_owned(), act);
        Ok(json!({}))
    }

    /// Responds to a held request.
    fn respond(&self, request: &Value) -> Answer {
        let topic = required(request, "topic")?;
        let count = request["count"].as_u64().and_then(|count| usize::try_from(count).ok());
        let outcome = match failure(request) {
            Some(failure) => Err(failure),
            None => Ok(request.get("payload").and_then(json_payload)),
        };
        match self.instance.stage.respond(topic, count, outcome) {
            Some(payload) => Ok(json!({"payload": payload})),
            None => Err(plain(format!("{topic}: no such request is held"))),
        }
    }

    fn submit(&self, request: &Value, reply: Reply) {
        let instance = &self.instance;
        let job = userid(request, instance.owner).and_then(|userid| {
            let jobspec = match &request["jobspec"] {
                Value::Null => {
                    let words = request["command"]
                        .as_array()
                        .map(|words| words.iter().map(Value::as_str));
                    let command = words.and_then(|words| words.map(|word| word.map(str::to_owned)).collect());
                    let command: Vec<String> =
                        command.ok_or_else(|| plain("the request needs a \"jobspec\" or a \"command\""))?;
                    let nodes = match &request["nodes"] {
                        Value::Null => 1,
                        nodes => nodes.as_u64().unwrap_or(0),
                    };
                    let env = request.get("env").cloned().unwrap_or_else(|| json!({}));
                    job::jobspec(&command, nodes, env, &request["attributes"])
                }
                jobspec => jobspec.clone(),
            };
            Ok((userid, request["urgency"].as_i64().unwrap_or(16), jobspec))
        });
        match job {
            Ok((userid, urgency, jobspec)) => instance.submit(
                userid,
                urgency,
                jobspec,
                Box::new(move |submitted| {
                    reply.send(match submitted {
                        Ok(id) => Ok(json!({"jobid": id.to_string(), "jobid_dec": id.0})),
                        Err(error) => Err(plain(error)),
                    });
                }),
            ),
            Err(failure) => reply.send(Err(failure)),
        }
    }

    /// Sends a request as a user.
    fn rpc(&self, request: &Value, reply: Reply) {
        let instance = &self.instance;
        let prepared = userid(request, instance.owner).and_then(|userid| Ok((userid, required(request, "topic")?)));
        let (userid, topic) = match prepared {
            Ok(prepared) => prepared,
            Err(failure) => return reply.send(Err(failure)),
        };
        let payload = request.get("payload").map(|payload| cstring(payload.to_string()));
        let done = move |outcome: Outcome| {
            reply.send(outcome.map(|payload| {
                let text = payload
                    .map(|payload| payload.to_string_lossy().into_owned())
                    .unwrap_or_default();
                json!({"payload": serde_json::from_str(&text).unwrap_or(json!(text))})
            }));
        };
        instance.request_as(userid, topic.to_owned(), payload, Box::new(done));
    }

    /// Reads keys of a job, as `flux job info` does.
    fn lookup(&self, request: &Value, reply: Reply) {
        let instance = &self.instance;
        let prepared = userid(request, instance.owner).and_then(|userid| {
            let keys = match &request["keys"] {
                Value::Array(_) => request["keys"].clone(),
                _ => json!([required(request, "key")?]),
            };
            Ok((userid, jobid(request)?, keys))
        });
        let (userid, id, keys) = match prepared {
            Ok(prepared) => prepared,
            Err(failure) => return reply.send(Err(failure)),
        };
        let payload = json!({"id": id.0, "keys": keys, "flags": request["flags"].as_i64().unwrap_or(0)});
        let key = request["key"].as_str().map(str::to_owned);
        let done = move |outcome: Outcome| {
            reply.send(outcome.map(|payload| {
                let text = payload
                    .map(|payload| payload.to_string_lossy().into_owned())
                    .unwrap_or_default();
                let response: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
                match key {
                    Some(key) => json!({"value": response[&key]}),
                    None => json!({"values": response}),
                }
            }));
        };
        let payload = Some(cstring(payload.to_string()));
        instance.request_as(userid, "job-info.lookup".into(), payload, Box::new(done));
    }

    fn kvs_put(&self, request: &Value, reply: Reply) {
        let key = required(request, "key")
            .and_then(|key| kvs::normalize(key).ok_or_else(|| plain(format!("{key:?} is not a key"))));
        let txn = key.and_then(|key| match request.get("value") {
            Some(Value::Null) => Ok(Txn::default().unlink(key)),
            _ => Ok(Txn::default().put(key, required(request, "value")?)),
        });
        match txn {
            Ok(txn) => {
                self.instance
                    .kvs
                    .commit(txn, move |outcome| reply.send(outcome.map(|_| json!({}))));
            }
            Err(failure) => reply.send(Err(failure)),
        }
    }

    /// Waits until the KVS contains the n-th event of a name.
    fn wait(&self, request: &Value) -> Result<Condition, Failure> {
        let job = self.job(request)?;
        let event = required(request, "event")?.to_owned();
        let count = request["count"].as_u64().unwrap_or(1).max(1) as usize;
        let (mut seen, mut found) = (0, 0);
        Ok(Box::new(move || {
            let entries = job.eventlog.borrow();
            while seen < job.committed.get() {
                let entry = &entries[seen];
                seen += 1;
                found += usize::from(entry.name == event);
                if found == count {
                    return Some(Ok(json!({"event": entry.object()})));
                }
            }
            let over = job.state.get() == State::Inactive && seen == entries.len();
            over.then(|| {
                Err(plain(format!(
                    "{}: the job has ended without the event {event}",
                    job.id
                )))
            })
        }))
    }

    /// Waits until the given number of plugin commits are held.
    fn wait_held(&self, request: &Value) -> Condition {
        let count = request["count"].as_u64().unwrap_or(1) as usize;
        let kvs = self.instance.kvs.clone();
        Box::new(move || (kvs.held() >= count).then(|| Ok(json!({"held": kvs.held()}))))
    }

    /// Waits until the given number of requests of a topic have arrived.
    fn wait_request(&self, request: &Value) -> Result<Condition, Failure> {
        let topic = required(request, "topic")?.to_owned();
        let count = request["count"].as_u64().unwrap_or(1).max(1) as usize;
        let instance = self.instance.clone();
        Ok(Box::new(move || {
            let payload = instance.stage.request(&topic, count)?;
            Some(Ok(json!({"payload": payload})))
        }))
    }

    /// Waits until a message that contains a text was logged.
    fn wait_log(&self, request: &Value) -> Result<Condition, Failure> {
        let text = required(request, "text")?.to_owned();
        let instance = self.instance.clone();
        let mut seen = 0;
        Ok(Box::new(move || {
            let lines = instance.dmesg_after(seen);
            seen += lines.len();
            lines
                .into_iter()
                .find(|line| line.contains(&text))
                .map(|line| Ok(json!({"line": line})))
        }))
    }
}
