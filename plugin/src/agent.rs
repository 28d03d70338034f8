//! The agent client: sends what jobs need to the agent, over one socket that never blocks, and repeats it if the agent
//! ends.
//!
//! Everything that has no final reply is kept. An agent may be killed at any moment; the next one gets it all again. If
//! agents end or cannot be started, the pauses between tries grow. Deliveries meanwhile fail at their timeout.

mod link;
mod process;
mod requests;

use std::{
    cell::RefCell,
    path::PathBuf,
    rc::{Rc, Weak},
    time::Duration,
};

use ffi::{Flux, JobId, LogLevel, Watcher};
use nix::unistd::geteuid;
use protocol::{Configure, Deliver, JobEnd, RELEASE, Reply, VERSION};

use link::Link;
use process::Process;
use requests::Requests;

/// The backoff between tries to connect: the first pause, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(5));

/// How long an agent that was started may take until it listens.
const STARTUP: Duration = Duration::from_secs(10);

/// An agent that has sent nothing for so long, when it should have, hangs.
const HUNG: Duration = Duration::from_secs(1);

/// How many replies are taken in one turn of the reactor.
const TURN: usize = 16;

/// What the client reports.
pub(crate) enum AgentEvent {
    /// The agent replied, about a delivery that waits for it or about something else.
    Reply(Option<JobId>, Reply),
    /// For the log.
    Log(LogLevel, String),
}

/// The agent client of one plugin.
pub(crate) struct Agent {
    flux: Flux<'static>,
    report: Box<dyn Fn(AgentEvent)>,
    address: RefCell<Option<Address>>,
    link: RefCell<Option<Link>>,
    process: RefCell<Process>,
    /// The next try to connect.
    retry: RefCell<Option<Watcher>>,
    /// More replies were received than one turn takes.
    more: RefCell<Option<Watcher>>,
    requests: RefCell<Requests>,
    tries: RefCell<Tries>,
}

/// Where the agent is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    /// Its socket.
    pub socket: PathBuf,
    /// The programs to start it with, of which the first that exists is used. None if others start it.
    pub programs: Option<Vec<PathBuf>>,
}

/// The tries to connect that failed.
#[derive(Debug, Default)]
struct Tries {
    /// How many since the agent last replied.
    failed: u32,
    /// The reason that was last logged.
    reported: Option<String>,
    /// The release of an agent that should have made room for one of this release.
    other_release: Option<String>,
}

impl Agent {
    /// Returns a client that does nothing before [`Agent::connect_to`].
    pub fn new(flux: Flux<'static>, report: impl Fn(AgentEvent) + 'static) -> Rc<Self> {
        Rc::new(Self {
            flux,
            report: Box::new(report),
            address: RefCell::default(),
            link: RefCell::default(),
            process: RefCell::default(),
            retry: RefCell::default(),
            more: RefCell::default(),
            requests: RefCell::default(),
            tries: RefCell::default(),
        })
    }

    /// Connects to the agent at this address, and stays connected.
    pub fn connect_to(self: &Rc<Self>, address: Address) {
        if self.address.borrow().as_ref() != Some(&address) {
            *self.address.borrow_mut() = Some(address);
            self.tries.take();
            self.process.borrow_mut().forget();
            self.close();
        }
        self.ensure();
    }

    /// Makes a configuration known, which later requests name.
    pub fn configure(self: &Rc<Self>, configure: Configure) {
        self.requests.borrow_mut().configure(configure);
        self.flush();
    }

    /// Forgets the configurations that nothing names any more, other than the one in force.
    pub fn retire_unused(self: &Rc<Self>, in_force: u32) {
        self.requests.borrow_mut().retire_unused(in_force);
        self.flush();
    }

    /// Asks for a record.
    pub fn deliver(self: &Rc<Self>, deliver: Deliver) {
        self.requests.borrow_mut().deliver(deliver);
        self.flush();
    }

    /// Gives a delivery up. Nothing is heard of it any more.
    pub fn cancel(self: &Rc<Self>, number: u64) {
        let is_new = self.requests.borrow_mut().cancel(number);
        if is_new {
            self.flush();
        }
    }

    /// Answers a question about a job.
    pub fn answer_job(self: &Rc<Self>, number: u64, end: Option<JobEnd>) {
        self.requests.borrow_mut().answer_job(number, end);
        self.flush();
    }

    /// Reports the end of a job, unless the agent is not connected: then it asks once it is.
    pub fn ended(self: &Rc<Self>, job: JobId) {
        if self.is_connected() {
            self.requests.borrow_mut().ended(job.0);
            self.flush();
        }
    }

    /// Asks who a user is, unless that was asked already.
    pub fn look_up(self: &Rc<Self>, generation: u32, uid: u32) {
        let is_new = self.requests.borrow_mut().look_up(generation, uid);
        if is_new {
            self.flush();
        }
    }

    /// Whether the agent can be asked now.
    pub fn is_connected(&self) -> bool {
        self.link.borrow().is_some()
    }

    /// A reply is overdue. An agent that hangs is killed, if it is one that plugins start, and the next one is asked.
    pub fn is_overdue(self: &Rc<Self>) {
        let hangs = |link: &Link| link.received_last().elapsed() >= HUNG;
        let link = self.link.borrow_mut().take_if(|link| hangs(link));
        let Some(link) = link else { return };
        let is_ours = self
            .address
            .borrow()
            .as_ref()
            .is_some_and(|address| address.programs.is_some());
        if is_ours {
            link.kill_peer();
        }
        drop(link);
        self.lost("it did not answer");
    }

    /// Takes the replies that have come so far, each with its job, before the client is dropped.
    pub fn take_received(&self) -> Vec<(Option<JobId>, Reply)> {
        let mut link = self.link.borrow_mut();
        let Some(link) = &mut *link else { return Vec::new() };
        let mut requests = self.requests.borrow_mut();
        let replies = std::iter::from_fn(|| link.next().ok().flatten());
        replies.map(|reply| (requests.replied(&reply), reply)).collect()
    }

    fn log(&self, level: LogLevel, line: impl Into<String>) {
        (self.report)(AgentEvent::Log(level, line.into()));
    }

    /// Connects, unless that is so or under way.
    fn ensure(self: &Rc<Self>) {
        if self.link.borrow().is_none() && self.retry.borrow().is_none() {
            self.connect();
        }
    }

    fn connect(self: &Rc<Self>) {
        let Some(address) = self.address.borrow().clone() else {
            return;
        };
        let weak = Rc::downgrade(self);
        let connected = Link::connect(&address.socket, self.flux, move || with(&weak, Self::receive));
        match connected {
            Ok(link) => {
                *self.link.borrow_mut() = Some(link);
                self.requests.borrow_mut().repeat();
                self.flush();
            }
            Err(link::Error::Absent(e)) => self.start(&address, &e),
            Err(link::Error::Refused(e)) => self.failed(&e),
        }
    }

    /// Starts an agent, unless one is starting or others start it.
    fn start(self: &Rc<Self>, address: &Address, absent: &str) {
        let Some(programs) = &address.programs else {
            return self.failed(absent);
        };
        let state = self.process.borrow_mut().poll();
        match state {
            process::Startup::Starting(since) if since.elapsed() < STARTUP => self.retry_after(BACKOFF.0),
            process::Startup::Starting(_) => self.failed("it was started and does not listen"),
            process::Startup::Ended => self.failed("it ended at once: see its output in that of the broker"),
            process::Startup::None => {
                let started = self.process.borrow_mut().start(programs, &address.socket);
                match started {
                    Ok(()) => self.retry_after(BACKOFF.0),
                    Err(e) => self.failed(&e),
                }
            }
        }
    }

    /// It was in vain: the next try comes after a pause, each longer than the one before.
    fn failed(self: &Rc<Self>, why: &str) {
        let mut tries = self.tries.borrow_mut();
        let why = match &tries.other_release {
            Some(other) => format!(
                "{why}, and an agent of release {other} was there: this plugin is of release {RELEASE}: load the plugins of \
                 the installed release"
            ),
            None => why.to_owned(),
        };
        let failed = tries.failed.saturating_add(1);
        tries.failed = failed;
        let is_new = tries.reported.as_ref() != Some(&why);
        tries.reported = Some(why.clone());
        drop(tries);
        if is_new {
            let socket = self
                .address
                .borrow()
                .as_ref()
                .map(|address| address.socket.display().to_string());
            let socket = socket.unwrap_or_default();
            let line = format!(
                "the agent at {socket} cannot be used: {why}. Jobs that need it wait and fail at their timeout [agent-unavailable]"
            );
            self.log(LogLevel::Err, line);
        }
        self.process.borrow_mut().forget();
        let pause = BACKOFF.0.saturating_mul(1 << failed.min(16)).min(BACKOFF.1);
        self.retry_after(pause);
    }

    fn retry_after(self: &Rc<Self>, pause: Duration) {
        let weak = Rc::downgrade(self);
        let retry = self.flux.after(pause.as_secs_f64(), move || {
            with(&weak, |agent| {
                // It is running, and has done its work.
                let done = agent.retry.borrow_mut().take();
                agent.connect();
                drop(done);
            });
        });
        match retry {
            Ok(retry) => *self.retry.borrow_mut() = Some(retry),
            Err(e) => self.log(LogLevel::Err, format!("no timer can be started: {e}")),
        }
    }

    /// The connection is gone. An agent that replied is replaced at once.
    fn lost(self: &Rc<Self>, why: &str) {
        self.process.borrow_mut().forget();
        self.more.borrow_mut().take();
        let has_replied = self.tries.borrow().failed == 0;
        if has_replied {
            self.log(
                LogLevel::Warning,
                format!("the agent is gone: {why}. It is asked again"),
            );
            self.tries.borrow_mut().failed = 1;
            self.ensure();
        } else {
            self.failed(why);
        }
    }

    /// Closes the connection. Requests are kept.
    pub fn close(&self) {
        let link = self.link.borrow_mut().take();
        drop(link);
        self.retry.borrow_mut().take();
        self.more.borrow_mut().take();
    }

    /// Reads what has come, unless replies of an earlier turn are left: an agent cannot fill the broker's memory.
    fn receive(self: &Rc<Self>) {
        ffi::inject_fault("watcher");
        if self.more.borrow().is_none() {
            let ended = self.link.borrow_mut().as_mut().and_then(|link| link.read().err());
            self.take_turn(ended);
        }
    }

    /// Takes some of the replies that were read; the others after others had their turn.
    fn take_turn(self: &Rc<Self>, mut ended: Option<String>) {
        let mut replies = Vec::with_capacity(TURN);
        if let Some(link) = &mut *self.link.borrow_mut() {
            while replies.len() < TURN {
                match link.next() {
                    Ok(Some(reply)) => replies.push(reply),
                    Ok(None) => break,
                    Err(e) => {
                        ended = Some(e);
                        break;
                    }
                }
            }
        }
        let has_more = replies.len() == TURN;
        for reply in replies {
            self.replied(reply);
            // Of an agent that is of no use, no further reply counts.
            if !self.is_connected() {
                return;
            }
        }
        if has_more {
            // The next read reports again why the connection ended.
            let weak = Rc::downgrade(self);
            let soon = self.flux.after(0.0, move || {
                with(&weak, |agent| {
                    let done = agent.more.borrow_mut().take();
                    agent.take_turn(None);
                    drop(done);
                });
            });
            match soon {
                Ok(soon) => *self.more.borrow_mut() = Some(soon),
                // They are taken when the next reply is read.
                Err(e) => self.log(LogLevel::Err, format!("no timer can be started: {e}")),
            }
        } else if let Some(why) = ended {
            let link = self.link.borrow_mut().take();
            if link.is_some() {
                drop(link);
                self.lost(&why);
            }
        }
    }

    fn replied(self: &Rc<Self>, reply: Reply) {
        match &reply {
            Reply::Welcome { version, release, uid } => return self.welcomed(*version, release, *uid),
            Reply::Delivered { .. } | Reply::NoRule { .. } | Reply::Failed { .. } => drop(self.tries.take()),
            Reply::Configured { .. } => {
                let mut tries = self.tries.borrow_mut();
                tries.other_release = None;
                let reported = tries.reported.take();
                drop(tries);
                if reported.is_some() {
                    self.log(LogLevel::Notice, "the agent answers again");
                }
            }
            Reply::Owner { .. } | Reply::Log(_) | Reply::AskJob { .. } | Reply::Answer(_) => {}
        }
        let job = self.requests.borrow_mut().replied(&reply);
        (self.report)(AgentEvent::Reply(job, reply));
    }

    /// An agent of another release has made room for one of this release, unless others start it. An agent of another user is
    /// of no use, although root may listen for one: job shells accept only what the instance owner has sealed.
    fn welcomed(self: &Rc<Self>, version: u16, release: &str, uid: u32) {
        let is_ours = self
            .address
            .borrow()
            .as_ref()
            .is_some_and(|address| address.programs.is_some());
        let own = geteuid().as_raw();
        if version == VERSION && (release == RELEASE || !is_ours) && uid == own {
            return;
        }
        let link = self.link.borrow_mut().take();
        drop(link);
        if version == VERSION && uid != own {
            self.failed(&format!(
                "it runs as uid {uid}, and job shells accept only what uid {own} has sealed, the instance owner: start it as that user"
            ));
        } else if is_ours {
            let other = release.escape_debug().to_string();
            let former = self.tries.borrow_mut().other_release.replace(other);
            match former {
                None => self.retry_after(BACKOFF.0),
                Some(_) => self.failed("no agent of this release can be started"),
            }
        } else {
            self.failed(&format!(
                "it is release {release} with protocol {version}, and the plugin is release {RELEASE} with protocol {VERSION}: \
                 install the same release of both"
            ));
        }
    }

    /// Sends what the socket takes; the rest when it takes more.
    fn flush(self: &Rc<Self>) {
        let mut link = self.link.borrow_mut();
        let Some(open) = &mut *link else { return };
        let mut requests = self.requests.borrow_mut();
        let weak = Rc::downgrade(self);
        let sent = open.send(|| requests.next_frame(), self.flux, move || with(&weak, Self::flush));
        drop(requests);
        if let Err(why) = sent {
            let gone = link.take();
            drop(link);
            drop(gone);
            self.lost(&why);
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.close();
    }
}

fn with(agent: &Weak<Agent>, f: impl FnOnce(&Rc<Agent>)) {
    if let Some(agent) = agent.upgrade() {
        f(&agent);
    }
}
