// SPDX-License-Identifier: MIT OR Apache-2.0

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

/// The time without a connection after which an agent that plugins started ends: longer than a reload of a plugin.
const IDLE: Duration = Duration::from_secs(10);

/// The pause after an error of accept(2), such as a lack of descriptors.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// Serves connections. Returns after [`IDLE`] without connections, unless `stays` is set.
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
        // Ignore the result: systemd logs a missing notification.
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
    // A successor takes over the socket. This agent serves its existing connections until they close.
    drop((socket, bound));
    while connections.join_next().await.is_some() {}
    Ok(())
}

/// Returns whether the peer is root or the user that the agent runs as, and logs others.
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
