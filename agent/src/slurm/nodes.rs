// SPDX-License-Identifier: MIT OR Apache-2.0

//! Serves the nodes, one request for each connection, in a MUNGE credential that only the agent's user can open.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::unistd::geteuid;
use protocol::slurm::{NodeReply, NodeRequest, VERSION};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::frames::receive;

use super::{AFTER_ERROR, Current, Site, nodelist, store::Answer};

/// The timeout for receiving a request, and for sending its reply.
const REQUEST: Duration = Duration::from_secs(2);

/// The longest credential, in bytes.
const MAX_CREDENTIAL: usize = 4096;

/// The most concurrent connections. Others wait in the kernel.
const AT_ONCE: usize = 1024;

/// The most concurrent connections from one address.
const AT_ONCE_FROM_ONE: usize = 64;

/// The most requests that are opened concurrently: more do not make munged faster.
const OPENING: usize = 8;

/// Limits the connections of nodes.
pub struct Capacity {
    connections: Arc<Semaphore>,
    by_address: Mutex<HashMap<IpAddr, usize>>,
    opening: Semaphore,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            connections: Arc::new(Semaphore::new(AT_ONCE)),
            by_address: Mutex::default(),
            opening: Semaphore::new(OPENING),
        }
    }
}

/// Counts a connection for its address until dropped.
struct Counted<'a>(&'a Capacity, IpAddr);

impl Capacity {
    fn count(&self, address: IpAddr) -> Option<Counted<'_>> {
        let mut counts = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        *count += 1;
        let counted = Counted(self, address);
        let has_room = *count <= AT_ONCE_FROM_ONE;
        drop(counts);
        has_room.then_some(counted)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let mut counts = self.0.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

/// Accepts connections until the process ends.
pub async fn accept(listener: TcpListener, site: Arc<Site>) {
    let mut tasks = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&site.nodes.connections).acquire_owned().await else {
            return;
        };
        while tasks.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, peer)) => {
                let site = Arc::clone(&site);
                tasks.spawn(async move {
                    serve(stream, peer, &site).await;
                    drop(permit);
                });
            }
            Err(e) => {
                eprintln!("workflow-token-agent: a connection of a node could not be accepted: {e}");
                sleep(AFTER_ERROR).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, site: &Arc<Site>) {
    let Some(_counted) = site.nodes.count(peer.ip()) else {
        return;
    };
    if let Err(e) = converse(stream, peer, site).await {
        eprintln!("workflow-token-agent: a request from {peer} was refused: {e}");
    }
}

/// The reason why a request is refused, for the operator.
enum Refused {
    /// The peer gets the reply "unknown", without the reason.
    Stranger(String),
    /// The answer is unknown at the moment. The peer gets no reply, and asks again.
    Later(String),
}

async fn converse(mut stream: TcpStream, peer: SocketAddr, site: &Arc<Site>) -> Result<(), String> {
    let io = |e: io::Error| e.to_string();
    stream.set_nodelay(true).map_err(io)?;
    let local = stream.local_addr().map_err(io)?;
    let received = timeout(REQUEST, receive::<String>(&mut stream, MAX_CREDENTIAL)).await;
    let credential = match received.map_err(|_| "it did not arrive".to_owned())? {
        // A client that sends nothing only checks whether an agent listens.
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        received => received.map_err(io)?,
    };
    let from = (peer.ip().to_canonical(), local.ip().to_canonical());
    let (reply, refused) = match answer(credential, from, site).await {
        Ok(reply) => (reply, Ok(())),
        Err(Refused::Stranger(why)) => (NodeReply::Unknown, Err(why)),
        Err(Refused::Later(why)) => return Err(why),
    };
    let frame = protocol::encode(&reply).map_err(|e| e.to_string())?;
    let sent = timeout(REQUEST, stream.write_all(&frame)).await;
    refused?;
    sent.map_err(|_| "the node did not read the reply".to_owned())?
        .map_err(io)
}

/// Returns the answer for root on a node of the job; refuses everyone else. `from` contains the address of the peer,
/// and the local address that it connected to.
async fn answer(credential: String, from: (IpAddr, IpAddr), site: &Arc<Site>) -> Result<NodeReply, Refused> {
    use Refused::{Later, Stranger};

    let current = site.current();
    let permit = site.nodes.opening.acquire().await.map_err(|e| Later(e.to_string()))?;
    let opening = {
        let (site, current) = (Arc::clone(site), Arc::clone(&current));
        move || {
            let request = open(&credential, &current)?;
            let entry = site
                .store
                .get(request.jobid)
                .map_err(|e| Later(format!("the store cannot be read: {e}")))?;
            Ok((request, entry))
        }
    };
    let opened = tokio::task::spawn_blocking(opening).await;
    drop(permit);
    let (request, entry) = opened.map_err(|_| Later("an internal error".to_owned()))??;
    let (jobid, node) = (request.jobid, request.node.escape_debug());
    let entry = entry.ok_or_else(|| {
        Stranger(format!(
            "job {jobid} has no record: check that PrologSlurmctld runs workflow-token-slurmctld"
        ))
    })?;
    if entry.job.uid != request.uid {
        return Err(Stranger(format!("job {jobid} does not belong to uid {}", request.uid)));
    }
    if !nodelist::contains(&entry.job.nodes, &request.node) {
        return Err(Stranger(format!("job {jobid} does not run on node {node}")));
    }
    if current.slurm.check_address && !site.addresses.has(&request.node, from.0, from.1).await.map_err(Later)? {
        return Err(Stranger(format!(
            "node {node} has another NodeAddr: if nodes have several addresses, set check-address = false"
        )));
    }
    Ok(match entry.answer {
        Answer::Record(record) => NodeReply::Record(record),
        Answer::Failed(why) => NodeReply::Failed(why),
    })
}

/// Opens a request, and checks its sender. Blocks on munged.
fn open(credential: &str, current: &Current) -> Result<NodeRequest, Refused> {
    use Refused::{Later, Stranger};

    let received = current.munge.receive(credential);
    let (payload, uid) = received.map_err(|e| match e.is_retryable() {
        true => Later(e.to_string()),
        false => Stranger(e.to_string()),
    })?;
    // The agent's user may do more than this anyway. In a cluster of one user, for tests, slurmd runs as that user.
    if uid != 0 && uid != geteuid().as_raw() {
        return Err(Stranger(format!("its sender is uid {uid}, and only root may ask")));
    }
    let request: NodeRequest = protocol::decode(&payload).map_err(|e| Stranger(e.to_string()))?;
    let NodeRequest { version, cluster, .. } = &request;
    if *version != VERSION {
        return Err(Stranger(format!(
            "it has protocol {version}, and the agent {VERSION}: install the same release"
        )));
    }
    if *cluster != current.slurm.cluster {
        return Err(Stranger(format!("it is for cluster {}", cluster.escape_debug())));
    }
    Ok(request)
}
