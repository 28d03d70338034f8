// SPDX-License-Identifier: MIT OR Apache-2.0

//! Serves one plugin. When the connection closes, its requests are canceled.

use std::{
    collections::HashMap,
    future::Future,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Waker},
    time::Duration,
};

use crate::{
    agent::Agent,
    frames::receive,
    held,
    issuer::Issuer,
    validity::{self, Instance},
};
use config::Part;
use delivery::{Engine, Outcome, Sealed, Task, Variables};
use nix::unistd::geteuid;
use protocol::{
    Code, Deliver, Failure, JobFacts, Line, MAX_FRAME, Origin, RELEASE, Reply, Request, SecretText, VERSION,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::AbortHandle,
};

/// The most replies that are written at once.
const AT_ONCE: usize = 64;

/// The longest time for which a refused connection stays open.
const REFUSAL: Duration = Duration::from_secs(1);

/// A connection of a plugin.
struct Connection {
    number: u64,
    agent: Arc<Agent>,
    replies: Replies,
    configurations: HashMap<u32, Configuration>,
    deliveries: Deliveries,
}

/// The channel to the plugin. It is unbounded, because the plugin limits its own requests.
type Replies = UnboundedSender<Reply>;

/// A configuration of the plugin, or the reason why it cannot be used on this machine.
enum Configuration {
    Engine(
        Arc<Engine>,
        #[expect(dead_code, reason = "dropping it aborts the task")] AbortOnDrop,
    ),
    Wrong(String),
}

/// Running deliveries, by number.
#[derive(Clone, Default)]
struct Deliveries(Arc<Mutex<HashMap<u64, AbortHandle>>>);

/// Aborts a task when dropped.
struct AbortOnDrop(AbortHandle);

/// Serves a connection until it closes.
pub async fn serve(stream: UnixStream, agent: Arc<Agent>) {
    let (reader, writer) = stream.into_split();
    let (replies, outgoing) = unbounded_channel();
    let mut connection = Connection {
        number: agent.instances.connection(),
        agent,
        replies,
        configurations: HashMap::new(),
        deliveries: Deliveries::default(),
    };
    tokio::select! {
        ended = connection.read(reader) => {
            if let Err(e) = ended && e.kind() != io::ErrorKind::UnexpectedEof {
                eprintln!("workflow-token-agent: a connection ended: {e}");
            }
        }
        _ = write(writer, outgoing) => {}
    }
}

/// Tells a plugin the uid of this agent, which does not serve it, and closes the connection.
pub async fn refuse(mut stream: UnixStream) {
    let said = async {
        let frame = protocol::encode(&welcome()).map_err(io::Error::other)?;
        stream.write_all(&frame).await?;
        // Wait until the plugin has read the reply and closes the connection.
        stream.read(&mut [0]).await
    };
    // Ignore the result: the plugin need not receive the reply.
    let _ = tokio::time::timeout(REFUSAL, said).await;
}

fn welcome() -> Reply {
    Reply::Welcome {
        version: VERSION,
        release: RELEASE.to_owned(),
        uid: geteuid().as_raw(),
    }
}

impl Connection {
    async fn read(&mut self, mut reader: OwnedReadHalf) -> io::Result<()> {
        let hello = match receive(&mut reader, MAX_FRAME).await? {
            Request::Hello(hello) => hello,
            Request::Ask(ask) => {
                self.reply(Reply::Answer(self.agent.instances.answer(ask).await));
                // Wait until the command has read the answer and closes the connection.
                receive::<Request>(&mut reader, MAX_FRAME).await?;
                return Ok(());
            }
            _ => return Err(io::Error::other("the first message of a plugin was not Hello")),
        };
        self.reply(welcome());
        if hello.release != RELEASE {
            self.agent.retire.notify_one();
        }
        if hello.version != VERSION {
            // Wait until the plugin has read the reply and closes the connection.
            receive::<Request>(&mut reader, MAX_FRAME).await?;
            return Ok(());
        }
        loop {
            match receive(&mut reader, MAX_FRAME).await? {
                Request::Hello(_) => return Err(io::Error::other("a plugin sent Hello twice")),
                Request::Configure(configure) => self.configure(&configure),
                Request::Retire { generation } => drop(self.configurations.remove(&generation)),
                Request::Deliver(deliver) => self.deliver(deliver),
                Request::Cancel { number } => self.deliveries.abort(number),
                Request::LookUp { generation, uid } => self.look_up(generation, uid),
                Request::Job { number, end } => self.agent.instances.answered(number, end),
                Request::Ended { jobid } => self.agent.instances.ended(self.number, jobid),
                Request::Ask(_) => return Err(io::Error::other("a plugin sent Ask, which only commands send")),
            }
        }
    }

    fn configure(&mut self, configure: &protocol::Configure) {
        let generation = configure.generation;
        let replies = self.replies.clone();
        let tell = move |uid: u32, owner: &delivery::Owner| {
            let owner = Ok(owner.to_message());
            // Ignore a plugin that has disconnected.
            let _ = replies.send(Reply::Owner { generation, uid, owner });
        };
        let engine = Engine::new(configure, &self.agent.program, &self.agent.shared, Box::new(tell));
        let configuration = match engine {
            Ok(engine) => {
                let engine = Arc::new(engine);
                if configure.part == Part::Tokens {
                    self.add_instance(&engine);
                }
                let background = tokio::spawn(background(Arc::clone(&engine), configure.clone(), self.replies.clone()));
                Configuration::Engine(engine, AbortOnDrop(background.abort_handle()))
            }
            Err(wrong) => Configuration::Wrong(wrong),
        };
        let wrong = match &configuration {
            Configuration::Engine(..) => None,
            Configuration::Wrong(wrong) => Some(wrong.clone()),
        };
        self.configurations.insert(generation, configuration);
        self.reply(Reply::Configured { generation, wrong });
    }

    /// Adds the instance that questions about tokens may name. Logs what cannot be used of its settings; its jobs get
    /// their tokens nevertheless.
    fn add_instance(&self, engine: &Arc<Engine>) {
        let agent_settings = &engine.config().agent;
        let (revocations, issuer, served) = tokio::task::block_in_place(|| {
            let revocations = validity::open(agent_settings.revocations.as_deref());
            let served = self
                .agent
                .sockets
                .serve(self.number, agent_settings.service.as_ref(), &self.agent);
            (revocations, Issuer::of(engine), served)
        });
        let errors = [
            revocations.as_ref().and_then(|opened| opened.as_ref().err()),
            issuer.as_ref().err(),
            served.as_ref().err(),
        ];
        for error in errors.into_iter().flatten() {
            self.log_error(error);
        }
        let instance = Instance {
            connection: self.number,
            replies: self.replies.clone(),
            revocations,
            issuer: issuer.ok().flatten(),
            engine: Arc::clone(engine),
        };
        self.agent.instances.add(engine.instance(), instance);
    }

    fn deliver(&mut self, deliver: Deliver) {
        let (number, generation) = (deliver.number, deliver.generation);
        let engine = match self.configurations.get(&generation) {
            Some(Configuration::Engine(engine, _)) => Arc::clone(engine),
            Some(Configuration::Wrong(wrong)) => {
                let user = "the configuration cannot be used";
                let failure = Failure::new(Code::AgentConfiguration, user, wrong);
                return self.reply(Reply::Failed { number, failure });
            }
            None => {
                let failure = Failure::internal_in_agent();
                return self.reply(Reply::Failed { number, failure });
            }
        };
        // Provided variables may not be tokens.
        let are_tokens = matches!(deliver.origin, Origin::Rules(_));
        let name = deliver.f58.clone();
        let task = match task(deliver) {
            Ok(task) => task,
            Err(failure) => return self.reply(Reply::Failed { number, failure }),
        };
        let report = Report {
            number,
            replies: self.replies.clone(),
            deliveries: self.deliveries.clone(),
            is_sent: false,
        };
        let revocations = self.agent.instances.revocations(engine.instance());
        let job = JobFacts {
            instance: engine.instance().to_owned(),
            jobid: task.jobid,
            uid: task.uid,
        };
        let agent = Arc::clone(&self.agent);
        let mut delivery = Box::pin(async move {
            if let Some(refusal) = validity::refusal(revocations, job.clone()).await {
                return report.fail(refusal);
            }
            let outcome = engine.deliver(task).await;
            if are_tokens
                && let Ok(Sealed::Record { record, .. }) = &outcome.result
                && let Some(held) = held::of_record(job, name, record)
            {
                agent.instances.holds(held);
            }
            report.send(outcome);
        });
        // The first poll comes here, so that deliveries that need no look-up enter the queue of their rule in the order
        // of arrival.
        let mut first = Context::from_waker(Waker::noop());
        // If the delivery panics, its report sends the failure.
        let polled = catch_unwind(AssertUnwindSafe(|| delivery.as_mut().poll(&mut first)));
        if polled.is_ok_and(|polled| polled.is_pending()) {
            // The lock prevents the delivery from ending before it is in the table.
            let mut deliveries = self.deliveries.lock();
            let delivery = tokio::spawn(delivery);
            deliveries.insert(number, delivery.abort_handle());
        }
    }

    fn look_up(&self, generation: u32, uid: u32) {
        let Some(Configuration::Engine(engine, _)) = self.configurations.get(&generation) else {
            return;
        };
        let (engine, replies) = (Arc::clone(engine), self.replies.clone());
        tokio::spawn(async move {
            let owner = engine.look_up(uid).await.map(|owner| owner.to_message());
            // Ignore a plugin that has disconnected.
            let _ = replies.send(Reply::Owner { generation, uid, owner });
        });
    }

    fn log_error(&self, text: &str) {
        self.reply(Reply::Log(Line {
            is_warning: true,
            number: None,
            text: text.to_owned(),
        }));
    }

    fn reply(&self, reply: Reply) {
        // Ignore a plugin that has disconnected.
        let _ = self.replies.send(reply);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.agent.instances.remove(self.number);
        self.agent.sockets.close(self.number);
        for delivery in self.deliveries.lock().values() {
            delivery.abort();
        }
    }
}

impl Deliveries {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, AbortHandle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn abort(&self, number: u64) {
        let delivery = self.lock().remove(&number);
        if let Some(delivery) = delivery {
            delivery.abort();
        }
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Examines a configuration once, and keeps the facts about its project members fresh until aborted.
async fn background(engine: Arc<Engine>, configure: protocol::Configure, replies: Replies) {
    let examine = async {
        for text in engine.examine(&configure).await {
            let (is_warning, number) = (true, None);
            // Ignore a plugin that has disconnected.
            let _ = replies.send(Reply::Log(Line {
                is_warning,
                number,
                text,
            }));
        }
    };
    tokio::join!(examine, engine.keep_fresh());
}

/// Sends the final reply of a delivery, even after a panic: otherwise the job would wait forever.
struct Report {
    number: u64,
    replies: Replies,
    deliveries: Deliveries,
    is_sent: bool,
}

impl Report {
    /// Reports the failure of a delivery that did not begin.
    fn fail(self, failure: Failure) {
        self.send(Outcome {
            result: Err(failure),
            notes: Vec::new(),
            warnings: Vec::new(),
            for_user: Vec::new(),
        });
    }

    fn send(mut self, outcome: Outcome) {
        let number = self.number;
        let about_all = outcome.warnings.into_iter().map(|text| (true, None, text));
        let about_this = outcome.notes.into_iter().map(|text| (false, Some(number), text));
        for (is_warning, number, text) in about_all.chain(about_this) {
            let line = Line {
                is_warning,
                number,
                text,
            };
            let _ = self.replies.send(Reply::Log(line));
        }
        self.is_sent = true;
        let _ = self.replies.send(match outcome.result {
            Ok(Sealed::Record { record, names, due }) => Reply::Delivered {
                number,
                record,
                names,
                due,
                warnings: outcome.for_user,
            },
            Ok(Sealed::NoRule) => Reply::NoRule { number },
            Err(failure) => Reply::Failed { number, failure },
        });
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.deliveries.lock().remove(&self.number);
        if !self.is_sent {
            let failure = Failure::internal_in_agent();
            // The plugin ignores the reply if it has canceled the delivery.
            let _ = self.replies.send(Reply::Failed {
                number: self.number,
                failure,
            });
        }
    }
}

/// Returns the facts of a job for the engine.
fn task(deliver: Deliver) -> Result<Task, Failure> {
    let variables = match deliver.origin {
        Origin::Rules(rules) => Variables::Rules(rules.into_iter().map(|rule| rule as usize).collect()),
        Origin::Provided(provided) => {
            let mut variables = seal::Variables::new();
            for (name, SecretText(value)) in provided {
                let inserted = variables.insert(&name, seal::Secret::from(value.as_str()));
                inserted.map_err(|e| Failure::new(Code::SealFailed, e.to_string(), e.to_string()))?;
            }
            Variables::Provided(variables)
        }
    };
    Ok(Task {
        jobid: deliver.jobid,
        f58: deliver.f58,
        uid: deliver.uid,
        asked: deliver.asked,
        limit: deliver.limit_ms.map(Duration::from_millis),
        timeout: Duration::from_millis(deliver.timeout_ms),
        slurm: None,
        requests: deliver.requests,
        generation: deliver.record,
        variables,
    })
}

async fn write(mut writer: OwnedWriteHalf, mut outgoing: UnboundedReceiver<Reply>) -> io::Result<()> {
    let mut replies = Vec::with_capacity(AT_ONCE);
    while outgoing.recv_many(&mut replies, AT_ONCE).await > 0 {
        let mut bytes = Vec::new();
        for reply in replies.drain(..) {
            bytes.extend_from_slice(&protocol::encode(&reply).map_err(io::Error::other)?);
        }
        writer.write_all(&bytes).await?;
    }
    Ok(())
}
