//! Deliveries on the reactor thread: from prolog-start to prolog-finish.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use config::Selection;
use ffi::{Args, JobId, LogLevel};
use protocol::{Code, Deliver, Failure, Line, Reply, SecretText, What};
use seal::{ExposeSecret, Variables};
use zeroize::Zeroizing;

use crate::{
    deliveries::{Delivery, Stage, shrink},
    facts::{JobFacts, Spec},
    manager::{Current, Inner},
    records::Committed,
    stats::Stay,
};

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(100);

/// After how many ticks without pending work the ticker ends. It is not started anew for each of jobs that come one by one.
const IDLE_TICKS: u32 = 50;

/// How many jobs one turn of the reactor decides about that share a cause.
pub(crate) const TURN: usize = 16;

/// How many prologs are finished in one turn: within each, the job manager starts a job.
const FINISHED: usize = 2;

/// How much longer than the timeout a delivery may take here: the agent, which ends it in time, has the better message.
const GRACE: Duration = Duration::from_millis(500);

/// The end of time, for timeouts that are beyond it.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);

/// What there is for a job: its configuration, the rules that may be for it, and what its jobspec says.
pub(crate) struct Matching {
    current: Current,
    rules: Vec<usize>,
    spec: Spec,
}

/// Told how a delivery ended, unless it was given up: with the names of the variables, or why not.
pub type End = Box<dyn FnOnce(Result<Vec<String>, Failure>)>;

impl Inner {
    /// Begins a delivery within the callback of the job's change to RUN.
    pub(crate) fn start(inner: &Rc<Self>, args: &Args<'_>, job: JobId, uid: u32, stay: &Stay) {
        if inner.deliveries.borrow().contains(job) {
            return;
        }
        let Some(matching) = inner.matching(args, uid) else {
            return;
        };
        if let Err(e) = inner.jobtap.prolog_start(inner.kind.prolog) {
            // The job must not start without what it was to get.
            let why = format!("prolog-start: {e}");
            let why = Failure::new(Code::PrologFailed, "its prolog could not be started", why);
            inner.raise(job, &why);
            return;
        }
        inner.unless_it_panics(job, || inner.begin(matching, job, uid, stay));
    }

    /// Returns what there is for a job, if a rule may be for it.
    pub(crate) fn matching(&self, args: &Args<'_>, uid: u32) -> Option<Matching> {
        let current = self.current()?;
        if current.config.rules.is_empty() {
            return None;
        }
        let spec = Spec::of(args, current.needed);
        let rules = {
            let owners = current.owners.borrow();
            let facts = JobFacts {
                args,
                uid,
                projects: &current.config.projects,
                asked: &spec.asked,
                owner: owners.known(uid),
            };
            if current.config.select(&facts) == Selection::None {
                return None;
            }
            // Who the owner is may change until the agent decides.
            current.config.candidates(&JobFacts { owner: None, ..facts })
        };
        Some(Matching { current, rules, spec })
    }

    /// Begins the delivery of variables that are there already, to a job whose prolog has started.
    pub fn give(&self, job: JobId, uid: u32, variables: Variables, end: Option<End>) {
        let stay = Stay::begin();
        let Some(current) = self.current() else {
            // It is configured before it is called for any job.
            return self.fail(job, &Failure::internal());
        };
        // Of the jobspec, updates included.
        let needed = current.needed;
        let args = needed.anything().then(|| self.jobtap.lookup(job)).flatten();
        let spec = args.map_or_else(Spec::none, |args| Spec::of(&args, needed));
        let provided = variables.iter().map(|(name, value)| {
            let value = Zeroizing::new(value.expose_secret().to_owned());
            (name.to_owned(), SecretText(value))
        });
        let what = What::Provided(provided.collect());
        self.ask_agent(&current, job, uid, what, spec, end);
        self.account(&stay, Some(job));
    }

    /// Begins the delivery of a job whose prolog has started.
    pub(crate) fn begin(&self, matching: Matching, job: JobId, uid: u32, stay: &Stay) {
        let Matching { current, rules, spec } = matching;
        let rules = rules.into_iter().filter_map(|rule| u32::try_from(rule).ok());
        self.ask_agent(&current, job, uid, What::Rules(rules.collect()), spec, None);
        self.account(stay, Some(job));
    }

    fn ask_agent(&self, current: &Current, job: JobId, uid: u32, what: What, spec: Spec, end: Option<End>) {
        let number = self.number();
        let timeout = current.config.timeout;
        let now = Instant::now();
        let delivery = Delivery {
            number,
            stage: Stage::Asked,
            deadline: now.checked_add(timeout.saturating_add(GRACE)).unwrap_or(now + CENTURY),
            timeout,
            cpu: Duration::ZERO,
            names: Vec::new(),
            end,
        };
        self.deliveries.borrow_mut().insert(job, delivery);
        self.stats.borrow_mut().started += 1;
        // Deadlines are enforced before anything else may go wrong.
        self.tick();
        self.agent.deliver(Deliver {
            number,
            generation: current.generation,
            timeout_ms: milliseconds(timeout),
            jobid: job.0,
            f58: job.to_string(),
            uid,
            asked: spec.asked,
            limit_ms: spec.limit.map(milliseconds),
            what,
        });
    }

    /// Keeps a ticker running while work is pending.
    pub(crate) fn tick(&self) {
        if self.ticker.borrow().is_some() {
            return;
        }
        let weak = self.weak();
        let ticker = self.flux().every(TICK.as_secs_f64(), move || {
            if let Some(inner) = weak.upgrade() {
                ffi::guard((), || Self::ticked(&inner));
            }
        });
        match ticker {
            Ok(ticker) => *self.ticker.borrow_mut() = Some(ticker),
            Err(e) => self.log(LogLevel::Err, &format!("no timer can be started: {e}")),
        }
    }

    /// Time has passed: ends deliveries whose time is over, removes records, and looks at whatever else waits.
    fn ticked(inner: &Rc<Self>) {
        ffi::inject_fault("tick");
        let stay = Stay::begin();
        inner.fail_overdue();
        let is_idle = inner.deliveries.borrow().len() == 0;
        inner.records.tick(is_idle);
        // By the first tick, each job that is active has been seen.
        let ended = std::mem::take(&mut *inner.ended_meanwhile.borrow_mut());
        if !ended.is_empty() && inner.unlinks() {
            inner.records.remove(ended);
        }
        Self::ask_again(inner);
        Self::mind_held(inner);
        shrink(&mut inner.pending.borrow_mut());
        let idle = inner.deliveries.borrow().len() == 0
            && inner.records.is_idle()
            && inner.reader.is_idle()
            && inner.membership.is_idle();
        inner.idle_ticks.set(if idle { inner.idle_ticks.get() + 1 } else { 0 });
        if inner.idle_ticks.get() >= IDLE_TICKS {
            inner.idle_ticks.set(0);
            let ticker = inner.ticker.borrow_mut().take();
            drop(ticker);
        }
        inner.stats.borrow_mut().callback(&stay);
    }

    /// Fails some of the deliveries whose time is over; the others at the next tick.
    fn fail_overdue(&self) {
        let late: Vec<(JobId, Failure)> = {
            let deliveries = self.deliveries.borrow();
            let late = deliveries.late(Instant::now()).take(TURN);
            late.map(|(job, delivery)| (job, self.overdue(delivery))).collect()
        };
        for (job, why) in late {
            if matches!(why.code, Code::AgentTimeout) {
                self.agent.is_overdue();
            }
            self.fail(job, &why);
        }
    }

    /// Returns why a delivery is given up whose time is over.
    fn overdue(&self, delivery: &Delivery) -> Failure {
        let seconds = delivery.timeout.as_secs_f64();
        let (code, what) = match delivery.stage {
            Stage::Asked if !self.agent.is_connected() => {
                (Code::AgentUnavailable, "the agent could not be reached: see above")
            }
            Stage::Asked => (Code::AgentTimeout, "the agent did not answer"),
            Stage::Sealed | Stage::Committing => (Code::StoreTimeout, "the KVS was asked to store it"),
        };
        Failure::new(
            code,
            format!("it took longer than {seconds} s"),
            format!("it took longer than {seconds} s (timeout) while {what}"),
        )
    }

    /// The agent has replied.
    pub(crate) fn replied(inner: &Rc<Self>, reply: Reply) {
        let stay = Stay::begin();
        let job_of = |number| inner.deliveries.borrow().job_of(number);
        let mut about = None;
        match reply {
            Reply::Delivered { number, record, names } => {
                about = job_of(number);
                if let Some(job) = about {
                    inner.unless_it_panics(job, || inner.sealed(job, number, record, names));
                }
            }
            Reply::NoRule { number } => {
                if let Some(job) = job_of(number) {
                    inner.unless_it_panics(job, || inner.no_rule(job));
                }
            }
            Reply::Failed { number, failure } => {
                if let Some(job) = job_of(number) {
                    inner.unless_it_panics(job, || inner.fail(job, &failure));
                }
            }
            Reply::Owner { generation, uid, owner } => {
                ffi::guard((), || Self::known(inner, generation, uid, owner));
            }
            Reply::Configured { generation, wrong } => inner.configured(generation, wrong),
            Reply::Log(line) => inner.log_line(&line),
            Reply::Welcome { .. } => {}
        }
        inner.account(&stay, about);
    }

    fn sealed(&self, job: JobId, number: u64, record: String, names: Vec<String>) {
        ffi::inject_fault("done");
        if let Some(delivery) = self.deliveries.borrow_mut().of(job) {
            delivery.stage = Stage::Sealed;
            delivery.names = names;
        }
        self.records.store(number, job, record);
    }

    fn no_rule(&self, job: JobId) {
        let delivery = self.deliveries.borrow_mut().remove(job);
        drop(delivery);
        self.stats.borrow_mut().no_rule += 1;
        self.finish_prolog(job, 0);
    }

    fn log_line(&self, line: &Line) {
        let level = if line.is_warning { LogLevel::Err } else { LogLevel::Info };
        let job = line.number.and_then(|number| self.deliveries.borrow().job_of(number));
        match (job, line.number) {
            (Some(job), _) => self.log(level, &format!("{job}: {}", line.text)),
            (None, None) => self.log(level, &line.text),
            // It was given up while the line was on its way.
            (None, Some(_)) => {}
        }
    }

    /// A job whose delivery comes upon a fault of this plugin fails; it does not wait for ever.
    pub fn unless_it_panics(&self, job: JobId, f: impl FnOnce()) {
        let done = ffi::guard(false, || {
            f();
            true
        });
        if !done {
            ffi::guard((), || self.fail(job, &Failure::internal()));
        }
    }

    /// The records of these deliveries are being committed.
    pub(crate) fn committing(&self, jobs: &[(JobId, u64)], share: Duration) {
        let mut deliveries = self.deliveries.borrow_mut();
        for (job, number) in jobs {
            if let Some(delivery) = deliveries.numbered(*job, *number) {
                delivery.stage = Stage::Committing;
                delivery.cpu += share;
            }
        }
    }

    /// Ends some of the deliveries whose commits have ended; the others after others had their turn.
    pub(crate) fn finish_committed(&self) {
        for _ in 0..FINISHED {
            let Some(committed) = self.records.next_committed() else {
                break;
            };
            self.unless_it_panics(committed.job, || self.finish(&committed));
        }
    }

    fn finish(&self, committed: &Committed) {
        let Committed { job, number, ref why } = *committed;
        ffi::inject_fault("committed");
        let stay = Stay::begin();
        if self.deliveries.borrow_mut().numbered(job, number).is_none() {
            // Given up; then it is known already that there may be a record.
            return;
        }
        if let Some(why) = why {
            return self.fail(job, why);
        }
        let Some(delivery) = self.take_out(job) else { return };
        self.delivered.borrow_mut().insert(job);
        let cpu = delivery.cpu + stay.cpu();
        // What the job manager does next, within this call, is to start the job, as it would have done without a prolog.
        self.ended_well(job, delivery);
        let mut stats = self.stats.borrow_mut();
        stats.delivered += 1;
        stats.delivery(cpu);
    }

    /// Takes a delivery out of all tables. A reply that is under way for it is dropped when it comes.
    pub(crate) fn take_out(&self, job: JobId) -> Option<Delivery> {
        let delivery = self.deliveries.borrow_mut().remove(job)?;
        match delivery.stage {
            Stage::Asked => self.agent.cancel(delivery.number),
            Stage::Sealed => self.records.withdraw(delivery.number),
            Stage::Committing => {}
        }
        Some(delivery)
    }

    fn ended_well(&self, job: JobId, mut delivery: Delivery) {
        match delivery.end.take() {
            Some(end) => end(Ok(std::mem::take(&mut delivery.names))),
            None => self.finish_prolog(job, 0),
        }
    }

    /// Ends a delivery that cannot succeed: the job does not start.
    pub fn fail(&self, job: JobId, why: &Failure) {
        let delivery = self.take_out(job);
        self.stats.borrow_mut().failed += 1;
        // It may yet be committed: it is removed when the job has ended.
        if delivery
            .as_ref()
            .is_some_and(|delivery| delivery.stage == Stage::Committing)
        {
            self.delivered.borrow_mut().insert(job);
        }
        if let Some(end) = delivery.and_then(|mut delivery| delivery.end.take()) {
            self.log_failure(job, why);
            end(Err(why.clone()));
        } else if let Some(hooks) = self.hooks() {
            hooks.failed(job, why);
        } else {
            self.refuse(job, why);
        }
    }

    /// Ends a job in its prolog, with an exception.
    pub fn refuse(&self, job: JobId, why: &Failure) {
        if self.raise(job, why) {
            self.finish_prolog(job, 1);
        }
    }

    /// Tells the operator why a job does not get what it was to get.
    pub fn log_failure(&self, job: JobId, why: &Failure) {
        let line = format!(
            "{job}: no {} was delivered: {} [{}]",
            self.kind.what, why.operator, why.code
        );
        self.log(LogLevel::Err, &line);
    }

    /// Returns whether the job has ended: without an exception it must not leave its prolog, or it would start.
    pub fn raise(&self, job: JobId, why: &Failure) -> bool {
        self.log_failure(job, why);
        let text = format!(
            "no {} for this job: {} [{}]. If this goes on, ask the operators: the cause is in the log of Flux",
            self.kind.what, why.user, why.code
        );
        match self.jobtap.raise(job, self.kind.prolog, 0, &text) {
            Ok(()) => true,
            Err(e) => {
                let line = format!("{job}: the exception could not be raised: {e}: it stays in its prolog: cancel it");
                self.log(LogLevel::Err, &line);
                false
            }
        }
    }

    /// Finishes the prolog of a job, which must be outstanding.
    pub fn finish_prolog(&self, job: JobId, status: i32) {
        if let Err(e) = self.jobtap.prolog_finish(job, self.kind.prolog, status) {
            self.log(LogLevel::Err, &format!("{job}: the prolog could not be finished: {e}"));
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
