// SPDX-License-Identifier: MIT OR Apache-2.0

//! Serves the token service, which faces the network and holds no key.
//!
//! The service connects to a socket of its own, as a user of its own. It may check and revoke single tokens, get the
//! public keys, request tokens and signed introspection responses, and get the jobs of a user that hold tokens and the
//! figures of the agent. The agent rejects anything else.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use config::{Principal, TABLE};
use nix::unistd::{User, geteuid};
use protocol::{
    Answer, Ask, Question, Subject, Throttle,
    service::{MAX_PENDING, MAX_QUESTION, ServiceAnswer, ServiceAsk},
};
use tokio::{
    io::AsyncWriteExt,
    net::{UnixListener, UnixStream, unix::OwnedWriteHalf},
    sync::{
        Semaphore,
        mpsc::{Receiver, channel},
    },
    task::{AbortHandle, JoinSet},
    time::sleep,
};

use crate::{frames::receive, listener::Listening};

/// The most concurrent connections: several services, and their successors.
const CONNECTIONS: usize = 16;

/// The pause after an error of accept(2), such as a lack of descriptors.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// Logs refused connections, which any user can cause.
static REFUSED: Throttle = Throttle::new();

/// The pause between two checks whether a task has ended, and the most checks.
const ENDING: (Duration, u32) = (Duration::from_millis(5), 200);

/// Answers the questions of the service.
pub trait Answers: Send + Sync + 'static {
    /// Answers a question that the service may ask.
    fn answer(self: &Arc<Self>, ask: Ask) -> impl Future<Output = Answer> + Send;
}

/// The sockets for the service, by path.
#[derive(Default)]
pub struct Sockets(Mutex<HashMap<PathBuf, Socket>>);

/// A socket for one service.
struct Socket {
    /// The connections of the plugins whose configurations name the socket.
    connections: HashSet<u64>,
    /// The uid of the service.
    uid: u32,
    task: AbortHandle,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Socket {
    /// Removes a connection. Returns whether other connections still use the socket.
    fn is_left_by(&mut self, connection: u64) -> bool {
        self.connections.remove(&connection);
        !self.connections.is_empty()
    }

    /// Ends the task of the socket, so that its path is free. Blocks for a moment.
    fn end(self) {
        let task = self.task.clone();
        drop(self);
        for _ in 0..ENDING.1 {
            if task.is_finished() {
                return;
            }
            thread::sleep(ENDING.0);
        }
    }
}

impl Sockets {
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Socket>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves the socket of a configuration, and closes those that only the former configuration of this connection
    /// named. Blocks on the file system and the name service.
    ///
    /// # Errors
    /// For the operator: the socket or its user cannot be used, so the service is not served.
    pub fn serve<A: Answers>(
        &self,
        connection: u64,
        service: Option<&config::Service>,
        agent: &Arc<A>,
    ) -> Result<(), String> {
        let mut sockets = self.lock();
        sockets.retain(|path, socket| {
            service.is_some_and(|service| service.socket == *path) || socket.is_left_by(connection)
        });
        let Some(service) = service else { return Ok(()) };
        let path = &service.socket;
        let uid = match uid_of(&service.user) {
            Ok(uid) => uid,
            Err(e) => {
                sockets.remove(path);
                return Err(e);
            }
        };
        match sockets.get_mut(path) {
            Some(socket) if socket.uid == uid => {
                socket.connections.insert(connection);
                return Ok(());
            }
            // Close the connections of the former user.
            Some(_) => {
                if let Some(former) = sockets.remove(path) {
                    former.end();
                }
            }
            None => {}
        }
        let failed = |e: &str| format!("{TABLE}.service.socket: {e}");
        let listening = Listening::bind_for_all(path).map_err(|e| failed(&e))?;
        let listening = listening.ok_or_else(|| failed(&format!("{}: another agent serves it", path.display())))?;
        let task = tokio::spawn(accept(listening, uid, Arc::clone(agent))).abort_handle();
        let connections = HashSet::from([connection]);
        sockets.insert(path.clone(), Socket { connections, uid, task });
        Ok(())
    }

    /// Closes the sockets that only this connection used.
    pub fn close(&self, connection: u64) {
        self.lock().retain(|_, socket| socket.is_left_by(connection));
    }
}

/// Returns the uid of the user that the service runs as.
fn uid_of(user: &Principal) -> Result<u32, String> {
    let name = match user {
        Principal::Id(uid) => return Ok(*uid),
        Principal::Name(name) => name,
    };
    let failed = |why: String| format!("{TABLE}.service.user: {}: {why}", name.escape_debug());
    match User::from_name(name) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(failed(
            "no such user on this machine: create it, or name another one".to_owned(),
        )),
        Err(e) => Err(failed(e.to_string())),
    }
}

async fn accept<A: Answers>(listening: Listening, user: u32, agent: Arc<A>) {
    let (socket, _bound) = listening.into_parts();
    let socket = socket
        .set_nonblocking(true)
        .and_then(|()| UnixListener::from_std(socket));
    let socket = match socket {
        Ok(socket) => socket,
        Err(e) => return eprintln!("workflow-token-agent: the socket of the service: {e}"),
    };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = socket.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    if is_service(&stream, user) {
                        connections.spawn(serve(stream, Arc::clone(&agent)));
                    }
                }
                Err(e) => {
                    eprintln!("workflow-token-agent: a connection of the service could not be accepted: {e}");
                    sleep(AFTER_ERROR).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Returns whether the service is the peer. Logs other peers at limited intervals, since any user can connect.
fn is_service(stream: &UnixStream, user: u32) -> bool {
    let whose = match stream.peer_cred() {
        Ok(peer) if [0, user, geteuid().as_raw()].contains(&peer.uid()) => return true,
        Ok(peer) => format!("uid {}", peer.uid()),
        Err(e) => format!("an unknown user ({e})"),
    };
    REFUSED.log(
        "workflow-token-agent",
        format_args!("a connection of {whose} to the socket of the service was refused"),
    );
    false
}

/// Serves a connection until it closes.
async fn serve<A: Answers>(stream: UnixStream, agent: Arc<A>) {
    let (mut reader, writer) = stream.into_split();
    let (answers, outgoing) = channel(MAX_PENDING);
    let turns = Arc::new(Semaphore::new(MAX_PENDING));
    let mut asked = JoinSet::new();
    let read = async {
        loop {
            // The semaphore is never closed.
            let Ok(turn) = Arc::clone(&turns).acquire_owned().await else {
                return;
            };
            let ServiceAsk { number, ask } = match receive(&mut reader, MAX_QUESTION).await {
                Ok(asked) => asked,
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return,
                Err(e) => return eprintln!("workflow-token-agent: a connection of the service ended: {e}"),
            };
            while asked.try_join_next().is_some() {}
            let (agent, answers) = (Arc::clone(&agent), answers.clone());
            asked.spawn(async move {
                let answer = match refusal(&ask.question) {
                    Some(why) => Answer::Failed(why.to_owned()),
                    None => agent.answer(ask).await,
                };
                // Ignore a service that has disconnected.
                let _ = answers.send(ServiceAnswer { number, answer }).await;
                drop(turn);
            });
        }
    };
    tokio::select! {
        () = read => {}
        _ = write(writer, outgoing) => {}
    }
}

/// Returns the reason why the service may not ask a question.
fn refusal(question: &Question) -> Option<&'static str> {
    match question {
        Question::Check(_) | Question::Issuer { .. } | Question::Held { .. } | Question::Figures => None,
        Question::Revoke { subjects, .. } if subjects.iter().all(|subject| matches!(subject, Subject::Jti(_))) => None,
        Question::Revoke { .. } => {
            Some("the service revokes single tokens only: use `[flux] workflow-token revoke` for others")
        }
    }
}

async fn write(mut writer: OwnedWriteHalf, mut outgoing: Receiver<ServiceAnswer>) -> std::io::Result<()> {
    while let Some(answer) = outgoing.recv().await {
        let frame = protocol::encode(&answer).map_err(std::io::Error::other)?;
        writer.write_all(&frame).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_revokes_single_tokens_only() {
        let revoke = |subjects| Question::Revoke {
            subjects,
            keep_secs: 60,
        };
        let jti = || Subject::Jti("a".to_owned());
        assert_eq!(refusal(&revoke(vec![jti()])), None);
        for other in [
            Subject::Uid(0),
            Subject::User("a".to_owned()),
            Subject::Job {
                instance: None,
                jobid: 1,
            },
        ] {
            assert!(refusal(&revoke(vec![jti(), other])).is_some());
        }
    }

    #[test]
    fn the_service_may_ask_for_what_people_see() {
        assert_eq!(refusal(&Question::Held { uid: 0 }), None);
        assert_eq!(refusal(&Question::Figures), None);
    }

    #[test]
    fn a_user_that_does_not_exist_is_named() {
        assert_eq!(uid_of(&Principal::Id(7)), Ok(7));
        assert_eq!(uid_of(&Principal::Name("root".to_owned())), Ok(0));
        let error = uid_of(&Principal::Name("no-such-user".to_owned())).unwrap_err();
        assert!(error.contains("workflow-token.service.user: no-such-user"), "{error}");
    }
}
