//! Asks the agent. One connection carries all questions; it is made again whenever it ends.

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

/// The time for an answer, over all connections that it takes: longer than the agent gives its file system and scheduler.
const TIMEOUT: Duration = Duration::from_secs(6);

/// The time for an answer of the provider of logins: longer than the agent gives it.
const SLOW: Duration = Duration::from_secs(16);

/// The first pause between attempts to connect, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// The way to the agent.
#[derive(Clone, Debug)]
pub struct AgentClient {
    asked: mpsc::Sender<Asked>,
    /// Whether the agent is connected, and its uid, once it is known.
    state: watch::Receiver<(bool, Option<u32>)>,
}

/// A question, and who waits for its answer.
struct Asked {
    ask: Ask,
    answer: oneshot::Sender<Answer>,
}

/// The questions of a connection that wait for answers, by number.
type Pending = Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>;

impl AgentClient {
    /// Starts to connect. `uid` may be that of the agent, besides root and this process.
    pub fn start(path: PathBuf, uid: Option<u32>) -> Self {
        let (asked, asks) = mpsc::channel(MAX_PENDING);
        let (sender, state) = watch::channel((false, None));
        tokio::spawn(keep_connected(path, uid, asks, sender));
        Self { asked, state }
    }

    /// Returns whether there is a connection.
    pub fn is_connected(&self) -> bool {
        self.state.borrow().0
    }

    /// Returns the uid that the agent runs as, once it has been connected.
    pub fn uid(&self) -> Option<u32> {
        self.state.borrow().1
    }

    /// Asks a question, as often as a connection ends meanwhile: for questions that do nothing twice.
    ///
    /// # Errors
    /// For the operator: there is no answer.
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

    /// Asks a question, which the agent may have received even if there is no answer.
    ///
    /// # Errors
    /// For the operator: there is no answer.
    pub async fn ask_once(&self, question: Question) -> Result<Answer, String> {
        let ended = || "the connection to the agent ended".to_owned();
        within(TIMEOUT, async { self.send(question).await?.ok_or_else(ended) }).await
    }

    /// Asks a question that takes the agent longer, since it asks others: see [`AgentClient::ask_once`].
    ///
    /// # Errors
    /// For the operator: there is no answer.
    pub async fn ask_slowly(&self, question: Question) -> Result<Answer, String> {
        let ended = || "the connection to the agent ended".to_owned();
        within(SLOW, async { self.send(question).await?.ok_or_else(ended) }).await
    }

    /// Sends a question. Returns its answer; none if the connection ended before.
    async fn send(&self, question: Question) -> Result<Option<Answer>, String> {
        let (answer, answered) = oneshot::channel();
        let version = VERSION;
        let ask = Ask { version, question };
        let sent = self.asked.send(Asked { ask, answer }).await;
        sent.map_err(|_| "the service ends".to_owned())?;
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
                // Nobody looks if the service ends.
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
            // Nobody asks any more.
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

/// Connects, and checks that the peer is the agent: nobody else may say that a token is valid. Returns its uid, too.
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
            // Nobody waits for a late answer.
            let _ = waiting.send(answer);
        }
    }
}

/// Sends questions until nobody asks any more.
async fn write(mut writer: OwnedWriteHalf, pending: &Pending, asks: &mut mpsc::Receiver<Asked>) -> io::Result<()> {
    let mut number = 0;
    while let Some(Asked { ask, answer }) = asks.recv().await {
        if answer.is_closed() {
            continue;
        }
        number += 1;
        let frame = protocol::encode(&ServiceAsk { number, ask }).map_err(io::Error::other)?;
        if frame.len() > HEADER + MAX_QUESTION {
            // The agent would close the connection, with all other questions.
            let _ = answer.send(Answer::Failed("the question is too long".to_owned()));
            continue;
        }
        {
            let mut pending = pending.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody waits for any more would be kept as long as the agent does not answer.
            if pending.len() > 2 * MAX_PENDING {
                pending.retain(|_, waiting| !waiting.is_closed());
            }
            pending.insert(number, answer);
        }
        writer.write_all(&frame).await?;
    }
    Ok(())
}
