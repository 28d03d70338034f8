// SPDX-License-Identifier: MIT OR Apache-2.0

//! The agent client: sends requests to the agent over one socket that never blocks, and repeats them if the agent ends.
//!
//! It keeps every request without a final reply. An agent may be killed at any moment; the client sends everything to
//! the next one. If agents end or cannot be started, it retries with backoff. Deliveries then fail at their timeout.

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

/// The first and the longest pause between attempts to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(5));

/// The time within which a started agent must listen.
const STARTUP: Duration = Duration::from_secs(10);

/// The time without a reply after which an agent with an overdue reply is considered hung.
const HUNG: Duration = Duration::from_secs(1);

/// The most replies that one turn of the reactor handles.
const TURN: usize = 16;

/// An event that [`Agent`] reports.
pub(crate) enum AgentEvent {
    /// The agent replied, to the delivery of a job or to something else.
    Reply(Option<JobId>, Reply),
    /// A line for the log.
    Log(LogLevel, String),
}

/// The agent client of one plugin.
pub(crate) struct Agent {
    flux: Flux<'static>,
    report: Box<dyn Fn(AgentEvent)>,
    address: RefCell<Option<Address>>,
    link: RefCell<Option<Link>>,
    process: RefCell<Process>,
    /// The timer for the next attempt to connect.
    retry: RefCell<Option<Watcher>>,
    /// The timer for the replies that exceed one turn.
    more: RefCell<Option<Watcher>>,
    requests: RefCell<Requests>,
    tries: RefCell<Tries>,
}

/// The location of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    /// Its socket.
    pub socket: PathBuf,
    /// The programs that can start it; the first one that exists is used. None if the plugin must not start it.
    pub programs: Option<Vec<PathBuf>>,
}

/// Failed attempts to connect.
#[derive(Debug, Default)]
struct Tries {
    /// The number of failures since the last reply of the agent.
    failed: u32,
    /// The reason that was logged last.
    reported: Option<String>,
    /// The release of an agent that should have left its socket to one of this release.
    other_release: Option<String>,
}

impl Agent {
    /// Returns a client that does nothing until [`Agent::connect_to`] is called.
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

    /// Connects to the agent at this address, and reconnects when necessary.
    pub fn connect_to(self: &Rc<Self>, address: Address) {
        if self.address.borrow().as_ref() != Some(&address) {
            *self.address.borrow_mut() = Some(address);
            self.tries.take();
            self.process.borrow_mut().forget();
            self.close();
        }
        self.ensure();
    }

    /// Sends a configuration, which later requests name.
    pub fn configure(self: &Rc<Self>, configure: Configure) {
        self.requests.borrow_mut().configure(configure);
        self.flush();
    }

    /// Retires the configurations that no request names any more, except the active one.
    pub fn retire_unused(self: &Rc<Self>, in_force: u32) {
        self.requests.borrow_mut().retire_unused(in_force);
        self.flush();
    }

    /// Requests a record.
    pub fn deliver(self: &Rc<Self>, deliver: Deliver) {
        self.requests.borrow_mut().deliver(deliver);
        self.flush();
    }

    /// Cancels a delivery. No reply to it is reported any more.
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

    /// Reports the end of a job. Without a connection it does nothing: the agent asks when it connects.
    pub fn ended(self: &Rc<Self>, job: JobId) {
        if self.is_connected() {
            self.requests.borrow_mut().ended(job.0);
            self.flush();
        }
    }

    /// Requests the look-up of a user, unless one is pending.
    pub fn look_up(self: &Rc<Self>, generation: u32, uid: u32) {
        let is_new = self.requests.borrow_mut().look_up(generation, uid);
        if is_new {
            self.flush();
        }
    }

    /// Returns whether the client is connected to an agent.
    pub fn is_connected(&self) -> bool {
        self.link.borrow().is_some()
    }

    /// Handles an overdue reply: kills a hung agent, if the plugin may start agents, and connects to the next one.
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

    /// Removes and returns the replies received so far, each with its job. The caller then drops the client.
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

    /// Connects, unless a connection exists or an attempt is scheduled.
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

    /// Starts an agent, unless one is starting or the plugin must not start it.
    fn start(self: &Rc<Self>, address: &Address, absent: &str) {
        let Some(programs) = &address.programs else {
            return self.failed(absent);
        };
        let state = self.process.borrow_mut().poll();
        match state {
            process::Startup::Starting(since) if since.elapsed() < STARTUP => self.retry_after(BACKOFF.0),
            process::Startup::Starting(_) => self.failed("it was started and does not listen"),
            process::Startup::Ended => self.failed("it ended at once: see its messages in the broker's output"),
            process::Startup::None => {
                let started = self.process.borrow_mut().start(programs, &address.socket);
                match started {
                    Ok(()) => self.retry_after(BACKOFF.0),
                    Err(e) => self.failed(&e),
                }
            }
        }
    }

    /// Handles a failed attempt: logs a new reason once, and schedules the next attempt with backoff.
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
                // This watcher is running: drop it only after its work.
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

    /// Handles a lost connection. Connects again at once if the agent has replied before.
    fn lost(self: &Rc<Self>, why: &str) {
        self.process.borrow_mut().forget();
        self.more.borrow_mut().take();
        let has_replied = self.tries.borrow().failed == 0;
        if has_replied {
            self.log(
                LogLevel::Warning,
                format!("the connection to the agent ended: {why}. Connecting again"),
            );
            self.tries.borrow_mut().failed = 1;
            self.ensure();
        } else {
            self.failed(why);
        }
    }

    /// Closes the connection, and keeps the requests.
    pub fn close(&self) {
        let link = self.link.borrow_mut().take();
        drop(link);
        self.retry.borrow_mut().take();
        self.more.borrow_mut().take();
    }

    /// Reads received bytes, unless replies of an earlier turn are left: so an agent cannot fill the broker's memory.
    fn receive(self: &Rc<Self>) {
        ffi::inject_fault("watcher");
        if self.more.borrow().is_none() {
            let ended = self.link.borrow_mut().as_mut().and_then(|link| link.read().err());
            self.take_turn(ended);
        }
    }

    /// Handles some of the replies that were read. The rest follows in the next turns.
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
            // Replies of a rejected agent are ignored.
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
                // The next received reply triggers the rest.
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

    /// Checks the agent's welcome. An agent of another release leaves its socket to one of this release if the plugin
    /// may start agents. An agent of another user is rejected, even if root started it: job shells accept only records
    /// that the instance owner sealed.
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

    /// Sends as much as the socket accepts. The rest follows when it accepts more.
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
