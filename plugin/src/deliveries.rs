// SPDX-License-Identifier: MIT OR Apache-2.0

//! Deliveries on the reactor thread, from the request to the agent to the end of the prolog.
//!
//! Calls into Flux may call back before they return (an exception moves the job to CLEANUP), so no `RefCell` is
//! borrowed across a call.

use std::{
    cell::RefCell,
    collections::HashSet,
    ffi::CString,
    rc::{Rc, Weak},
    time::{Duration, Instant},
};

use ffi::{JobId, LogLevel};
use protocol::{Code, Deliver, Failure, Line, Origin, Owner, Reply};

use crate::{
    agent::{Agent, AgentEvent},
    commits::{CommitEvent, Commits, Committed},
    configuration::Current,
    jobspec::Spec,
    prologs::Prologs,
    questions::Questions,
    removals::{RemovalEvent, Removals},
    stats::{CallbackTimer, Counter, Stats},
    table::{Delivered, Delivery, End, Purpose, Stage, Table},
};

/// The most jobs with a common cause that one turn of the reactor handles.
pub const TURN: usize = 16;

/// The most prologs that one turn finishes: each makes the job manager start a job.
const FINISHED: usize = 2;

/// The time that a delivery may exceed its timeout by here. The agent ends it in time, with a better message.
const GRACE: Duration = Duration::from_millis(500);

/// The time until the deadline of a timeout that overflows.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);

/// An event that [`Deliveries`] report.
pub(crate) enum DeliveryEvent<'a> {
    /// Work is pending: [`Deliveries::tick`] must be called.
    Pending,
    /// The delivery of a job failed, so the job must end.
    Failed(JobId, &'a Failure),
    /// The agent received a configuration, or reports why it cannot use it.
    Configured(u32, Option<String>),
    /// A user by generation of the configuration and uid, or an error for the operator.
    Owner(u32, u32, Result<Owner, String>),
}

/// The request of one delivery.
pub struct Delivering {
    /// The job.
    pub job: JobId,
    /// The uid of its owner.
    pub uid: u32,
    /// The purpose of the record.
    pub purpose: Purpose,
    /// The origin of the variables.
    pub origin: Origin,
    /// The members of its jobspec that rules and projects need.
    pub spec: Spec,
}

/// The deliveries of one plugin.
pub struct Deliveries {
    prologs: Prologs,
    report: Box<dyn Fn(DeliveryEvent<'_>)>,
    pub(crate) agent: Rc<Agent>,
    questions: Rc<Questions>,
    commits: Rc<Commits>,
    pub(crate) removals: Rc<Removals>,
    table: RefCell<Table>,
    pub(crate) stats: RefCell<Stats>,
}

impl Deliveries {
    pub(crate) fn new(prologs: Prologs, report: impl Fn(DeliveryEvent<'_>) + 'static) -> Rc<Self> {
        let flux = prologs.jobtap.flux();
        // The key of a plugin contains no NUL.
        let key = CString::new(prologs.identity.key).unwrap_or_default();
        Rc::new_cyclic(|this: &Weak<Self>| Self {
            prologs,
            report: Box::new(report),
            agent: Agent::new(flux, {
                let this = this.clone();
                move |event| {
                    let Some(deliveries) = this.upgrade() else { return };
                    match event {
                        AgentEvent::Reply(job, reply) => deliveries.replied(job, reply),
                        AgentEvent::Log(level, line) => prologs.log(level, &line),
                    }
                }
            }),
            questions: Questions::new(prologs.jobtap, {
                let this = this.clone();
                move |number, end| {
                    if let Some(deliveries) = this.upgrade() {
                        deliveries.agent.answer_job(number, end);
                    }
                }
            }),
            commits: Commits::new(flux, key.clone(), {
                let this = this.clone();
                move |event| {
                    if let Some(deliveries) = this.upgrade() {
                        deliveries.commit_event(event);
                    }
                }
            }),
            removals: Removals::new(flux, key, {
                let this = this.clone();
                move |event| {
                    let Some(deliveries) = this.upgrade() else { return };
                    match event {
                        RemovalEvent::Removed(count) => deliveries.stats.borrow_mut().unlinked += count as u64,
                        RemovalEvent::Log(level, line) => prologs.log(level, &line),
                    }
                }
            }),
            table: RefCell::default(),
            stats: RefCell::default(),
        })
    }

    /// Begins a delivery to a job whose prolog has started, or to a running job.
    pub fn begin(&self, current: &Current, request: Delivering, end: Option<End>) {
        let Delivering {
            job,
            uid,
            purpose,
            origin,
            spec,
        } = request;
        let timeout = current.config.timeout;
        let now = Instant::now();
        let deadline = now.checked_add(timeout.saturating_add(GRACE)).unwrap_or(now + CENTURY);
        let number = self.table.borrow_mut().insert(job, purpose, (deadline, timeout), end);
        if purpose == Purpose::Start {
            self.stats.borrow_mut().started += 1;
        }
        // Start the ticker first: it enforces the deadline whatever fails later.
        (self.report)(DeliveryEvent::Pending);
        self.agent.deliver(Deliver {
            number,
            generation: current.generation,
            timeout_ms: milliseconds(timeout),
            jobid: job.0,
            f58: job.to_string(),
            uid,
            asked: spec.asked,
            limit_ms: spec.limit.map(milliseconds),
            requests: spec.requests.unwrap_or_default(),
            record: match purpose {
                Purpose::Start => 0,
                Purpose::Renewal(records) => records,
            },
            origin,
        });
    }

    fn replied(&self, job: Option<JobId>, reply: Reply) {
        let timer = CallbackTimer::start();
        let mut about = None;
        match (reply, job) {
            (
                Reply::Delivered {
                    number,
                    record,
                    names,
                    due,
                    warnings,
                },
                Some(job),
            ) => {
                about = Some(job);
                let delivered = Delivered { names, due, warnings };
                self.unless_it_panics(job, || self.sealed(job, number, record, delivered));
            }
            (Reply::NoRule { .. }, Some(job)) => self.unless_it_panics(job, || self.no_rule(job)),
            (Reply::Failed { failure, .. }, Some(job)) => self.unless_it_panics(job, || self.fail(job, &failure)),
            // The delivery was canceled.
            (Reply::Delivered { .. } | Reply::NoRule { .. } | Reply::Failed { .. }, None) => {}
            (Reply::Log(line), job) => self.log_line(job, &line),
            (Reply::Configured { generation, wrong }, _) => {
                (self.report)(DeliveryEvent::Configured(generation, wrong));
            }
            (Reply::Owner { generation, uid, owner }, _) => {
                ffi::guard((), || (self.report)(DeliveryEvent::Owner(generation, uid, owner)));
            }
            (Reply::AskJob { number, jobid }, _) => self.questions.ask(number, JobId(jobid)),
            (Reply::Welcome { .. } | Reply::Answer(_), _) => {}
        }
        self.account(&timer, about);
    }

    fn sealed(&self, job: JobId, number: u64, record: String, delivered: Delivered) {
        ffi::inject_fault("done");
        if let Some(delivery) = self.table.borrow_mut().of(job) {
            delivery.stage = Stage::Sealed;
            delivery.delivered = delivered;
        }
        self.commits.store(number, job, record);
    }

    fn no_rule(&self, job: JobId) {
        if self
            .table
            .borrow_mut()
            .of(job)
            .is_some_and(|delivery| delivery.purpose != Purpose::Start)
        {
            let why = "no rule matches it any more";
            return self.fail(job, &Failure::new(Code::RulesChanged, why, why));
        }
        let delivery = self.table.borrow_mut().remove(job);
        drop(delivery);
        self.stats.borrow_mut().no_rule += 1;
        self.prologs.finish(job, 0);
    }

    fn commit_event(&self, event: CommitEvent<'_>) {
        match event {
            CommitEvent::Committing(jobs, share) => {
                let mut table = self.table.borrow_mut();
                for (job, number) in jobs {
                    if let Some(delivery) = table.numbered(*job, *number) {
                        delivery.stage = Stage::Committing;
                        delivery.cpu += share;
                    }
                }
            }
            CommitEvent::Committed => {
                for committed in std::iter::from_fn(|| self.commits.next()).take(FINISHED) {
                    self.unless_it_panics(committed.job, || self.committed(&committed));
                }
            }
            CommitEvent::Callback(timer) => self.stats.borrow_mut().callback(timer),
            CommitEvent::Log(level, line) => self.prologs.log(level, &line),
        }
    }

    fn committed(&self, committed: &Committed) {
        let Committed { job, number, ref why } = *committed;
        ffi::inject_fault("committed");
        let timer = CallbackTimer::start();
        if self.table.borrow_mut().numbered(job, number).is_none() {
            // Given up: `take_out` has noted that a record may exist.
            return;
        }
        if let Some(why) = why {
            return self.fail(job, why);
        }
        let Some(mut delivery) = self.take_out(job) else { return };
        self.removals.may_exist(job);
        let cpu = delivery.cpu + timer.cpu();
        // Within this call, the job manager starts the job, as it would have without a prolog.
        match delivery.end.take() {
            Some(end) => end(Ok(std::mem::take(&mut delivery.delivered))),
            None => self.prologs.finish(job, 0),
        }
        let mut stats = self.stats.borrow_mut();
        match delivery.purpose {
            Purpose::Start => stats.delivered += 1,
            Purpose::Renewal(_) => stats.renewed += 1,
        }
        stats.delivery(cpu);
    }

    /// Removes a delivery from all tables. A later reply to it is dropped.
    fn take_out(&self, job: JobId) -> Option<Delivery> {
        let delivery = self.table.borrow_mut().remove(job)?;
        match delivery.stage {
            Stage::Asked => self.agent.cancel(delivery.number),
            Stage::Sealed => self.commits.withdraw(delivery.number),
            // The commit may have succeeded. Then the record is removed after the end of the job.
            Stage::Committing => self.removals.may_exist(job),
        }
        Some(delivery)
    }

    /// Fails a delivery: the job does not start, or keeps its former record.
    pub fn fail(&self, job: JobId, why: &Failure) {
        match self.take_out(job) {
            Some(Delivery {
                purpose: Purpose::Renewal(_),
                end: Some(end),
                ..
            }) => {
                self.stats.borrow_mut().renewal_failures += 1;
                end(Err(why.clone()));
            }
            delivery => self.reject(job, delivery.and_then(|mut delivery| delivery.end.take()), why),
        }
    }

    /// Fails a delivery that is in no table: it has not begun, or was removed.
    pub fn reject(&self, job: JobId, end: Option<End>, why: &Failure) {
        self.stats.borrow_mut().failed += 1;
        if let Some(end) = end {
            self.prologs.log_failure(job, why);
            end(Err(why.clone()));
        } else {
            (self.report)(DeliveryEvent::Failed(job, why));
        }
    }

    /// Cancels the delivery of a job that was canceled or has ended. Returns whether its prolog waited for the
    /// delivery.
    pub fn give_up(&self, job: JobId) -> bool {
        let Some(delivery) = self.take_out(job) else {
            return false;
        };
        let is_starting = delivery.purpose == Purpose::Start;
        if is_starting {
            self.stats.borrow_mut().canceled += 1;
        }
        is_starting
    }

    /// Returns the number of deliveries under way.
    pub(crate) fn len(&self) -> usize {
        self.table.borrow().len()
    }

    /// Returns whether a delivery for this job is under way.
    pub fn is_under_way(&self, job: JobId) -> bool {
        self.table.borrow().contains(job)
    }

    /// Ends all deliveries when the plugin is removed. Returns the jobs whose prologs wait for a delivery.
    pub(crate) fn leave(&self) -> HashSet<JobId> {
        let table = self.table.take();
        self.questions.end();
        let arrived = self
            .agent
            .take_received()
            .into_iter()
            .filter_map(|(job, reply)| match reply {
                Reply::Delivered { number, record, .. } => Some((number, job?, record)),
                _ => None,
            });
        self.removals.leave();
        self.commits.leave(self.prologs.identity.looks_for_records, arrived);
        table.starting().collect()
    }

    // Time

    /// Fails overdue deliveries, commits and removes records. Returns whether work is pending.
    pub(crate) fn tick(&self) -> bool {
        self.fail_overdue();
        self.removals.tick(self.len() == 0);
        self.commits.tick();
        self.len() > 0 || !self.removals.is_idle()
    }

    /// Fails some of the overdue deliveries. The rest follows at the next tick.
    fn fail_overdue(&self) {
        let overdue: Vec<(JobId, Failure)> = {
            let table = self.table.borrow();
            let overdue = table.overdue(Instant::now()).take(TURN);
            overdue.map(|(job, delivery)| (job, self.timed_out(delivery))).collect()
        };
        for (job, why) in overdue {
            if matches!(why.code, Code::AgentTimeout) {
                self.agent.is_overdue();
            }
            self.fail(job, &why);
        }
    }

    fn timed_out(&self, delivery: &Delivery) -> Failure {
        let seconds = delivery.timeout.as_secs_f64();
        let (code, what) = match delivery.stage {
            Stage::Asked if !self.agent.is_connected() => (
                Code::AgentUnavailable,
                "the agent could not be reached: see the earlier log lines",
            ),
            Stage::Asked => (Code::AgentTimeout, "the agent did not answer"),
            Stage::Sealed | Stage::Committing => (Code::StoreTimeout, "the KVS was asked to store it"),
        };
        Failure::new(
            code,
            format!("it took longer than {seconds} s"),
            format!("it took longer than {seconds} s (timeout) while {what}"),
        )
    }

    // Faults and statistics

    /// Calls `f`. If it panics, fails the job, so that the job does not wait forever.
    pub fn unless_it_panics(&self, job: JobId, f: impl FnOnce()) {
        let done = ffi::guard(false, || {
            f();
            true
        });
        if !done {
            ffi::guard((), || self.fail(job, &Failure::internal()));
        }
    }

    fn log_line(&self, job: Option<JobId>, line: &Line) {
        let level = if line.is_warning { LogLevel::Err } else { LogLevel::Info };
        match (job, line.number) {
            (Some(job), _) => self.prologs.log(level, &format!("{job}: {}", line.text)),
            (None, None) => self.prologs.log(level, &line.text),
            // The delivery was canceled before the line arrived.
            (None, Some(_)) => {}
        }
    }

    /// Adds the time of a callback to the statistics, and to the delivery of a job if it is still under way.
    pub fn account(&self, timer: &CallbackTimer, job: Option<JobId>) {
        if let Some(job) = job
            && let Some(delivery) = self.table.borrow_mut().of(job)
        {
            delivery.cpu += timer.cpu();
        }
        self.stats.borrow_mut().callback(timer);
    }

    /// Counts an event that the engine does not observe.
    pub fn count(&self, counter: Counter) {
        self.stats.borrow_mut().count(counter);
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
