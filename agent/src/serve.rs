//! Accepts connections until the process ends.

use std::{sync::Arc, time::Duration};

use nix::unistd::geteuid;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Notify,
    task::JoinSet,
    time::sleep,
};

use crate::{agent::Agent, connection, listener::Listening};

/// The time after which an agent that plugins started ends without a connection: longer than a reload of a plugin.
const IDLE: Duration = Duration::from_secs(10);

/// The pause after an error of accept(2), as when no descriptors are left.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// Serves connections. Returns when nobody has been connected for a while, unless it `stays`.
///
/// # Errors
/// The socket cannot be used.
pub async fn serve(listening: Listening, stays: bool) -> Result<(), String> {
    let (socket, bound) = listening.into_parts();
    socket.set_nonblocking(true).map_err(|e| format!("the socket: {e}"))?;
    let socket = UnixListener::from_std(socket).map_err(|e| format!("the socket: {e}"))?;
    let agent = Arc::new(Agent {
        program: std::env::current_exe().map_err(|e| format!("the path of the program: {e}"))?,
        shared: Arc::default(),
        instances: Default::default(),
        sockets: Default::default(),
        retire: Notify::new(),
    });
    let mut connections = JoinSet::new();
    if bound.is_none() {
        // systemd has passed the socket. What goes wrong is in its log.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    }
    loop {
        tokio::select! {
            accepted = socket.accept() => match accepted {
                Ok((stream, _)) => {
                    if is_allowed(&stream) {
                        connections.spawn(connection::serve(stream, Arc::clone(&agent)));
                    } else {
                        connections.spawn(connection::refuse(stream));
                    }
                }
                Err(e) => {
                    eprintln!("workflow-token-agent: a connection could not be accepted: {e}");
                    sleep(AFTER_ERROR).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = agent.retire.notified(), if !stays => break,
            () = sleep(IDLE), if connections.is_empty() && !stays => return Ok(()),
        }
    }
    // A successor takes the socket; those that are connected are served to their end.
    drop((socket, bound));
    while connections.join_next().await.is_some() {}
    Ok(())
}

/// Only the user that the agent runs as, and root, may use it.
pub fn is_allowed(stream: &UnixStream) -> bool {
    let uid = match stream.peer_cred() {
        Ok(peer) => peer.uid(),
        Err(e) => {
            eprintln!("workflow-token-agent: a connection of an unknown user was refused: {e}");
            return false;
        }
    };
    let is_allowed = uid == 0 || uid == geteuid().as_raw();
    if !is_allowed {
        eprintln!("workflow-token-agent: a connection of uid {uid} was refused");
    }
    is_allowed
}
