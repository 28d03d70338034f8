// SPDX-License-Identifier: MIT OR Apache-2.0

//! Serves the nodes, one request for each connection, in a MUNGE credential that only the agent's user can open.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::unistd::geteuid;
use protocol::{
    Throttle,
    slurm::{NodeReply, NodeRequest, VERSION},
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};

use crate::frames::receive;

use super::{AFTER_ERROR, Current, Site, nodelist, store::Answer};

/// The timeout for receiving a request, and for sending its reply.
const REQUEST: Duration = Duration::from_secs(2);

/// The longest credential, in bytes.
const MAX_CREDENTIAL: usize = 4096;

/// The most concurrent connections.
const AT_ONCE: usize = 1024;

/// The most concurrent connections from one address.
const AT_ONCE_FROM_ONE: usize = 64;

/// The most requests that are opened concurrently: more do not make munged faster.
const OPENING: usize = 8;

/// Log lines that anyone who reaches the port can cause: a request that does not arrive or is malformed, a credential that MUNGE refuses, a
/// sender who is not root, and a request that cannot be answered at the moment.
static UNREADABLE: Throttle = Throttle::new();
static CREDENTIAL: Throttle = Throttle::new();
static SENDER: Throttle = Throttle::new();
static LATER: Throttle = Throttle::new();

/// Limits the connections of nodes. If there are too many, the oldest one that has not sent its request yet, of the address with the most,
/// gives way to the new one. So nobody keeps others away by connections that send nothing.
pub struct Capacity {
    connections: Arc<Semaphore>,
    waiting: Arc<Mutex<Waiting>>,
    opening: Semaphore,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            connections: Arc::new(Semaphore::new(AT_ONCE)),
            waiting: Arc::default(),
            opening: Semaphore::new(OPENING),
        }
    }
}

/// The connections that may give way, the oldest first.
#[derive(Default)]
struct Waiting {
    last: u64,
    by_address: HashMap<IpAddr, VecDeque<(u64, AbortHandle)>>,
}

impl Waiting {
    /// Ends the oldest connection of an address.
    fn end_one(&mut self, address: IpAddr) {
        if let Some((_, task)) = self.by_address.get_mut(&address).and_then(VecDeque::pop_front) {
            task.abort();
        }
        self.by_address.retain(|_, connections| !connections.is_empty());
    }

    fn address_with_most(&self) -> Option<IpAddr> {
        let most = self.by_address.iter().max_by_key(|(_, connections)| connections.len());
        most.map(|(address, _)| *address)
    }
}

/// A connection that may give way, until dropped.
struct MayGiveWay {
    waiting: Arc<Mutex<Waiting>>,
    address: IpAddr,
    number: u64,
}

impl Drop for MayGiveWay {
    fn drop(&mut self) {
        let mut waiting = lock(&self.waiting);
        if let Some(connections) = waiting.by_address.get_mut(&self.address) {
            connections.retain(|(number, _)| *number != self.number);
            if connections.is_empty() {
                waiting.by_address.remove(&self.address);
            }
        }
    }
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Capacity {
    /// Waits for room for one more connection.
    async fn room(&self) -> Option<OwnedSemaphorePermit> {
        if self.connections.available_permits() == 0 {
            let mut waiting = lock(&self.waiting);
            if let Some(address) = waiting.address_with_most() {
                waiting.end_one(address);
            }
        }
        Arc::clone(&self.connections).acquire_owned().await.ok()
    }

    /// Starts the task of a connection, which may give way until it drops its argument.
    fn start(&self, address: IpAddr, begin: impl FnOnce(MayGiveWay) -> AbortHandle) {
        // The lock keeps the task from ending before it is in the table.
        let mut waiting = lock(&self.waiting);
        let connections = waiting.by_address.get(&address);
        if connections.is_some_and(|connections| connections.len() >= AT_ONCE_FROM_ONE) {
            waiting.end_one(address);
        }
        waiting.last += 1;
        let number = waiting.last;
        let task = begin(MayGiveWay {
            waiting: Arc::clone(&self.waiting),
            address,
            number,
        });
        waiting.by_address.entry(address).or_default().push_back((number, task));
    }
}

/// Accepts connections until the process ends.
pub async fn accept(listener: TcpListener, site: Arc<Site>) {
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, peer)) => {
                // The semaphore is never closed.
                let Some(room) = site.nodes.room().await else {
                    return;
                };
                let of_task = Arc::clone(&site);
                site.nodes.start(peer.ip(), |may_give_way| {
                    tasks.spawn(async move {
                        serve(stream, peer, &of_task, may_give_way).await;
                        drop(room);
                    })
                });
            }
            Err(e) => {
                eprintln!("workflow-token-agent: a connection of a node could not be accepted: {e}");
                sleep(AFTER_ERROR).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, site: &Arc<Site>, may_give_way: MayGiveWay) {
    if let Err(Problem { throttle, why }) = converse(stream, peer, site, may_give_way).await {
        let line = format_args!("a request from {peer} was refused: {why}");
        match throttle {
            Some(throttle) => throttle.log("workflow-token-agent", line),
            None => eprintln!("workflow-token-agent: {line}"),
        }
    }
}

/// The reason why a request failed, for the operator, and the limit of its log lines if anyone can cause it.
struct Problem {
    throttle: Option<&'static Throttle>,
    why: String,
}

/// The reason why a request is refused, for the operator.
enum Refused {
    /// Anyone can cause it. The peer gets the reply "unknown", without the reason.
    Anyone(&'static Throttle, String),
    /// Root on a node has caused it. The peer gets the reply "unknown", without the reason.
    Stranger(String),
    /// The answer is unknown at the moment. The peer gets no reply, and asks again.
    Later(String),
}

async fn converse(
    mut stream: TcpStream,
    peer: SocketAddr,
    site: &Arc<Site>,
    may_give_way: MayGiveWay,
) -> Result<(), Problem> {
    let unreadable = |why: String| Problem {
        throttle: Some(&UNREADABLE),
        why,
    };
    let io = |e: io::Error| unreadable(e.to_string());
    stream.set_nodelay(true).map_err(io)?;
    let local = stream.local_addr().map_err(io)?;
    let received = timeout(REQUEST, receive::<String>(&mut stream, MAX_CREDENTIAL)).await;
    let credential = match received.map_err(|_| unreadable("it did not arrive".to_owned()))? {
        // A client that sends nothing only checks whether an agent listens.
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        received => received.map_err(io)?,
    };
    let from = (peer.ip().to_canonical(), local.ip().to_canonical());
    let (reply, refused) = match answer(credential, from, site, may_give_way).await {
        Ok(reply) => (reply, Ok(())),
        Err(Refused::Anyone(throttle, why)) => {
            let throttle = Some(throttle);
            (NodeReply::Unknown, Err(Problem { throttle, why }))
        }
        Err(Refused::Stranger(why)) => (NodeReply::Unknown, Err(Problem { throttle: None, why })),
        Err(Refused::Later(why)) => {
            let throttle = Some(&LATER);
            return Err(Problem { throttle, why });
        }
    };
    let frame = protocol::encode(&reply).map_err(|e| unreadable(e.to_string()))?;
    let sent = timeout(REQUEST, stream.write_all(&frame)).await;
    refused?;
    sent.map_err(|_| unreadable("the node did not read the reply".to_owned()))?
        .map_err(io)
}

/// Returns the answer for root on a node of the job; refuses everyone else. `from` contains the address of the peer,
/// and the local address that it connected to.
async fn answer(
    credential: String,
    from: (IpAddr, IpAddr),
    site: &Arc<Site>,
    may_give_way: MayGiveWay,
) -> Result<NodeReply, Refused> {
    use Refused::{Later, Stranger};

    let current = site.current();
    let permit = site.nodes.opening.acquire().await.map_err(|e| Later(e.to_string()))?;
    drop(may_give_way);
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
    use Refused::{Anyone, Later, Stranger};

    let received = current.munge.receive(credential);
    let (payload, uid) = received.map_err(|e| match e.is_retryable() {
        true => Later(e.to_string()),
        false => Anyone(&CREDENTIAL, e.to_string()),
    })?;
    // The agent's user may do more than this anyway. In a cluster of one user, for tests, slurmd runs as that user.
    if uid != 0 && uid != geteuid().as_raw() {
        let why = format!("its sender is uid {uid}, and only root may ask");
        return Err(Anyone(&SENDER, why));
    }
    let request: NodeRequest = protocol::decode(&payload).map_err(|e| Stranger(e.to_string()))?;
    let NodeRequest { version, cluster, .. } = &request;
    if *version != VERSION {
        return Err(Stranger(format!(
            "it has protocol {version}, and the agent {VERSION}: install the same release"
        )));
    }
    if *cluster != current.slurm.cluster {
        return Err(Stranger(format!(
            "job {} on node {}: the node has cluster = \"{}\", and the agent \"{}\": write the same name in the table slurm of both",
            request.jobid,
            request.node.escape_debug(),
            cluster.escape_debug(),
            current.slurm.cluster
        )));
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use std::{future::pending, net::Ipv4Addr};

    use super::*;

    fn address(last: usize) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, last as u8).into()
    }

    /// Starts a connection that sends nothing, and returns its task.
    async fn idle(capacity: &Arc<Capacity>, from: usize) -> AbortHandle {
        let room = capacity.room().await.unwrap();
        let mut task = None;
        capacity.start(address(from), |may_give_way| {
            let connection = async move {
                let _held = (room, may_give_way);
                pending::<()>().await;
            };
            let started = tokio::spawn(connection).abort_handle();
            task = Some(started.clone());
            started
        });
        task.unwrap()
    }

    fn count(capacity: &Capacity, from: usize) -> usize {
        let waiting = lock(&capacity.waiting);
        waiting.by_address.get(&address(from)).map_or(0, VecDeque::len)
    }

    #[tokio::test]
    async fn connections_that_send_nothing_give_way_to_new_ones() {
        let capacity = Arc::new(Capacity::default());
        let first = idle(&capacity, 1).await;
        let second = idle(&capacity, 1).await;
        for _ in 2..AT_ONCE_FROM_ONE {
            idle(&capacity, 1).await;
        }
        assert!(!first.is_finished());
        // One more from this address ends its oldest one.
        idle(&capacity, 1).await;
        while !first.is_finished() {
            tokio::task::yield_now().await;
        }
        assert_eq!((count(&capacity, 1), second.is_finished()), (AT_ONCE_FROM_ONE, false));
        // Sixteen addresses take all connections. Another address gets one nevertheless.
        for from in 2..=AT_ONCE / AT_ONCE_FROM_ONE {
            for _ in 0..AT_ONCE_FROM_ONE {
                idle(&capacity, from).await;
            }
        }
        assert_eq!(capacity.connections.available_permits(), 0);
        let other = idle(&capacity, 200).await;
        assert!(!other.is_finished());
        assert_eq!(count(&capacity, 200), 1);
        let all: usize = (1..=AT_ONCE / AT_ONCE_FROM_ONE)
            .map(|from| count(&capacity, from))
            .sum();
        assert_eq!(all, AT_ONCE - 1);
    }

    #[tokio::test]
    async fn a_connection_that_has_sent_its_request_does_not_give_way() {
        let capacity = Arc::new(Capacity::default());
        let mut held = None;
        let mut busy = None;
        capacity.start(address(1), |may_give_way| {
            held = Some(may_give_way);
            let task = tokio::spawn(pending::<()>()).abort_handle();
            busy = Some(task.clone());
            task
        });
        assert_eq!(count(&capacity, 1), 1);
        drop(held);
        let mut oldest = None;
        for _ in 0..=AT_ONCE_FROM_ONE {
            let idle = idle(&capacity, 1).await;
            oldest.get_or_insert(idle);
        }
        while !oldest.as_ref().unwrap().is_finished() {
            tokio::task::yield_now().await;
        }
        assert!(!busy.unwrap().is_finished());
    }
}
