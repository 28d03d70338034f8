// SPDX-License-Identifier: MIT OR Apache-2.0

//! The client of the agent. One connection carries all requests; the client reconnects whenever it ends.

use std::{
    collections::HashMap,
    future::Future,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::unistd::geteuid;
use protocol::{
    Answer, Ask, HEADER, Question, VERSION,
    service::{MAX_ANSWER, MAX_PENDING, MAX_QUESTION, ServiceAnswer, ServiceAsk},
};
use secure_path::Owners;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};
use zeroize::Zeroizing;

/// The timeout of a request, including reconnects: longer than the agent waits for its file system and scheduler.
const TIMEOUT: Duration = Duration::from_secs(6);

/// The timeout of a request that involves the login provider: longer than the agent waits for the provider.
const SLOW: Duration = Duration::from_secs(16);

/// The first pause between attempts to connect, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// A client of the agent.
#[derive(Clone, Debug)]
pub struct AgentClient {
    asked: mpsc::Sender<Asked>,
    /// The state of the connection, true if the agent is connected, and the last known uid of the agent.
    state: watch::Receiver<(bool, Option<u32>)>,
}

/// A request, and the channel for its reply.
struct Asked {
    ask: Ask,
    answer: oneshot::Sender<Answer>,
}

/// The requests of a connection that await replies, by number.
type Pending = Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>;

impl AgentClient {
    /// Starts to connect. Besides root and the uid of this process, the agent may run as `uid`.
    pub fn start(path: PathBuf, uid: Option<u32>) -> Self {
        let (asked, asks) = mpsc::channel(MAX_PENDING);
        let (sender, state) = watch::channel((false, None));
        tokio::spawn(keep_connected(path, uid, asks, sender));
        Self { asked, state }
    }

    /// Returns whether the agent is connected.
    pub fn is_connected(&self) -> bool {
        self.state.borrow().0
    }

    /// Returns the uid of the agent, or `None` before the first connection.
    pub fn uid(&self) -> Option<u32> {
        self.state.borrow().1
    }

    /// Sends an idempotent request, again after each lost connection, until a reply arrives.
    ///
    /// # Errors
    /// A message for the operator if no reply arrives in time.
    pub async fn ask(&self, question: impl Fn() -> Question) -> Result<Answer, String> {
        let answered = async {
            loop {
                if let Some(answer) = self.send(question()).await? {
                    return Ok(answer);
                }
            }
        };
        within(TIMEOUT, answered).await
    }

    /// Sends a request once. The agent may have received it even if no reply arrives.
    ///
    /// # Errors
    /// A message for the operator if no reply arrives in time.
    pub async fn ask_once(&self, question: Question) -> Result<Answer, String> {
        let ended = || "the connection to the agent ended".to_owned();
        within(TIMEOUT, async { self.send(question).await?.ok_or_else(ended) }).await
    }

    /// Like [`AgentClient::ask_once`], but waits longer, for requests that make the agent contact the login provider.
    ///
    /// # Errors
    /// A message for the operator if no reply arrives in time.
    pub async fn ask_slowly(&self, question: Question) -> Result<Answer, String> {
        let ended = || "the connection to the agent ended".to_owned();
        within(SLOW, async { self.send(question).await?.ok_or_else(ended) }).await
    }

    /// Sends a request. Returns the reply, or `None` if the connection ended first.
    async fn send(&self, question: Question) -> Result<Option<Answer>, String> {
        let (answer, answered) = oneshot::channel();
        let version = VERSION;
        let ask = Ask { version, question };
        let sent = self.asked.send(Asked { ask, answer }).await;
        sent.map_err(|_| "the service is shutting down".to_owned())?;
        Ok(answered.await.ok())
    }
}

async fn within(limit: Duration, answer: impl Future<Output = Result<Answer, String>>) -> Result<Answer, String> {
    match timeout(limit, answer).await {
        Ok(Ok(Answer::Failed(why))) => Err(format!("the agent cannot answer: {why}")),
        Ok(answer) => answer,
        Err(_) => Err("the agent does not answer".to_owned()),
    }
}

async fn keep_connected(
    path: PathBuf,
    uid: Option<u32>,
    mut asks: mpsc::Receiver<Asked>,
    state: watch::Sender<(bool, Option<u32>)>,
) {
    let mut pause = PAUSES.0;
    let mut said = String::new();
    loop {
        let ended = match connect(&path, uid).await {
            Ok((stream, peer)) => {
                if !said.is_empty() {
                    eprintln!("workflow-tokend: the agent at {} is back", path.display());
                    said.clear();
                }
                // Sending fails only while the service shuts down.
                let _ = state.send((true, Some(peer)));
                let (reader, writer) = stream.into_split();
                let pending = Pending::default();
                let ended = tokio::select! {
                    ended = read(reader, &pending) => ended,
                    ended = write(writer, &pending, &mut asks) => ended,
                };
                pause = PAUSES.0;
                state.send_modify(|(is_connected, _)| *is_connected = false);
                ended
            }
            Err(e) => Err(e),
        };
        match ended {
            // All callers have gone.
            Ok(()) => return,
            Err(e) => {
                let e = format!("the agent at {}: {e}", path.display());
                if e != said {
                    eprintln!("workflow-tokend: {e}");
                    said = e;
                }
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Connects, and checks that the peer is the agent, since its replies decide which tokens are valid. Also returns its
/// uid.
async fn connect(path: &std::path::Path, uid: Option<u32>) -> io::Result<(UnixStream, u32)> {
    let checked = path.to_owned();
    let check = move || secure_path::check_socket(&checked, Owners::process().and_user(uid));
    let checked = tokio::task::spawn_blocking(check).await.map_err(io::Error::other)?;
    checked.map_err(|e| io::Error::other(e.to_string()))?;
    let stream = UnixStream::connect(path).await?;
    let peer = stream.peer_cred()?.uid();
    match peer == 0 || peer == geteuid().as_raw() || Some(peer) == uid {
        true => Ok((stream, peer)),
        false => Err(io::Error::other(format!(
            "it runs as uid {peer}, and was rejected: set agent-user if that is correct"
        ))),
    }
}

async fn read(mut reader: OwnedReadHalf, pending: &Pending) -> io::Result<()> {
    loop {
        let mut header = [0; HEADER];
        reader.read_exact(&mut header).await?;
        let length = protocol::body_length(header).map_err(io::Error::other)?;
        if length > MAX_ANSWER {
            return Err(io::Error::other(format!(
                "an answer has {length} bytes, more than {MAX_ANSWER}"
            )));
        }
        let mut body = Zeroizing::new(vec![0; length]);
        reader.read_exact(&mut body).await?;
        let ServiceAnswer { number, answer } = protocol::decode(&body).map_err(io::Error::other)?;
        let waiting = pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        if let Some(waiting) = waiting {
            // The caller may have timed out.
            let _ = waiting.send(answer);
        }
    }
}

/// Sends requests until all callers have gone.
async fn write(mut writer: OwnedWriteHalf, pending: &Pending, asks: &mut mpsc::Receiver<Asked>) -> io::Result<()> {
    let mut number = 0;
    while let Some(Asked { ask, answer }) = asks.recv().await {
        if answer.is_closed() {
            continue;
        }
        number += 1;
        let frame = protocol::encode(&ServiceAsk { number, ask }).map_err(io::Error::other)?;
        if frame.len() > HEADER + MAX_QUESTION {
            // The agent would close the connection, and so fail all other requests.
            let _ = answer.send(Answer::Failed("the question is too long".to_owned()));
            continue;
        }
        {
            let mut pending = pending.lock().unwrap_or_else(PoisonError::into_inner);
            // Remove requests that timed out, so that a silent agent does not make the map grow.
            if pending.len() > 2 * MAX_PENDING {
                pending.retain(|_, waiting| !waiting.is_closed());
            }
            pending.insert(number, answer);
        }
        writer.write_all(&frame).await?;
    }
    Ok(())
}
