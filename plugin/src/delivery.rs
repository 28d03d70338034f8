//! Deliveries on the reactor thread: from prolog-start to prolog-finish.

use std::{
    io,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use ffi::{Args, JobId, LogLevel};
use seal::Variables;

use crate::{
    deliveries::{Delivery, Lane, shrink},
    facts::{JobFacts, Spec},
    manager::{IDLE, Inner, KVS_TIMEOUT},
    membership::Known,
    stats::Stay,
    work::{Candidates, Failure, Next, Outcome, Progress, Sealed, Setup, Stage, Task, What, Which},
    workers::Queue,
};

/// How often it is looked for deliveries whose time is over.
const TICK: Duration = Duration::from_millis(100);

/// After how many ticks with nothing to mind the ticker ends. It is not started anew for each of jobs that come one by one.
const IDLE_TICKS: u32 = 50;

/// How many results are taken in one turn of the reactor, and how many jobs decided that were held.
pub(crate) const TURN: usize = 16;

/// How many prologs are finished in one turn: within each, the job manager starts a job.
const FINISHED: usize = 2;

/// The most records in one commit, which is made up in one turn, and the most bytes of them.
const COMMIT: (usize, usize) = (32, 4 << 20);

/// How many commits are under way at most, where each has as many records as it may have.
const COMMITS: usize = 16;

/// A commit that takes longer does not keep others waiting.
const SLOW: Duration = Duration::from_secs(1);

/// The configuration in force, and a lane for each of its rules.
#[derive(Clone)]
pub(crate) struct Current {
    pub(crate) setup: Arc<Setup>,
    pub(crate) lanes: Rc<Vec<Lane>>,
    /// The lane of deliveries that no rule is for.
    pub(crate) given: Lane,
}

/// What there is for a job: its configuration, the rules that may be for it, and what its jobspec says.
pub(crate) struct Matching {
    current: Current,
    candidates: Candidates,
    spec: Spec,
}

/// Told how a delivery ended, unless it was given up: with the names of the variables, or why not.
pub(crate) type End = Box<dyn FnOnce(Result<Vec<String>, Failure>)>;

/// A sealed record that is to be committed.
pub(crate) struct Stored {
    pub(crate) job: JobId,
    pub(crate) record: String,
}

/// A delivery whose commit has ended.
pub(crate) struct Committed {
    job: JobId,
    number: u64,
    /// Why the commit failed, if it did.
    why: Option<Rc<Failure>>,
}

/// What the threads send.
pub(crate) enum Message {
    Done(Done),
    /// A user was looked up.
    Known(Known),
    /// The same, for the deliveries that have not had their turn.
    Owner(Known),
    /// Jobs that are held are due.
    Due,
    /// There are jobs left whose records were committed.
    Committed,
    /// Time has passed.
    Tick,
}

pub(crate) struct Done {
    pub(crate) job: JobId,
    pub(crate) number: u64,
    pub(crate) outcome: Outcome,
}

/// Sends what a task came to when the task ends, whichever way: a job must not wait for a task that has panicked.
pub(crate) struct Report {
    pub(crate) queue: Arc<Queue<Message>>,
    pub(crate) job: JobId,
    pub(crate) number: u64,
    pub(crate) outcome: Option<Outcome>,
}

impl Report {
    pub(crate) fn send(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        let outcome = self
            .outcome
            .take()
            .unwrap_or_else(|| Outcome::of(Err(Failure::internal())));
        self.queue.send(Message::Done(Done {
            job: self.job,
            number: self.number,
            outcome,
        }));
    }
}

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
            let why = Failure::new("its prolog could not be started", format!("prolog-start: {e}"));
            inner.raise(job, &why);
            return;
        }
        inner.unless_it_panics(job, || inner.begin(matching, job, uid, stay));
    }

    pub(crate) fn matching(&self, args: &Args<'_>, uid: u32) -> Option<Matching> {
        let current = self.setup.borrow().clone()?;
        if current.lanes.is_empty() {
            return None;
        }
        let spec = Spec::of(args, current.setup.needed);
        let owner = current.setup.owners.known(uid);
        let facts = JobFacts {
            args,
            uid,
            projects: &current.setup.config.projects,
            asked: &spec.asked,
            owner: owner.as_deref(),
        };
        let candidates = current.setup.candidates(&facts)?;
        Some(Matching {
            current,
            candidates,
            spec,
        })
    }

    /// Begins the delivery of variables that are there already, to a job whose prolog has started.
    pub(crate) fn give(&self, job: JobId, uid: u32, variables: Variables, end: Option<End>) {
        let stay = Stay::begin();
        let current = self.setup.borrow().clone();
        match current {
            Some(current) => {
                let lane = current.given.clone();
                // Of the jobspec, updates included.
                let needed = current.setup.needed;
                let args = needed.anything().then(|| self.jobtap.lookup(job)).flatten();
                let spec = args.map_or_else(Spec::none, |args| Spec::of(&args, needed));
                self.queue_up(&current, &lane, job, uid, What::Given(variables), spec, end, &stay);
            }
            // It is configured before it is called for any job.
            None => self.fail(job, &Failure::internal()),
        }
    }

    /// Queues a job whose prolog has started.
    pub(crate) fn begin(&self, matching: Matching, job: JobId, uid: u32, stay: &Stay) {
        let Matching {
            current,
            candidates,
            spec,
        } = matching;
        let lane = current.lanes[candidates.likely].clone();
        self.queue_up(&current, &lane, job, uid, What::Rules(candidates), spec, None, stay);
    }

    #[expect(clippy::too_many_arguments, reason = "all of it is what a delivery is made of")]
    fn queue_up(
        &self,
        current: &Current,
        lane: &Lane,
        job: JobId,
        uid: u32,
        what: What,
        spec: Spec,
        end: Option<End>,
        stay: &Stay,
    ) {
        let number = self.number();
        let task = Task {
            jobid: job.0,
            f58: job.to_string(),
            uid,
            sealer: self.sealer,
            spec,
            what,
            owner: None,
        };
        let delivery = Delivery {
            number,
            deadline: Instant::now() + current.setup.config.timeout,
            setup: Arc::clone(&current.setup),
            cpu: Duration::ZERO,
            progress: Arc::default(),
            task: Some(task),
            lane: lane.clone(),
            uid,
            committing: false,
            names: Vec::new(),
            end,
        };
        self.deliveries.borrow_mut().insert(job, delivery);
        self.stats.borrow_mut().started += 1;
        // Time is minded before anything else may go wrong.
        self.tick();
        self.enter(lane, job, uid, number);
        self.account(stay, Some(job));
    }

    /// Has a delivery wait for its turn, once it is known who its job owner is, if that is needed. To find that out may take
    /// as long as the user likes, for whom no thread of the rule is kept waiting.
    fn enter(&self, lane: &Lane, job: JobId, uid: u32, number: u64) {
        let mut deliveries = self.deliveries.borrow_mut();
        let Some(delivery) = deliveries.numbered(job, number) else {
            return;
        };
        if delivery.knows_owner() {
            delivery.progress.enter(Stage::Waiting);
            drop(deliveries);
            lane.0.borrow_mut().push(uid, job, number);
            return self.advance(lane);
        }
        delivery.progress.enter(Stage::Owner);
        let setup = Arc::clone(&delivery.setup);
        deliveries.ask(job, uid, number, &setup);
        drop(deliveries);
        self.look_up(uid, &setup);
    }

    /// It is known who a user is, or not to be known: some of the deliveries that wait for it go on, or fail; the others
    /// after others had their turn.
    pub(crate) fn owner_known(&self, known: Known) {
        let Known { uid, setup, result } = &known;
        if result.as_ref().is_ok_and(|owner| !owner.is_fresh()) {
            // It took too long for all of them to have their turn.
            return self.look_up(*uid, setup);
        }
        let (asked, more) = self.deliveries.borrow_mut().asked(*uid, setup, TURN);
        for (number, job) in asked {
            self.unless_it_panics(job, || match result {
                Ok(owner) => {
                    let mut deliveries = self.deliveries.borrow_mut();
                    let Some(delivery) = deliveries.numbered(job, number) else {
                        return;
                    };
                    if let Some(task) = &mut delivery.task {
                        task.owner = Some(Arc::clone(owner));
                    }
                    let lane = delivery.lane.clone();
                    drop(deliveries);
                    self.enter(&lane, job, *uid, number);
                }
                Err(e) => self.fail(job, &Failure::new("its owner could not be looked up", e)),
            });
        }
        if more {
            self.queue.send(Message::Owner(known));
        }
    }

    /// Hands as many deliveries of a rule to threads as may be under way.
    pub(crate) fn advance(&self, lane: &Lane) {
        loop {
            let Some((job, number)) = lane.0.borrow_mut().first() else {
                return;
            };
            let mut deliveries = self.deliveries.borrow_mut();
            // It is taken out with its delivery.
            let mut delivery = deliveries.numbered(job, number);
            if let Some(delivery) = &mut delivery {
                let task = delivery.task.as_ref();
                let limit = task.map_or(0, |task| delivery.setup.parallel(&task.what));
                if lane.0.borrow().running >= limit.max(1) {
                    return;
                }
                if !delivery.knows_owner() {
                    // It has waited for so long that what was found out counts no more.
                    let uid = delivery.uid;
                    drop(deliveries);
                    lane.0.borrow_mut().pop();
                    self.enter(lane, job, uid, number);
                    continue;
                }
            }
            let next = delivery.and_then(|delivery| {
                let task = delivery.task.take()?;
                Some((task, Arc::clone(&delivery.setup), Arc::clone(&delivery.progress)))
            });
            drop(deliveries);
            lane.0.borrow_mut().pop();
            let Some((task, setup, progress)) = next else { continue };
            lane.0.borrow_mut().running += 1;
            self.running.borrow_mut().insert(number, (lane.clone(), job));
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
    pub(crate) fn tick(&self) {
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
    pub(crate) fn ticked(inner: &Rc<Self>) {
        ffi::inject_fault("tick");
        let late = inner.overdue_ones();
        let more = late.len() > TURN;
        for (job, why) in late.into_iter().take(TURN) {
            inner.fail(job, &why);
        }
        if more {
            // After others had their turn.
            inner.queue.send(Message::Tick);
        }
        if inner.has_gathered() {
            Self::unlink(inner);
        }
        // By the first tick, each job that is active has been seen.
        let ended = std::mem::take(&mut *inner.ended_meanwhile.borrow_mut());
        if !ended.is_empty() && inner.unlinks() {
            inner.ended.borrow_mut().push(ended, Instant::now());
        }
        Self::ask_again(inner);
        Self::mind_held(inner);
        if let Some(hooks) = inner.hooks() {
            hooks.ticked();
        }
        Self::commit(inner);
        inner.give_memory_back();
        let idle = inner.deliveries.borrow().len() == 0
            && inner.ended.borrow().is_empty()
            && inner.reader.is_idle()
            && inner.membership.is_idle();
        inner.idle_ticks.set(if idle { inner.idle_ticks.get() + 1 } else { 0 });
        if inner.idle_ticks.get() >= IDLE_TICKS {
            inner.idle_ticks.set(0);
            inner.ticker.store(IDLE, Ordering::Relaxed);
        }
    }

    /// Deliveries whose time is over: some of them, and one more than can be failed in a turn where there are more. Of those
    /// that wait, only the first is looked at; how long sources may be asked is minded for those that are under way, of
    /// which there are few.
    fn overdue_ones(&self) -> Vec<(JobId, Failure)> {
        let now = Instant::now();
        let mut deliveries = self.deliveries.borrow_mut();
        let late = deliveries.late(now).take(TURN + 1);
        let mut late: Vec<_> = late.map(|(job, delivery)| (job, overdue(delivery))).collect();
        for (number, (_, job)) in &*self.running.borrow() {
            if late.len() > TURN {
                break;
            }
            if let Some(delivery) = deliveries
                .numbered(*job, *number)
                .filter(|delivery| now < delivery.deadline)
            {
                late.extend(fetched_too_long(delivery).map(|why| (*job, why)));
            }
        }
        late
    }

    /// After a burst, memory is kept for what there is.
    fn give_memory_back(&self) {
        shrink(&mut self.running.borrow_mut());
        shrink(&mut self.pending.borrow_mut());
    }

    /// Takes what the threads have sent.
    pub(crate) fn take(inner: &Rc<Self>) {
        ffi::inject_fault("watcher");
        let stay = Stay::begin();
        for message in inner.queue.take(TURN) {
            match message {
                Message::Tick => ffi::guard((), || Self::ticked(inner)),
                Message::Known(known) => ffi::guard((), || Self::known(inner, known)),
                Message::Owner(known) => ffi::guard((), || inner.owner_known(known)),
                Message::Due => ffi::guard((), || Self::mind_due(inner)),
                Message::Committed => inner.finish_committed(),
                Message::Done(done) => {
                    let job = done.job;
                    inner.unless_it_panics(job, || Self::done(inner, done));
                }
            }
        }
        ffi::guard((), || Self::commit(inner));
        inner.stats.borrow_mut().callback(&stay);
    }

    pub(crate) fn done(inner: &Rc<Self>, Done { job, number, outcome }: Done) {
        let stay = Stay::begin();
        let lane = inner.running.borrow_mut().remove(&number);
        if let Some((lane, _)) = &lane {
            lane.0.borrow_mut().running -= 1;
        }
        // Whatever becomes of this one, the next one's turn comes.
        inner.unless_it_panics(job, || Self::settle(inner, job, number, outcome));
        if let Some((lane, _)) = &lane {
            inner.advance(lane);
        }
        inner.account(&stay, Some(job));
    }

    fn settle(inner: &Rc<Self>, job: JobId, number: u64, outcome: Outcome) {
        ffi::inject_fault("done");
        // They are told once, and are of more than this job.
        for warning in &outcome.warnings {
            inner.log(LogLevel::Err, warning);
        }
        match inner.deliveries.borrow_mut().numbered(job, number) {
            Some(delivery) => delivery.progress.enter(Stage::Storing),
            // Given up while it was on its way here.
            None => return,
        }
        for note in &outcome.notes {
            inner.log(LogLevel::Info, &format!("{job}: {note}"));
        }
        match outcome.result {
            Ok(Sealed::Record(record, names)) => {
                if let Some(delivery) = inner.deliveries.borrow_mut().of(job) {
                    delivery.names = names;
                }
                inner.sealed.borrow_mut().insert(number, Stored { job, record });
            }
            Ok(Sealed::NoRule) => {
                let delivery = inner.deliveries.borrow_mut().remove(job);
                drop(delivery);
                inner.stats.borrow_mut().no_rule += 1;
                inner.finish_prolog(job, 0);
            }
            Err(why) => inner.fail(job, &why),
        }
    }

    /// A job whose delivery comes upon a fault of this plugin fails; it does not wait for ever.
    pub(crate) fn unless_it_panics(&self, job: JobId, f: impl FnOnce()) {
        let done = ffi::guard(false, || {
            f();
            true
        });
        if !done {
            ffi::guard((), || self.fail(job, &Failure::internal()));
        }
    }

    /// Puts records that wait where the job shells find them: one commit at a time, for all that have gathered meanwhile. To
    /// the KVS, one for many costs little more than one for one. Where more wait than one commit has, more are under way,
    /// which the KVS makes one of.
    pub(crate) fn commit(inner: &Rc<Self>) {
        loop {
            let waits = inner.commit_began.get().is_some_and(|began| began.elapsed() < SLOW);
            let is_full = inner.sealed.borrow().len() >= COMMIT.0;
            if inner.commits.get() >= if is_full { COMMITS } else { 1 } && waits {
                return;
            }
            let records = inner.next_records();
            if records.is_empty() {
                return;
            }
            let stay = Stay::begin();
            let jobs: Vec<JobId> = records.iter().map(|(_, stored)| stored.job).collect();
            let panicked = || {
                Err(io::Error::other(
                    "an internal error: its place is in the broker's output",
                ))
            };
            if let Err(e) = ffi::guard(panicked(), || Self::put(inner, &records)) {
                for job in jobs {
                    inner.unless_it_panics(job, || inner.fail(job, &uncommitted(&e)));
                }
                continue;
            }
            let share = stay.cpu() / u32::try_from(jobs.len()).unwrap_or(u32::MAX);
            let mut deliveries = inner.deliveries.borrow_mut();
            for job in jobs {
                if let Some(delivery) = deliveries.of(job) {
                    delivery.committing = true;
                    delivery.cpu += share;
                }
            }
            // Others have their turn.
            return;
        }
    }

    /// The records of the next commit, with the numbers of their deliveries.
    fn next_records(&self) -> Vec<(u64, Stored)> {
        let mut sealed = self.sealed.borrow_mut();
        let (mut records, mut bytes) = (Vec::new(), 0);
        while let Some(first) = sealed.first_entry() {
            bytes += first.get().record.len();
            if records.len() == COMMIT.0 || (bytes > COMMIT.1 && !records.is_empty()) {
                break;
            }
            records.push(first.remove_entry());
        }
        records
    }

    fn put(inner: &Rc<Self>, records: &[(u64, Stored)]) -> io::Result<()> {
        ffi::inject_fault("put");
        let jobs: Vec<(JobId, u64)> = records.iter().map(|(number, stored)| (stored.job, *number)).collect();
        let (weak, number) = (Rc::downgrade(inner), inner.number());
        // Each delivery minds its own time.
        let pending = inner
            .put_all(records.iter().map(|(_, stored)| stored))?
            .then(KVS_TIMEOUT, move |future| {
                let Some(inner) = weak.upgrade() else { return };
                let stay = Stay::begin();
                let done = inner.pending.borrow_mut().remove(&number);
                inner.commits.set(inner.commits.get() - 1);
                let why = future.get().err().map(|e| Rc::new(uncommitted(&e)));
                let committed = jobs.into_iter().map(|(job, number)| {
                    let why = why.clone();
                    Committed { job, number, why }
                });
                inner.committed.borrow_mut().extend(committed);
                let under_way = inner.commits.get();
                // The KVS is not kept waiting for the jobs, and the reactor not for both.
                Self::commit(&inner);
                if inner.finishing.get() {
                    // Several commits have ended at once, whose jobs are in one queue.
                } else if inner.commits.get() > under_way {
                    inner.finishing.set(true);
                    inner.queue.send(Message::Committed);
                } else {
                    inner.finish_committed();
                }
                drop(done);
                inner.stats.borrow_mut().callback(&stay);
            })?;
        inner.pending.borrow_mut().insert(number, pending);
        inner.commits.set(inner.commits.get() + 1);
        inner.commit_began.set(Some(Instant::now()));
        Ok(())
    }

    /// Ends some of the deliveries whose records were committed, or could not be; the others after others had their turn.
    fn finish_committed(&self) {
        let more = self.committed.borrow().len() > FINISHED;
        self.finishing.set(more);
        if more {
            self.queue.send(Message::Committed);
        }
        for _ in 0..FINISHED {
            let next = self.committed.borrow_mut().pop_front();
            let Some(committed) = next else { break };
            self.unless_it_panics(committed.job, || self.finish(&committed));
        }
        if !more {
            self.committed.borrow_mut().shrink_to(FINISHED);
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

    /// Takes a delivery out of all tables. The result of what is under way for it is dropped when it comes.
    pub(crate) fn take_out(&self, job: JobId) -> Option<Delivery> {
        let delivery = self.deliveries.borrow_mut().remove(job)?;
        self.sealed.borrow_mut().remove(&delivery.number);
        Some(delivery)
    }

    fn ended_well(&self, job: JobId, mut delivery: Delivery) {
        match delivery.end.take() {
            Some(end) => end(Ok(std::mem::take(&mut delivery.names))),
            None => self.finish_prolog(job, 0),
        }
    }

    /// Ends a delivery that cannot succeed: the job does not start.
    pub(crate) fn fail(&self, job: JobId, why: &Failure) {
        let delivery = self.take_out(job);
        self.stats.borrow_mut().failed += 1;
        // It may yet be committed: it is removed when the job has ended.
        if delivery.as_ref().is_some_and(|delivery| delivery.committing) {
            self.delivered.borrow_mut().insert(job);
        }
        if let Some(end) = delivery.and_then(|mut delivery| delivery.end.take()) {
            self.log_failure(job, why);
            end(Err(why.clone()));
        } else if self.hooks().is_some_and(|hooks| hooks.fails(job, why)) {
            self.log_failure(job, why);
        } else if self.raise(job, why) {
            self.finish_prolog(job, 1);
        }
    }

    fn log_failure(&self, job: JobId, why: &Failure) {
        let line = format!("{job}: no {} was delivered: {}", self.kind.what, why.operator);
        self.log(LogLevel::Err, &line);
    }

    /// Returns whether the job has ended: without an exception it must not leave its prolog, or it would start.
    pub(crate) fn raise(&self, job: JobId, why: &Failure) -> bool {
        self.log_failure(job, why);
        let text = format!(
            "no {} for this job: {}: if this goes on, ask the operators: the cause is in the log of Flux",
            self.kind.what, why.user
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

    pub(crate) fn finish_prolog(&self, job: JobId, status: i32) {
        if let Err(e) = self.jobtap.prolog_finish(job, self.kind.prolog, status) {
            self.log(LogLevel::Err, &format!("{job}: the prolog could not be finished: {e}"));
        }
    }
}

/// Runs on a thread.
fn work(setup: Arc<Setup>, task: Task, progress: Arc<Progress>, report: Report) {
    match setup.work(task, &progress) {
        Next::Done(outcome) => report.send(outcome),
        Next::Await(task, which, values) => {
            tokio::runtime::Handle::current().spawn(async move {
                report.send(setup.fetch(task, progress, which, values).await);
            });
        }
    }
}

/// Why a delivery is given up, whose time is over.
fn overdue(delivery: &Delivery) -> Failure {
    too_long(delivery, delivery.setup.config.timeout, "timeout")
}

/// The same, where it is the time of its source.
fn fetched_too_long(delivery: &Delivery) -> Option<Failure> {
    let (which, since) = delivery.progress.fetching()?;
    let key = match which {
        Which::Rule(_) => "timeout of its rule",
        Which::Rabbit => "timeout of the source for rabbit jobs",
    };
    let over = since.elapsed() > delivery.setup.fetch_limit(which);
    over.then(|| too_long(delivery, delivery.setup.fetch_timeout(which), key))
}

fn too_long(delivery: &Delivery, limit: Duration, key: &str) -> Failure {
    let (seconds, stage) = (limit.as_secs_f64(), delivery.progress.stage());
    let trouble = delivery
        .progress
        .trouble()
        .map(|e| format!(" ({e})"))
        .unwrap_or_default();
    Failure::new(
        format!("it took longer than {seconds} s"),
        format!(
            "it took longer than {seconds} s ({key}) while {}{trouble}",
            stage.describe()
        ),
    )
}

fn uncommitted(e: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        "it could not be stored",
        format!("the commit of the sealed record failed: {e}"),
    )
}
