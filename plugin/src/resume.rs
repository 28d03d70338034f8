//! Deliveries that were begun by a plugin that has been removed since, or by a job manager that has ended.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use ffi::{Args, JobId, JobState, LogLevel};
use serde_json::Value;

use crate::{manager::Inner, stats::Stay, work::Failure};

/// After what time an eventlog that could not be read is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// The same where there was no answer at all.
const ASK_AGAIN_UNANSWERED: Duration = Duration::from_secs(90);

/// How many eventlogs are asked for at once.
const AT_ONCE: usize = 64;

/// A timer of Flux that is started before its reactor has run, as at a restart, is over at once.
const NO_TIMER: f64 = -1.0;

/// How far the delivery of a job had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Past {
    /// There was none.
    None,
    /// The prolog is outstanding.
    Outstanding,
    /// The prolog has finished, and this was its status.
    Finished(i64),
}

/// Whether the job has started, RFC 21.
pub(crate) fn has_started(eventlog: &str) -> bool {
    has_event(eventlog, "start")
}

/// Whether its shells have finished, RFC 21.
pub(crate) fn has_finished(eventlog: &str) -> bool {
    has_event(eventlog, "finish")
}

fn has_event(eventlog: &str, name: &str) -> bool {
    let mut events = eventlog
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.any(|event| event["name"] == name)
}

/// Reads an eventlog, RFC 18: one JSON object for each line, with the context of prologs and epilogs (`which`) as RFC 21
/// has it.
pub(crate) fn past(eventlog: &str, which: &str, description: &str) -> Past {
    let (start, finish) = (format!("{which}-start"), format!("{which}-finish"));
    let mut past = Past::None;
    for line in eventlog.lines() {
        let Ok(event) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let context = &event["context"];
        if context["description"] != description {
            continue;
        }
        match event["name"].as_str() {
            Some(name) if name == start => past = Past::Outstanding,
            Some(name) if name == finish => past = Past::Finished(context["status"].as_i64().unwrap_or(1)),
            _ => {}
        }
    }
    past
}

/// The names of events, RFC 21, and what their contexts have as `description`.
pub(crate) fn described(eventlog: &str) -> impl Iterator<Item = (String, String)> {
    let events = eventlog
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.filter_map(|event| {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Some((text(&event["name"])?, text(&event["context"]["description"])?))
    })
}

impl Inner {
    /// Takes up a job that was past SCHED when the plugin was loaded.
    pub(crate) fn resume(inner: &Rc<Self>, args: &Args<'_>, job: JobId, uid: u32, state: JobState) {
        let stay = Stay::begin();
        // It is active: its record, if it has one, is not to be removed yet.
        inner.ended_meanwhile.borrow_mut().remove(&job);
        match inner.past_left(job) {
            // The same job manager: what was left is exact, and the eventlog in the KVS may be behind.
            Some(Past::None) if state == JobState::Run => Self::late(inner, args, job, uid, &stay),
            Some(past) => Self::go_on(inner, args, job, uid, state, past, &stay),
            // Another one: what it wrote of the job is in the KVS.
            None => Self::read_eventlog(inner, job),
        }
    }

    /// How far the delivery of a job had come, by what the plugin before this one left: nothing where there was none in this
    /// job manager, or where it did not know.
    pub(crate) fn past_left(&self, job: JobId) -> Option<Past> {
        let left = self.left.borrow();
        let left = left.as_ref().filter(|left| !left.unknown.contains(&job))?;
        Some(if left.in_flight.contains(&job) {
            Past::Outstanding
        } else if left.delivered.contains(&job) {
            Past::Finished(0)
        } else {
            Past::None
        })
    }

    /// The job entered RUN while no plugin was loaded. If another prolog still holds it, there is time; if it has
    /// started, prolog-start is refused and the job is left alone.
    pub(crate) fn late(inner: &Rc<Self>, args: &Args<'_>, job: JobId, uid: u32, stay: &Stay) {
        let Some(matching) = inner.matching(args, uid) else {
            return;
        };
        if inner.jobtap.prolog_start(inner.kind.prolog).is_ok() {
            inner.unless_it_panics(job, || inner.begin(matching, job, uid, stay));
        }
    }

    pub(crate) fn go_on(
        inner: &Rc<Self>,
        args: &Args<'_>,
        job: JobId,
        uid: u32,
        state: JobState,
        past: Past,
        stay: &Stay,
    ) {
        match (past, state) {
            (Past::None, _) => {}
            (Past::Finished(_), _) => {
                inner.delivered.borrow_mut().insert(job);
            }
            (Past::Outstanding, JobState::Run) => {
                inner.stats.borrow_mut().resumed += 1;
                match inner.matching(args, uid) {
                    Some(matching) => inner.begin(matching, job, uid, stay),
                    None => {
                        let why = "no rule matches it any more: the configuration was changed during its delivery";
                        inner.fail(job, &Failure::new("the rules were changed: submit it again", why));
                    }
                }
            }
            (Past::Outstanding, _) => {
                inner.stats.borrow_mut().canceled += 1;
                inner.finish_prolog(job, 1);
            }
        }
    }

    /// The eventlog of a job tells how far its delivery had come. It is asked for when fewer others are.
    pub(crate) fn read_eventlog(inner: &Rc<Self>, job: JobId) {
        inner
            .unknown
            .borrow_mut()
            .insert(job, Instant::now() + ASK_AGAIN_UNANSWERED);
        inner.unasked.borrow_mut().push_back(job);
        inner.tick();
        Self::ask(inner);
    }

    fn ask(inner: &Rc<Self>) {
        while inner.asking.get() < AT_ONCE {
            let Some(job) = inner.unasked.borrow_mut().pop_front() else {
                return;
            };
            if let Some(at) = inner.unknown.borrow_mut().get_mut(&job) {
                *at = Instant::now() + ASK_AGAIN_UNANSWERED;
            } else {
                // It is known meanwhile, or gone.
                continue;
            }
            Self::ask_for_eventlog(inner, job);
        }
    }

    fn ask_for_eventlog(inner: &Rc<Self>, job: JobId) {
        let number = inner.number();
        let weak = Rc::downgrade(inner);
        let asked = job.kvs_key("eventlog").and_then(|key| {
            inner.flux().lookup(&key)?.then(NO_TIMER, move |future| {
                let Some(inner) = weak.upgrade() else { return };
                let done = inner.pending.borrow_mut().remove(&number);
                inner.asking.set(inner.asking.get() - 1);
                // It may have been asked twice, and this be the later answer.
                if inner.unknown.borrow_mut().remove(&job).is_some() {
                    inner.unless_it_panics(job, || Self::was_read(&inner, job, &future));
                }
                drop(done);
                Self::ask(&inner);
            })
        });
        match asked {
            Ok(pending) => {
                inner.asking.set(inner.asking.get() + 1);
                inner.pending.borrow_mut().insert(number, pending);
            }
            Err(e) => inner.unread(job, &e),
        }
    }

    fn was_read(inner: &Rc<Self>, job: JobId, future: &ffi::Future) {
        ffi::inject_fault("eventlog");
        match future.value() {
            Ok(eventlog) => {
                let eventlog = eventlog.unwrap_or_default();
                match inner.hooks() {
                    Some(hooks) => hooks.resume(job, &eventlog),
                    None => Self::resume_from(inner, job, &eventlog),
                }
            }
            Err(e) => inner.unread(job, &e),
        }
    }

    /// Asks for the eventlogs that could not be read before.
    pub(crate) fn ask_again(inner: &Rc<Self>) {
        let now = Instant::now();
        let due: Vec<JobId> = {
            let unknown = inner.unknown.borrow();
            unknown
                .iter()
                .filter(|(_, at)| **at <= now)
                .map(|(job, _)| *job)
                .take(16)
                .collect()
        };
        for job in due {
            inner.unknown.borrow_mut().insert(job, now + ASK_AGAIN_UNANSWERED);
            Self::ask_for_eventlog(inner, job);
        }
    }

    pub(crate) fn resume_from(inner: &Rc<Self>, job: JobId, eventlog: &str) {
        let stay = Stay::begin();
        let past = past(eventlog, "prolog", &inner.kind.prolog.to_string_lossy());
        // The job may have changed since.
        let Some(args) = inner.jobtap.lookup(job) else { return };
        let Some((_, uid, state)) = args.job_owner_state() else {
            return;
        };
        if state == JobState::Inactive || inner.deliveries.borrow().contains(job) {
            return;
        }
        if state == JobState::Depend {
            return inner.depended_on(job, uid, eventlog);
        }
        if past == Past::None && state == JobState::Run && !has_started(eventlog) {
            inner.too_late(&args, job, uid);
            return;
        }
        Self::go_on(inner, &args, job, uid, state, past, &stay);
    }

    /// The job entered RUN before there was a plugin in this job manager, and something else still holds it. A prolog can
    /// be started from within its callbacks only, of which none may come before it starts.
    fn too_late(&self, args: &Args<'_>, job: JobId, uid: u32) {
        if self.matching(args, uid).is_some() {
            let why =
                "it was in RUN, and not started, when the plugin was loaded into this job manager for the first time";
            self.stats.borrow_mut().failed += 1;
            self.raise(
                job,
                &Failure::new(
                    "it was allocated before tokens were delivered here: submit it again",
                    why,
                ),
            );
        }
    }

    /// The job's prolog may be outstanding, and only the eventlog tells: it is asked for until it can be read.
    fn unread(&self, job: JobId, e: &dyn std::fmt::Display) {
        // A job that is gone has none.
        if self.jobtap.lookup(job).is_none() {
            self.unknown.borrow_mut().remove(&job);
            return;
        }
        self.unknown.borrow_mut().insert(job, Instant::now() + ASK_AGAIN);
        self.log(
            LogLevel::Err,
            &format!("{job}: its eventlog could not be read: {e}: until it can be, the job may wait"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str = r#"{"timestamp":1.0,"name":"prolog-start","context":{"description":"workflow-token"}}"#;
    const OTHER: &str = r#"{"timestamp":1.0,"name":"prolog-finish","context":{"description":"perilog","status":0}}"#;
    const FINISH: &str =
        r#"{"timestamp":2.0,"name":"prolog-finish","context":{"description":"workflow-token","status":0}}"#;

    #[test]
    fn only_the_prolog_of_this_plugin_counts() {
        let log = |lines: &[&str]| past(&lines.join("\n"), "prolog", "workflow-token");
        assert_eq!(log(&[OTHER]), Past::None);
        assert_eq!(log(&[START, OTHER]), Past::Outstanding);
        assert_eq!(log(&[START, FINISH, OTHER]), Past::Finished(0));
        assert_eq!(log(&["not json", START]), Past::Outstanding);
    }
}
