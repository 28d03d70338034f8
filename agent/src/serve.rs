//! Accepts connections, as long as the process runs.

use std::{path::PathBuf, sync::Arc, time::Duration};

use delivery::Shared;
use nix::unistd::geteuid;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Notify,
    task::JoinSet,
    time::sleep,
};

use crate::{connection, listener::Listening};

/// How long an agent that plugins start goes on without a connection: longer than a plugin takes to be loaded again.
const IDLE: Duration = Duration::from_secs(10);

/// How long no connection is accepted after an error, as when there are no descriptors left.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// What all connections have in common.
pub struct Agent {
    /// The program of the agent, which also supervises the commands of rules.
    pub program: PathBuf,
    /// The capacity that engines share.
    pub shared: Arc<Shared>,
    /// A plugin of another release wants an agent of its own.
    pub retire: Notify,
}

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
        retire: Notify::new(),
    });
    let mut connections = JoinSet::new();
    // Without systemd, nobody listens.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
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
fn is_allowed(stream: &UnixStream) -> bool {
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
