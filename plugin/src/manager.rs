//! The state of all deliveries, on the reactor thread.
//!
//! Calls into Flux may call back into this module before they return (an exception takes the job to CLEANUP), so no
//! `RefCell` is borrowed across one.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet, VecDeque},
    ffi::CStr,
    io,
    path::PathBuf,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use config::Config;
use ffi::{Args, FdWatcher, Flux, Future, JobId, JobState, Jobtap, LogLevel, PendingFuture, Plugin, PluginError};
use serde_json::{Value, json};

use crate::{
    facts::JobFacts,
    resume::{Past, past},
    stats::{Stats, Stay},
    work::{Failure, Next, Outcome, Progress, Sealed, Setup, Task},
    workers::{Queue, Workers},
};

/// The description of the prolog, and the type of exceptions.
pub const PROLOG: &CStr = c"workflow-token";

/// What is left with the handle for the next one that is loaded, under these names.
const LEFT_IN_FLIGHT: &CStr = c"workflow-token::in-flight";
const LEFT_DELIVERED: &CStr = c"workflow-token::delivered";
/// Not empty while one is loaded.
const ACTIVE: &CStr = c"workflow-token::active";

/// How many results are taken in one turn of the reactor.
const TURN: usize = 16;

/// No ticker runs.
const IDLE: u64 = 0;

/// How often it is looked for deliveries whose time is over.
const TICK: Duration = Duration::from_millis(100);

/// For how long the records of jobs that have ended are gathered before they are removed with one commit.
const GATHER: Duration = Duration::from_secs(1);

/// How long a lookup or a commit may take, in seconds, where no delivery sets the time.
const KVS_TIMEOUT: f64 = 60.0;

/// The plugin's state.
pub struct Manager(Rc<Inner>);

struct Inner {
    jobtap: Jobtap<'static>,
    conf: Value,
    helpers: Vec<PathBuf>,
    sealer: u32,
    setup: RefCell<Option<Current>>,
    /// What the plugin that was loaded before left, until every job is known again.
    left: RefCell<Option<Left>>,
    deliveries: RefCell<HashMap<JobId, Delivery>>,
    /// Jobs that have a record.
    delivered: RefCell<HashSet<JobId>>,
    /// Jobs whose records are to be removed with the next commit.
    ended: RefCell<Vec<JobId>>,
    /// Since when they gather.
    ended_since: Cell<Option<Instant>>,
    /// Commits and lookups that belong to no delivery, by number.
    pending: RefCell<HashMap<u64, PendingFuture>>,
    /// Rules that have something under way, by number of the delivery: also of those that were given up since.
    running: RefCell<HashMap<u64, Lane>>,
    numbers: Cell<u64>,
    unlinking: Cell<bool>,
    queue: Arc<Queue<Message>>,
    /// The number of the ticker that runs.
    ticker: Arc<AtomicU64>,
    workers: RefCell<Workers>,
    watcher: RefCell<Option<FdWatcher>>,
    stats: RefCell<Stats>,
}

/// The deliveries of one rule: how many are under way, and which wait.
#[derive(Clone, Default)]
struct Lane(Rc<RefCell<Waiting>>);

#[derive(Default)]
struct Waiting {
    running: usize,
    queue: VecDeque<(JobId, u64)>,
}

struct Left {
    in_flight: HashSet<JobId>,
    delivered: HashSet<JobId>,
}

/// The configuration in force, and a lane for each of its rules.
#[derive(Clone)]
struct Current {
    setup: Arc<Setup>,
    lanes: Rc<Vec<Lane>>,
}

/// A delivery on its way. Dropping it gives up what is under way for it.
struct Delivery {
    number: u64,
    began: Instant,
    setup: Arc<Setup>,
    /// Processor time spent on the reactor thread.
    cpu: Duration,
    progress: Arc<Progress>,
    /// What is to be done, until it is handed to a thread.
    task: Option<Task>,
    /// The commit, once it is under way.
    commit: Option<PendingFuture>,
}

impl Delivery {
    fn left(&self) -> Duration {
        self.setup.config.timeout.saturating_sub(self.began.elapsed())
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.progress.give_up();
    }
}

/// What the threads send.
enum Message {
    Done(Done),
    /// Time has passed.
    Tick,
}

struct Done {
    job: JobId,
    number: u64,
    outcome: Outcome,
}

/// Sends what a task came to when the task ends, whichever way: a job must not wait for a task that has panicked.
struct Report {
    queue: Arc<Queue<Message>>,
    job: JobId,
    number: u64,
    outcome: Option<Outcome>,
}

impl Report {
    fn send(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        let outcome = self.outcome.take().unwrap_or_else(|| Outcome {
            result: Err(Failure::new(
                "an internal error",
                "the task ended early: its place is in the broker's output",
            )),
            notes: Vec::new(),
        });
        self.queue.send(Message::Done(Done {
            job: self.job,
            number: self.number,
            outcome,
        }));
    }
}

impl Manager {
    /// For the plugin that is being loaded. It does nothing before it is configured.
    pub(crate) fn new(jobtap: Jobtap<'static>, plugin: Plugin<'_>) -> io::Result<Self> {
        let queue = Queue::new()?;
        Ok(Self(Rc::new(Inner {
            jobtap,
            conf: plugin.conf(),
            helpers: helpers(plugin.path()),
            sealer: nix::unistd::geteuid().as_raw(),
            setup: RefCell::default(),
            left: RefCell::default(),
            deliveries: RefCell::default(),
            delivered: RefCell::default(),
            ended: RefCell::default(),
            ended_since: Cell::new(None),
            pending: RefCell::default(),
            running: RefCell::default(),
            ticker: Arc::new(AtomicU64::new(IDLE)),
            numbers: Cell::new(0),
            unlinking: Cell::new(false),
            queue,
            workers: RefCell::default(),
            watcher: RefCell::default(),
            stats: RefCell::default(),
        })))
    }

    /// `conf.update`: refuses what is wrong, and the former configuration stays. Deliveries under way keep theirs.
    pub(crate) fn conf_update(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let all = args.all().unwrap_or(Value::Null);
        let config = Config::with_overrides(&all["conf"], &self.0.conf).map_err(|e| PluginError(e.to_string()))?;
        let setup = Setup::new(config, &self.0.helpers).map_err(|e| PluginError(e.to_string()))?;
        if self.0.setup.borrow().is_none() {
            Inner::activate(&self.0)?;
        }
        if !setup.config.rules.is_empty() {
            let started = self.0.workers.borrow_mut().start();
            started.map_err(|e| PluginError(format!("workflow-token cannot start its threads: {e}")))?;
        }
        let lanes = Rc::new(setup.config.rules.iter().map(|_| Lane::default()).collect());
        *self.0.setup.borrow_mut() = Some(Current {
            setup: Arc::new(setup),
            lanes,
        });
        Ok(())
    }

    /// `job.new`: a job that is past SCHED is known from before. Its delivery is taken up where it was left.
    pub(crate) fn job_new(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let Some((job, uid, state)) = args.job_owner_state() else {
            return Ok(());
        };
        match state {
            JobState::Run | JobState::Cleanup => Inner::resume(&self.0, args, job, uid, state),
            JobState::Pending | JobState::Inactive => {}
        }
        Ok(())
    }

    /// `job.state.run`: begins the delivery of a job that a rule matches.
    pub(crate) fn job_run(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let stay = Stay::begin();
        let Some((job, uid, _)) = args.job_owner_state() else {
            return Ok(());
        };
        Inner::start(&self.0, args, job, uid, &stay);
        Ok(())
    }

    /// `job.state.cleanup`: the job was canceled, or ended. A delivery under way is given up.
    pub(crate) fn job_cleanup(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let stay = Stay::begin();
        let Some(job) = args.job() else { return Ok(()) };
        let Some(delivery) = self.0.deliveries.borrow_mut().remove(&job) else {
            return Ok(());
        };
        // A commit may be done already, whatever becomes of its future.
        if delivery.commit.is_some() {
            self.0.delivered.borrow_mut().insert(job);
        }
        drop(delivery);
        self.0.stats.borrow_mut().canceled += 1;
        self.0.finish_prolog(job, 1);
        self.0.account(&stay, None);
        Ok(())
    }

    /// `job.state.inactive`: nothing of the job runs any more, and its record is removed.
    pub(crate) fn job_inactive(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let Some(job) = args.job() else { return Ok(()) };
        if self.0.delivered.borrow_mut().remove(&job) && self.0.unlinks() {
            self.0.ended.borrow_mut().push(job);
            if self.0.ended_since.get().is_none() {
                self.0.ended_since.set(Some(Instant::now()));
            }
            self.0.tick();
        }
        Ok(())
    }

    /// `plugin.query`: counters.
    pub(crate) fn query(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let mut answer = self.0.stats.borrow().to_json();
        answer["in-flight"] = json!(self.0.deliveries.borrow().len());
        answer["version"] = json!(env!("CARGO_PKG_VERSION"));
        answer["rules"] = json!(
            self.0
                .setup
                .borrow()
                .as_ref()
                .map_or(0, |current| current.setup.config.rules.len())
        );
        args.answer(&answer);
        Ok(())
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Inner {
    fn flux(&self) -> Flux<'static> {
        self.jobtap.flux()
    }

    fn log(&self, level: LogLevel, line: &str) {
        self.flux().log(level, &format!("workflow-token: {line}"));
    }

    /// The first configuration has come: this plugin is the one that is in charge, unless another one is already.
    fn activate(inner: &Rc<Self>) -> Result<(), PluginError> {
        let flux = inner.flux();
        if flux.left_jobs(ACTIVE).is_some_and(|active| !active.is_empty()) {
            return Err(PluginError(
                "workflow-token is already loaded, under another file name: remove that first".to_owned(),
            ));
        }
        let weak = Rc::downgrade(inner);
        let watcher = flux.watch(inner.queue.fd(), move || {
            if let Some(inner) = weak.upgrade() {
                Inner::take(&inner);
            }
        });
        let watcher = watcher.map_err(|e| PluginError(format!("workflow-token cannot watch its queue: {e}")))?;
        *inner.watcher.borrow_mut() = Some(watcher);
        flux.leave_jobs(ACTIVE, &[JobId(0)]);
        let set = |jobs: Vec<JobId>| jobs.into_iter().collect::<HashSet<_>>();
        *inner.left.borrow_mut() = match (flux.left_jobs(LEFT_IN_FLIGHT), flux.left_jobs(LEFT_DELIVERED)) {
            (Some(in_flight), Some(delivered)) => Some(Left {
                in_flight: set(in_flight),
                delivered: set(delivered),
            }),
            _ => None,
        };
        Ok(())
    }

    /// Begins a delivery within the callback of the job's change to RUN.
    fn start(inner: &Rc<Self>, args: &Args<'_>, job: JobId, uid: u32, stay: &Stay) {
        if inner.deliveries.borrow().contains_key(&job) {
            return;
        }
        let Some((current, candidates)) = inner.candidates(args, uid) else {
            return;
        };
        if let Err(e) = inner.jobtap.prolog_start(PROLOG) {
            // The job must not start without what it was to get.
            let why = Failure::new("its prolog could not be started", format!("prolog-start: {e}"));
            inner.raise(job, &why);
            return;
        }
        inner.begin(&current, job, uid, candidates, stay);
    }

    fn candidates(&self, args: &Args<'_>, uid: u32) -> Option<(Current, Vec<usize>)> {
        let current = self.setup.borrow().clone()?;
        if current.lanes.is_empty() {
            return None;
        }
        let facts = JobFacts {
            args,
            uid,
            owner: current.setup.owners.known(uid),
        };
        let candidates = current.setup.candidates(&facts);
        (!candidates.is_empty()).then_some((current, candidates))
    }

    /// Queues a job whose prolog has started.
    fn begin(&self, current: &Current, job: JobId, uid: u32, candidates: Vec<usize>, stay: &Stay) {
        let number = self.number();
        // There is one at least. Which of several it will be is known later; the first one's lane is as good as any.
        let lane = current.lanes[candidates[0]].clone();
        let task = Task {
            jobid: job.0,
            f58: job.to_string(),
            uid,
            sealer: self.sealer,
            candidates,
        };
        let delivery = Delivery {
            number,
            began: Instant::now(),
            setup: Arc::clone(&current.setup),
            cpu: Duration::ZERO,
            progress: Arc::default(),
            task: Some(task),
            commit: None,
        };
        self.deliveries.borrow_mut().insert(job, delivery);
        self.stats.borrow_mut().started += 1;
        lane.0.borrow_mut().queue.push_back((job, number));
        self.advance(&lane);
        self.tick();
        self.account(stay, Some(job));
    }

    /// Hands as many deliveries of a rule to threads as may be under way.
    fn advance(&self, lane: &Lane) {
        loop {
            let Some((job, number)) = lane.0.borrow().queue.front().copied() else {
                return;
            };
            let next = match self.deliveries.borrow_mut().get_mut(&job) {
                Some(delivery) if delivery.number == number => {
                    let limit = delivery
                        .task
                        .as_ref()
                        .map_or(0, |task| delivery.setup.parallel(task.candidates[0]));
                    if lane.0.borrow().running >= limit.max(1) {
                        return;
                    }
                    delivery
                        .task
                        .take()
                        .map(|task| (task, Arc::clone(&delivery.setup), Arc::clone(&delivery.progress)))
                }
                // Canceled while it waited.
                _ => None,
            };
            lane.0.borrow_mut().queue.pop_front();
            let Some((task, setup, progress)) = next else { continue };
            lane.0.borrow_mut().running += 1;
            self.running.borrow_mut().insert(number, lane.clone());
            let report = Report {
                queue: Arc::clone(&self.queue),
                job,
                number,
                outcome: None,
            };
            let handed = self
                .workers
                .borrow_mut()
                .block(move || work(setup, task, progress, report));
            if let Err(e) = handed {
                self.log(LogLevel::Err, &format!("no thread can be started: {e}"));
            }
        }
    }

    /// Sees to it that time is minded while there is something to be minded.
    fn tick(&self) {
        if self.ticker.load(Ordering::Relaxed) != IDLE {
            return;
        }
        // Its number tells a ticker that ends from one that was started since.
        let mine = self.number();
        self.ticker.store(mine, Ordering::Relaxed);
        let (queue, ticker) = (Arc::clone(&self.queue), Arc::clone(&self.ticker));
        let spawned = self.workers.borrow_mut().spawn(async move {
            while ticker.load(Ordering::Relaxed) == mine {
                tokio::time::sleep(TICK).await;
                queue.send(Message::Tick);
            }
        });
        if let Err(e) = spawned {
            self.ticker.store(IDLE, Ordering::Relaxed);
            self.log(LogLevel::Err, &format!("no thread can be started: {e}"));
        }
    }

    /// Time has passed: gives up deliveries whose time is over, and removes records.
    fn ticked(inner: &Rc<Self>) {
        let late: Vec<(JobId, Failure)> = {
            let deliveries = inner.deliveries.borrow();
            deliveries
                .iter()
                .filter_map(|(job, delivery)| Some((*job, overdue(delivery)?)))
                .collect()
        };
        for (job, why) in late.into_iter().take(TURN) {
            inner.fail(job, &why);
        }
        let gathered = inner.ended_since.get().is_some_and(|since| since.elapsed() >= GATHER);
        if gathered {
            Self::unlink(inner);
        }
        if inner.deliveries.borrow().is_empty() && inner.ended.borrow().is_empty() {
            inner.ticker.store(IDLE, Ordering::Relaxed);
        }
    }

    /// Takes what the threads have sent.
    fn take(inner: &Rc<Self>) {
        let stay = Stay::begin();
        for message in inner.queue.take(TURN) {
            match message {
                Message::Tick => Self::ticked(inner),
                Message::Done(done) => Self::done(inner, done),
            }
        }
        inner.stats.borrow_mut().callback(stay.length());
    }

    fn done(inner: &Rc<Self>, Done { job, number, outcome }: Done) {
        let stay = Stay::begin();
        let lane = inner.running.borrow_mut().remove(&number);
        if let Some(lane) = lane {
            lane.0.borrow_mut().running -= 1;
            inner.advance(&lane);
        }
        let left = match inner.deliveries.borrow().get(&job) {
            Some(delivery) if delivery.number == number => delivery.left(),
            // Given up while it was on its way here.
            _ => return,
        };
        for note in &outcome.notes {
            inner.log(LogLevel::Info, &format!("{job}: {note}"));
        }
        match outcome.result {
            Ok(Sealed::Record(record)) => Self::commit(inner, job, &record, left),
            Ok(Sealed::NoRule) => {
                inner.deliveries.borrow_mut().remove(&job);
                inner.stats.borrow_mut().no_rule += 1;
                inner.finish_prolog(job, 0);
            }
            Err(why) => inner.fail(job, &why),
        }
        inner.account(&stay, Some(job));
    }

    /// Puts the record where the job shells find it.
    fn commit(inner: &Rc<Self>, job: JobId, record: &str, left: Duration) {
        let weak = Rc::downgrade(inner);
        let committed = job.kvs_key(seal::KEY).and_then(|key| {
            let mut transaction = ffi::Transaction::new()?;
            transaction.put(&key, record)?;
            // What is left of the delivery's time, and a moment at least.
            let timeout = left.max(Duration::from_millis(100)).as_secs_f64();
            inner.flux().commit(transaction)?.then(timeout, move |future| {
                if let Some(inner) = weak.upgrade() {
                    inner.committed(job, &future);
                }
            })
        });
        match committed {
            Ok(pending) => {
                if let Some(delivery) = inner.deliveries.borrow_mut().get_mut(&job) {
                    delivery.commit = Some(pending);
                }
            }
            Err(e) => inner.fail(job, &uncommitted(&e)),
        }
    }

    fn committed(&self, job: JobId, future: &Future) {
        let stay = Stay::begin();
        if let Err(e) = future.get() {
            // It may yet be committed: it is removed when the job has ended.
            self.delivered.borrow_mut().insert(job);
            self.fail(job, &uncommitted(&e));
            self.account(&stay, None);
            return;
        }
        let Some(delivery) = self.deliveries.borrow_mut().remove(&job) else {
            return;
        };
        self.delivered.borrow_mut().insert(job);
        let cpu = delivery.cpu + stay.cpu();
        // What the job manager does next, within this call, is to start the job, as it would have done without a prolog.
        self.finish_prolog(job, 0);
        let mut stats = self.stats.borrow_mut();
        stats.delivered += 1;
        stats.callback(stay.length());
        stats.delivery(cpu);
    }

    /// Ends a delivery that cannot succeed: the job does not start.
    fn fail(&self, job: JobId, why: &Failure) {
        self.deliveries.borrow_mut().remove(&job);
        self.stats.borrow_mut().failed += 1;
        self.raise(job, why);
        self.finish_prolog(job, 1);
    }

    fn raise(&self, job: JobId, why: &Failure) {
        self.log(
            LogLevel::Err,
            &format!("{job}: no token was delivered: {}", why.operator),
        );
        let text = format!(
            "no workflow token for this job: {}: if this goes on, ask the operators: the cause is in the log of Flux",
            why.user
        );
        if let Err(e) = self.jobtap.raise(job, PROLOG, 0, &text) {
            self.log(LogLevel::Err, &format!("{job}: the exception could not be raised: {e}"));
        }
    }

    fn finish_prolog(&self, job: JobId, status: i32) {
        if let Err(e) = self.jobtap.prolog_finish(job, PROLOG, status) {
            self.log(LogLevel::Err, &format!("{job}: the prolog could not be finished: {e}"));
        }
    }

    /// Takes up a job that was past SCHED when the plugin was loaded.
    fn resume(inner: &Rc<Self>, args: &Args<'_>, job: JobId, uid: u32, state: JobState) {
        let stay = Stay::begin();
        let past = inner.left.borrow().as_ref().map(|left| {
            if left.in_flight.contains(&job) {
                Past::Outstanding
            } else if left.delivered.contains(&job) {
                Past::Finished(0)
            } else {
                Past::None
            }
        });
        match past {
            // The same job manager: what was left is exact, and the eventlog in the KVS may be behind.
            Some(Past::None) if state == JobState::Run => Self::late(inner, args, job, uid, &stay),
            Some(past) => Self::go_on(inner, args, job, uid, state, past, &stay),
            // Another one: the eventlog in the KVS is complete.
            None => Self::read_eventlog(inner, job, 3),
        }
    }

    /// The job entered RUN while no plugin was loaded. If another prolog still holds it, there is time; if it has
    /// started, prolog-start is refused and the job is left alone.
    fn late(inner: &Rc<Self>, args: &Args<'_>, job: JobId, uid: u32, stay: &Stay) {
        let Some((setup, candidates)) = inner.candidates(args, uid) else {
            return;
        };
        if inner.jobtap.prolog_start(PROLOG).is_ok() {
            inner.begin(&setup, job, uid, candidates, stay);
        }
    }

    fn go_on(inner: &Rc<Self>, args: &Args<'_>, job: JobId, uid: u32, state: JobState, past: Past, stay: &Stay) {
        match (past, state) {
            (Past::None, _) => {}
            (Past::Finished(_), _) => {
                inner.delivered.borrow_mut().insert(job);
            }
            (Past::Outstanding, JobState::Run) => {
                inner.stats.borrow_mut().resumed += 1;
                match inner.candidates(args, uid) {
                    Some((setup, candidates)) => inner.begin(&setup, job, uid, candidates, stay),
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

    fn read_eventlog(inner: &Rc<Self>, job: JobId, tries: u32) {
        let number = inner.number();
        let weak = Rc::downgrade(inner);
        let asked = job.kvs_key("eventlog").and_then(|key| {
            inner.flux().lookup(&key)?.then(KVS_TIMEOUT, move |future| {
                let Some(inner) = weak.upgrade() else { return };
                let done = inner.pending.borrow_mut().remove(&number);
                match future.value() {
                    Ok(eventlog) => Self::resume_from(&inner, job, &eventlog.unwrap_or_default()),
                    Err(e) if tries > 1 => {
                        inner.log(
                            LogLevel::Warning,
                            &format!("{job}: its eventlog could not be read: {e}: trying again"),
                        );
                        Self::read_eventlog(&inner, job, tries - 1);
                    }
                    Err(e) => inner.unread(job, &e),
                }
                drop(done);
            })
        });
        match asked {
            Ok(pending) => {
                inner.pending.borrow_mut().insert(number, pending);
            }
            Err(e) => inner.unread(job, &e),
        }
    }

    fn resume_from(inner: &Rc<Self>, job: JobId, eventlog: &str) {
        let stay = Stay::begin();
        let past = past(eventlog, &PROLOG.to_string_lossy());
        // The job may have changed since.
        let Some(args) = inner.jobtap.lookup(job) else { return };
        let Some((_, uid, state)) = args.job_owner_state() else {
            return;
        };
        if state == JobState::Inactive || inner.deliveries.borrow().contains_key(&job) {
            return;
        }
        Self::go_on(inner, &args, job, uid, state, past, &stay);
    }

    fn unread(&self, job: JobId, e: &dyn std::fmt::Display) {
        let line = format!(
            "{job}: its eventlog could not be read: {e}: if it stays in its prolog, remove and load this plugin again"
        );
        self.log(LogLevel::Err, &line);
    }

    /// Removes the records of jobs that have ended: one commit at a time, for all that have gathered.
    fn unlink(inner: &Rc<Self>) {
        if inner.unlinking.get() {
            return;
        }
        let jobs = inner.take_ended();
        if jobs.is_empty() {
            return;
        }
        let weak = Rc::downgrade(inner);
        let number = inner.number();
        let count = jobs.len() as u64;
        let removed = inner.remove_records(&jobs).and_then(|commit| {
            commit.then(KVS_TIMEOUT, move |future| {
                let Some(inner) = weak.upgrade() else { return };
                let done = inner.pending.borrow_mut().remove(&number);
                inner.unlinking.set(false);
                match future.get() {
                    Ok(()) => inner.stats.borrow_mut().unlinked += count,
                    Err(e) => inner.log(
                        LogLevel::Err,
                        &format!("{count} sealed records could not be removed: {e}"),
                    ),
                }
                drop(done);
            })
        });
        match removed {
            Ok(pending) => {
                inner.unlinking.set(true);
                inner.pending.borrow_mut().insert(number, pending);
            }
            Err(e) => inner.log(
                LogLevel::Err,
                &format!("{count} sealed records could not be removed: {e}"),
            ),
        }
    }

    /// The same when the plugin is about to go: the request is on its way when this returns, and nobody sees the answer.
    fn unlink_unseen(&self) {
        let jobs = self.take_ended();
        if !jobs.is_empty()
            && let Err(e) = self.remove_records(&jobs)
        {
            self.log(
                LogLevel::Err,
                &format!("{} sealed records could not be removed: {e}", jobs.len()),
            );
        }
    }

    fn take_ended(&self) -> Vec<JobId> {
        self.ended_since.set(None);
        std::mem::take(&mut *self.ended.borrow_mut())
    }

    fn remove_records(&self, jobs: &[JobId]) -> io::Result<Future> {
        let mut transaction = ffi::Transaction::new()?;
        for job in jobs {
            transaction.unlink(&job.kvs_key(seal::KEY)?)?;
        }
        self.flux().commit(transaction)
    }

    fn unlinks(&self) -> bool {
        self.setup
            .borrow()
            .as_ref()
            .is_some_and(|current| current.setup.config.unlink)
    }

    fn number(&self) -> u64 {
        self.numbers.set(self.numbers.get() + 1);
        self.numbers.get()
    }

    /// Adds a stay to the delivery of a job, if that is still on its way, and to the longest of all callbacks.
    fn account(&self, stay: &Stay, job: Option<JobId>) {
        if let Some(job) = job
            && let Some(delivery) = self.deliveries.borrow_mut().get_mut(&job)
        {
            delivery.cpu += stay.cpu();
        }
        self.stats.borrow_mut().callback(stay.length());
    }

    /// The plugin is being removed, or the job manager ends. Jobs in their prolog stay there: the next plugin that is
    /// loaded takes them up.
    fn end(&self) {
        if self.setup.borrow().is_none() {
            return;
        }
        drop(self.watcher.borrow_mut().take());
        self.ticker.store(IDLE, Ordering::Relaxed);
        self.unlink_unseen();
        self.pending.borrow_mut().clear();
        let deliveries = std::mem::take(&mut *self.deliveries.borrow_mut());
        let in_flight: Vec<JobId> = deliveries.keys().copied().collect();
        drop(deliveries);
        let delivered: Vec<JobId> = self.delivered.borrow().iter().copied().collect();
        let flux = self.flux();
        flux.leave_jobs(LEFT_IN_FLIGHT, &in_flight);
        flux.leave_jobs(LEFT_DELIVERED, &delivered);
        flux.leave_jobs(ACTIVE, &[]);
        if !in_flight.is_empty() {
            let line = format!(
                "removed with {} deliveries under way: their jobs wait in their prologs until the plugin is loaded again",
                in_flight.len()
            );
            self.log(LogLevel::Warning, &line);
        }
        if !self.workers.borrow_mut().end() {
            self.log(
                LogLevel::Warning,
                "a thread is stuck in munged or a file: the plugin stays in memory for it",
            );
            ffi::pin_object();
        }
    }
}

/// Runs on a thread.
fn work(setup: Arc<Setup>, task: Task, progress: Arc<Progress>, report: Report) {
    match setup.work(&task, &progress) {
        Next::Done(outcome) => report.send(outcome),
        Next::Await(rule, values) => {
            tokio::runtime::Handle::current().spawn(async move {
                report.send(setup.fetch(task, progress, rule, values).await);
            });
        }
    }
}

/// Why a delivery is to be given up, where its time is over.
fn overdue(delivery: &Delivery) -> Option<Failure> {
    let config = &delivery.setup.config;
    let stage = delivery.progress.stage();
    let over = |limit: Duration, key: &str| {
        let seconds = limit.as_secs_f64();
        Failure::new(
            format!("it took longer than {seconds} s"),
            format!("it took longer than {seconds} s ({key}) while {}", stage.describe()),
        )
    };
    if delivery.commit.is_some() {
        // Its future has a timeout of its own.
        return None;
    }
    if delivery.left().is_zero() {
        return Some(over(config.timeout, "timeout"));
    }
    let (rule, since) = delivery.progress.fetching()?;
    (since.elapsed() > delivery.setup.fetch_limit(rule))
        .then(|| over(config.rules[rule].timeout, "timeout of its rule"))
}

fn uncommitted(e: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        "it could not be stored",
        format!("the commit of the sealed record failed: {e}"),
    )
}

/// Where the helper of the command source may be: beside the plugin's own tree, or where Flux looks for commands.
fn helpers(plugin: Option<PathBuf>) -> Vec<PathBuf> {
    const NAME: &str = "flux-workflow-token";
    let mut places = Vec::new();
    // PREFIX/lib/flux/job-manager/plugins/workflow-token.so
    if let Some(prefix) = plugin.as_deref().and_then(|path| path.ancestors().nth(5)) {
        places.push(prefix.join("libexec/flux/cmd").join(NAME));
    }
    if let Some(path) = std::env::var_os("FLUX_EXEC_PATH") {
        places.extend(std::env::split_paths(&path).map(|dir| dir.join(NAME)));
    }
    places.push(PathBuf::from("/usr/libexec/flux/cmd").join(NAME));
    places
}
