//! `cray-pmi-bootstrap.so` for the job manager: gives each job that has several nodes two ports and a secret, with which Cray's libpmi
//! wires it up. It takes the place of the plugin of that name of flux-coral2, whose event has the secret in it; here, the
//! event has the ports alone, and the secret is sealed.
//!
//! A job has its ports from RUN until none of its tasks is left. Who has which is known after a reload by what is left with
//! the handle, and after a restart by the eventlogs: until all of them were read, jobs that are new wait in their prologs.

mod hosts;
mod ports;

use std::{
    cell::{Cell, RefCell},
    ffi::CStr,
    fmt::Write,
    io,
    rc::Rc,
    time::{Duration, Instant},
};

use config::Part;
use ffi::{Args, JobId, JobState, Jobtap, LogLevel, Plugin, PluginError, Watcher, guard, raw::flux_plugin_t};
use plugin::{CallbackTimer, Counter, Engine, Eventlog, Handover, Hooks, Identity, Past, Perilog};
use protocol::{Code, Failure};
use seal::{Secret, Variables};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use ports::{Pair, Ports};

/// What is delivered: the ports as libpmi takes them, and the secret.
const PORT: &str = "PMI_CONTROL_PORT";
const SECRET: &str = "PMI_SHARED_SECRET";

/// The event that tells the ports of a job.
const EVENT: &CStr = c"cray-pmi-bootstrap";

static CRAY_PMI: Identity = Identity {
    name: "cray-pmi-bootstrap",
    prolog: c"cray-pmi-bootstrap",
    key: seal::key::CRAY_PMI_BOOTSTRAP,
    looks_for_records: false,
    what: "secret for Cray PMI",
    part: Part::Sealing,
    handover: c"workflow-token::cray-pmi-bootstrap::handover",
    active: c"workflow-token::cray-pmi-bootstrap::active",
    events: &["cray-pmi-bootstrap"],
};

/// What is left for the next plugin besides: the jobs that have ports.
type LeftPorts = Vec<(JobId, Pair)>;

/// What the job manager calls when it has loaded the object, flux-jobtap-plugins(7).
///
/// # Safety
/// `p` is the plugin that the object was loaded for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_plugin_init(p: *mut flux_plugin_t) -> i32 {
    guard(-1, || {
        // SAFETY: the plugin lives until its object is unmapped, and everything that keeps it is destroyed before.
        let this = unsafe { Plugin::borrow(p) };
        plugin::load(this, "cray-pmi-bootstrap", load)
    })
}

/// Loads the plugin.
///
/// # Errors
/// What is wrong with its configuration; ENOMEM.
fn load(plugin: Plugin<'static>) -> io::Result<()> {
    plugin.set_name(c"cray-pmi-bootstrap")?;
    let jobtap = Jobtap::new(plugin).ok_or_else(|| io::Error::other("it is a plugin for the job manager"))?;
    let pmi = plugin.keep(Pmi::new(jobtap, plugin)?)?;
    plugin.handle(c"conf.update", &pmi, |p: &Pmi, _, args| p.0.conf_update(args))?;
    plugin.handle(c"job.new", &pmi, |p: &Pmi, _, args| p.0.job_new(args))?;
    plugin.handle(c"job.state.run", &pmi, |p: &Pmi, _, args| p.0.job_run(args))?;
    plugin.handle(c"job.state.cleanup", &pmi, |p: &Pmi, _, args| p.0.job_cleanup(args))?;
    plugin.handle(c"job.state.inactive", &pmi, |p: &Pmi, _, args| p.0.job_inactive(args))?;
    plugin.handle(c"plugin.query", &pmi, |p: &Pmi, _, args| p.0.query(args))?;
    Ok(())
}

/// The state of the plugin, as it is kept with it.
struct Pmi(Rc<State>);

struct State {
    engine: Rc<Engine>,
    ports: RefCell<Ports>,
    /// Jobs in their prologs that get their ports when it is known which are free, in the order in which they came.
    waiting: RefCell<Vec<Waiting>>,
    /// When the time of some of them is over.
    timer: RefCell<Option<Watcher>>,
    /// How many jobs went on without ports, for want of them.
    without: Cell<u64>,
    /// Whether it was looked at what the plugin before this one left.
    looked: Cell<bool>,
}

#[derive(Clone, Copy)]
struct Waiting {
    job: JobId,
    uid: u32,
    since: Instant,
}

impl Pmi {
    fn new(jobtap: Jobtap<'static>, plugin: Plugin<'_>) -> io::Result<Self> {
        let mut conf = plugin.conf()?;
        let ports = configured(&mut conf, |level, line| {
            jobtap.flux().log(level, &format!("{}: {line}", CRAY_PMI.name));
        });
        let ports = ports.map_err(io::Error::other)?;
        let state = Rc::new(State {
            engine: Engine::new(&CRAY_PMI, jobtap, plugin, conf),
            ports: RefCell::new(ports),
            waiting: RefCell::default(),
            timer: RefCell::default(),
            without: Cell::new(0),
            looked: Cell::new(false),
        });
        let hooks = Rc::downgrade(&state);
        state.engine.hook(hooks);
        Ok(Self(state))
    }
}

/// The ports to be handed out; what is left in `conf` is for the engine.
fn configured(conf: &mut Value, log: impl Fn(LogLevel, &str)) -> Result<Ports, String> {
    let given = conf
        .as_object_mut()
        .map_or((None, None), |conf| (conf.remove("port-min"), conf.remove("port-max")));
    let (start, end) = (ports::DEFAULT.start, ports::DEFAULT.end);
    match given {
        (Some(Value::Number(min)), Some(Value::Number(max))) if min.is_i64() && max.is_i64() => {
            Ports::new(min.as_i64().unwrap_or(0), max.as_i64().unwrap_or(0))
        }
        (None, None) => {
            let line = format!(
                "Port range not specified in config with port-min and port-max. Using defaults of {start} and {end}."
            );
            log(LogLevel::Notice, &line);
            Ports::new(start, end)
        }
        // As the plugin did that this one takes the place of, though not without a word: an instance must not fail to
        // start that did start with it.
        _ => {
            let line = format!(
                "port-min and port-max are not both integers, and count for nothing: using defaults of {start} and {end}: \
                 give both"
            );
            log(LogLevel::Warning, &line);
            Ports::new(start, end)
        }
    }
}

impl ffi::State for Pmi {
    fn panicked(&self, topic: &CStr, args: &Args<'_>) {
        self.0.engine.panicked(topic, args);
    }
}

impl Drop for Pmi {
    fn drop(&mut self) {
        self.0.engine.end();
    }
}

impl State {
    fn conf_update(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        self.engine.configure(args)?;
        if !self.looked.replace(true) {
            self.take_left();
        }
        Ok(())
    }

    /// Takes up the ports of jobs that still have them, of what was left in this job manager.
    fn take_left(&self) {
        let left: LeftPorts = self.engine.inherited().unwrap_or_default();
        for (job, pair) in left {
            let Some(args) = self.engine.jobtap().lookup(job) else {
                continue;
            };
            if !is_over(&args) {
                self.ports.borrow_mut().claim(job, pair);
            }
        }
    }

    /// A job that is past SCHED was here before this plugin.
    fn job_new(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        let Some((job, uid, state)) = args.job_owner_state() else {
            return Ok(());
        };
        if !matches!(state, JobState::Run | JobState::Cleanup) {
            return Ok(());
        }
        let engine = &self.engine;
        // It is active: its record, if it has one, is not to be removed yet.
        engine.is_active_still(job);
        match engine.past(job) {
            // Another plugin was loaded in between, and gave it ports.
            Some(Past::None) if self.ports.borrow().of(job).is_none() && engine.jobtap().was_posted(job, EVENT) => {
                engine.read_eventlog(job);
            }
            // The same job manager: what was left is exact, and the eventlog in the KVS may be behind.
            Some(Past::None) if state == JobState::Run => self.late(args, job, uid),
            Some(past) => self.go_on(job, uid, state, past),
            None => engine.read_eventlog(job),
        }
        Ok(())
    }

    fn job_run(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
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

    /// Whether a job gets ports: it has several nodes, and none yet.
    fn is_for(&self, args: &Args<'_>, job: JobId) -> bool {
        let nodelist = args.json(&["R", "execution", "nodelist"]);
        let hosts = nodelist
            .ok_or_else(|| "it has no R".to_owned())
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

    /// Within the callback of the job's change to RUN.
    fn begin(self: &Rc<Self>, job: JobId, uid: u32) {
        let known = self.all_known();
        // Before the prolog: a job for which there are none goes on as if this plugin were not there.
        let pair = if known { self.take(job) } else { None };
        if known && pair.is_none() {
            return;
        }
        if let Err(e) = self.engine.prologs.start() {
            self.ports.borrow_mut().give_back(job);
            self.engine.prologs.raise(job, &e);
            return;
        }
        self.engine.deliveries.unless_it_panics(job, || match pair {
            Some(pair) => self.tell_and_deliver(job, uid, pair),
            None => self.wait(job, uid),
        });
    }

    /// The job entered RUN while no plugin was loaded. If another prolog still holds it, there is time; if it has started,
    /// prolog-start is refused and the job is left alone.
    fn late(self: &Rc<Self>, args: &Args<'_>, job: JobId, uid: u32) {
        if self.is_for(args, job) && self.engine.prologs.start().is_ok() {
            self.engine.deliveries.unless_it_panics(job, || self.assign(job, uid));
        }
    }

    /// Takes up a job from before, whose ports are known if it has any.
    fn go_on(self: &Rc<Self>, job: JobId, uid: u32, state: JobState, past: Past) {
        if self.engine.settle(job, state, past) {
            let pair = self.ports.borrow().of(job);
            self.engine.deliveries.unless_it_panics(job, || match pair {
                // It has not started: a new secret does as well.
                Some(pair) => self.deliver(job, uid, pair),
                None => self.assign(job, uid),
            });
        }
    }

    /// Whether it is known of each job which ports it has.
    fn all_known(&self) -> bool {
        self.engine.knows_all()
    }

    /// Ports for a job in its prolog: now, or when it is known which are free.
    fn assign(self: &Rc<Self>, job: JobId, uid: u32) {
        if !self.all_known() {
            self.wait(job, uid);
            return;
        }
        match self.take(job) {
            Some(pair) => self.tell_and_deliver(job, uid, pair),
            None => self.engine.prologs.finish(job, 0),
        }
    }

    fn wait(self: &Rc<Self>, job: JobId, uid: u32) {
        let since = Instant::now();
        self.waiting.borrow_mut().push(Waiting { job, uid, since });
        self.mind_waiting();
    }

    /// Fails jobs that have waited for too long, in time.
    fn mind_waiting(self: &Rc<Self>) {
        let Some(current) = self.engine.current() else { return };
        let timeout = current.config.timeout;
        let Some(first) = self.waiting.borrow().iter().map(|waiting| waiting.since).min() else {
            return;
        };
        let weak = Rc::downgrade(self);
        let left = timeout.saturating_sub(first.elapsed());
        let timer = self.engine.flux().after(left.as_secs_f64(), move || {
            if let Some(me) = weak.upgrade() {
                let done = me.timer.take();
                guard((), || me.fail_late(timeout));
                guard((), || me.mind_waiting());
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
        let is_late = |waiting: &Waiting| waiting.since.elapsed() >= timeout;
        let late: Vec<Waiting> = self.waiting.borrow().iter().copied().filter(is_late).collect();
        for Waiting { job, .. } in late {
            if self.unwait(job) {
                let what = "the ports of jobs that run could not be learned from their eventlogs in time (timeout)";
                self.engine
                    .deliveries
                    .fail(job, &Failure::new(Code::StoreTimeout, "it took too long", what));
            }
        }
    }

    /// Whether a job waited, as it does not any more.
    fn unwait(&self, job: JobId) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        let at = waiting.iter().position(|waiting| waiting.job == job);
        at.map(|at| waiting.remove(at)).is_some()
    }

    /// Goes on with the jobs that wait, when there is nothing more to wait for.
    fn proceed(self: &Rc<Self>) {
        if !self.all_known() {
            return;
        }
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for Waiting { job, uid, .. } in waiting {
            self.engine.deliveries.unless_it_panics(job, || self.assign(job, uid));
        }
    }

    fn take(&self, job: JobId) -> Option<Pair> {
        let pair = self.ports.borrow_mut().take(job);
        if pair.is_none() {
            self.without.set(self.without.get() + 1);
            let line = format!("{job}: no ports are free: it goes on without: raise port-max");
            self.engine.log(LogLevel::Err, &line);
        }
        pair
    }

    /// For a job in its prolog.
    fn tell_and_deliver(&self, job: JobId, uid: u32, pair: Pair) {
        if let Err(e) = self.engine.jobtap().post(job, EVENT, &json!({ "ports": pair })) {
            // A job manager that comes after this one would not know whose they are.
            self.ports.borrow_mut().give_back(job);
            let why = format!("the event with its ports could not be posted: {e}");
            self.engine
                .deliveries
                .fail(job, &Failure::new(Code::Internal, "its ports could not be kept", why));
            return;
        }
        self.deliver(job, uid, pair);
    }

    fn deliver(&self, job: JobId, uid: u32, pair: Pair) {
        match variables(pair) {
            Ok(variables) => self.engine.provide(job, uid, variables, None),
            Err(e) => {
                let why = format!("the system gave no random bytes: {e}");
                self.engine
                    .deliveries
                    .fail(job, &Failure::new(Code::Internal, "no secret could be made", why));
            }
        }
    }

    /// The job was canceled, or ended. Its tasks may still be there, unless they were what ended it.
    fn job_cleanup(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        let callback = CallbackTimer::start();
        let Some(job) = args.job() else { return Ok(()) };
        if self.unwait(job) {
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

    fn job_inactive(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        if let Some(job) = args.job() {
            self.engine.ended(job);
            self.ports.borrow_mut().give_back(job);
            self.proceed();
        }
        Ok(())
    }

    fn query(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let mut answer = self.engine.counters();
        let ports = self.ports.borrow();
        answer["port-min"] = json!(ports.range().start);
        answer["port-max"] = json!(ports.range().end);
        answer["ports-free"] = json!(ports.free());
        answer["jobs-with-ports"] = json!(ports.held().count());
        answer["jobs-waiting"] = json!(self.waiting.borrow().len());
        answer["out-of-ports"] = json!(self.without.get());
        args.answer(&answer);
        Ok(())
    }
}

impl Hooks for State {
    fn resume(self: Rc<Self>, job: JobId, eventlog: &Eventlog) {
        let engine = &self.engine;
        let callback = CallbackTimer::start();
        // The job may have changed since it was asked for.
        if let Some(args) = engine.jobtap().lookup(job)
            && let Some((_, uid, state)) = args.job_owner_state()
            && state != JobState::Inactive
            && !engine.deliveries.is_under_way(job)
        {
            if let Some(pair) = told(eventlog).filter(|_| !is_over(&args)) {
                self.ports.borrow_mut().claim(job, pair);
            }
            self.go_on(job, uid, state, eventlog.past(Perilog::Prolog, CRAY_PMI.name));
        }
        self.proceed();
        engine.deliveries.account(&callback, None);
    }

    fn leave(&self, handover: &mut Handover) {
        drop(self.timer.take());
        let waiting = self.waiting.take();
        handover.in_flight.extend(waiting.iter().map(|waiting| waiting.job));
        let ports: LeftPorts = self.ports.borrow().held().collect();
        handover.own = json!(ports);
    }

    fn failed(&self, job: JobId, why: &Failure) {
        self.engine.prologs.refuse(job, why);
    }
}

/// Whether none of the job's tasks is left: they have ended, and were not ended by an exception.
fn is_over(args: &Args<'_>) -> bool {
    let ended = args.string(&["end_event", "name"]).is_some_and(|name| name == "finish");
    ended || matches!(args.job_owner_state(), Some((_, _, JobState::Inactive)))
}

/// Returns the ports of the last event of the name; nothing if there is none, or no ports in it.
fn told(eventlog: &Eventlog) -> Option<Pair> {
    ports::from_context(eventlog.contexts(CRAY_PMI.name).next_back()?)
}

/// What a job gets: its ports, and a secret that there never was before.
fn variables(pair: Pair) -> io::Result<Variables> {
    let mut bytes = Zeroizing::new([0; 8]);
    let filled = rustix::rand::getrandom(bytes.as_mut_slice(), rustix::rand::GetRandomFlags::empty())?;
    if filled < bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // No number of 64 bits has more digits, so that the text is not moved, leaving a copy behind.
    let mut text = Zeroizing::new(String::with_capacity(20));
    let number = Zeroizing::new(u64::from_ne_bytes(*bytes));
    write!(text, "{}", *number).map_err(io::Error::other)?;
    let mut variables = Variables::new();
    let [first, second] = pair;
    for (name, value) in [
        (PORT, Secret::from(format!("{first},{second}"))),
        (SECRET, Secret::from(text.as_str())),
    ] {
        variables.insert(name, value).map_err(io::Error::other)?;
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use seal::ExposeSecret;

    use super::*;

    #[test]
    fn each_job_has_a_secret_of_its_own() {
        let secret = || {
            let variables = variables([11_999, 11_998]).unwrap();
            let found: Vec<_> = variables
                .iter()
                .map(|(n, v)| (n.to_owned(), v.expose_secret().to_owned()))
                .collect();
            assert_eq!(found[0], (PORT.to_owned(), "11999,11998".to_owned()));
            assert_eq!(found[1].0, SECRET);
            found[1].1.parse::<u64>().unwrap()
        };
        assert_ne!(secret(), secret());
    }

    #[test]
    fn the_last_event_tells_the_ports() {
        let line = |name: &str, ports: &str| format!(r#"{{"timestamp":1.0,"name":"{name}","context":{{{ports}}}}}"#);
        let (ours, others) = (CRAY_PMI.name, "other");
        let log = |lines: &[String]| told(&Eventlog::parse(&lines.join("\n"), CRAY_PMI.events));
        assert_eq!(log(&[line(others, r#""ports":[1,2]"#)]), None);
        assert_eq!(log(&[line(ours, r#""ports":[1]"#)]), None);
        let old = r#""ports":[11999,11998],"random_integer":-3"#;
        assert_eq!(
            log(&[
                "no event".to_owned(),
                line(ours, r#""ports":[1,2]"#),
                line(ours, old),
                line(others, "")
            ]),
            Some([11_999, 11_998])
        );
    }

    #[test]
    fn the_range_is_configured_by_both_ends_or_not_at_all() {
        for (conf, range, level) in [
            (json!(null), 11_000..12_000, Some(LogLevel::Notice)),
            (json!({}), 11_000..12_000, Some(LogLevel::Notice)),
            (json!({"port-min": 2000, "port-max": 2050}), 2000..2050, None),
            (json!({"port-min": 2000}), 11_000..12_000, Some(LogLevel::Warning)),
            (
                json!({"port-min": "2000", "port-max": "2100"}),
                11_000..12_000,
                Some(LogLevel::Warning),
            ),
        ] {
            let (mut rest, said) = (conf.clone(), Cell::new(None));
            let ports = configured(&mut rest, |level, _| said.set(Some(level))).unwrap();
            assert_eq!((ports.range(), said.get()), (&range, level), "{conf}");
            assert!(rest.as_object().is_none_or(|rest| rest.is_empty()), "{rest}");
        }
        assert!(configured(&mut json!({"port-min": 0, "port-max": 12_000}), |_, _| {}).is_err());
    }
}
