// SPDX-License-Identifier: MIT OR Apache-2.0

//! The addresses of nodes, according to Slurm.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::Semaphore, time::timeout};

use super::squeue;

/// The age at which addresses are looked up again.
const OLD: Duration = Duration::from_secs(300);

/// The age at which they are looked up again if the address of a node does not match.
const DOUBTFUL: Duration = Duration::from_secs(10);

/// The timeout for resolving a name.
const RESOLVE: Duration = Duration::from_secs(2);

/// Caches the addresses of nodes.
pub struct Addresses {
    known: Mutex<Known>,
    /// Allows one query to Slurm at a time. Other callers wait for its result.
    asking: Semaphore,
}

#[derive(Default)]
struct Known {
    /// NodeAddr by NodeName.
    nodes: Arc<HashMap<String, String>>,
    since: Option<Instant>,
    /// Resolved addresses, by NodeAddr.
    hosts: HashMap<String, (Instant, Vec<IpAddr>)>,
}

impl Default for Addresses {
    fn default() -> Self {
        Self {
            known: Mutex::default(),
            asking: Semaphore::new(1),
        }
    }
}

impl Addresses {
    /// Returns whether a node has the address of a peer. `local` is the address of this machine that the peer connected
    /// to: a node on this machine may have a loopback address.
    ///
    /// # Errors
    /// For the operator: the query to Slurm or the name service failed.
    pub async fn has(&self, node: &str, peer: IpAddr, local: IpAddr) -> Result<bool, String> {
        let is_peer =
            |address: &IpAddr| *address == peer || (address.is_loopback() && (peer.is_loopback() || peer == local));
        for age in [OLD, DOUBTFUL] {
            let Some(host) = self.host(node, age).await? else {
                continue;
            };
            let addresses = self.resolve(&host, age).await;
            let addresses = addresses.map_err(|e| format!("NodeAddr={host} of node {node}: {e}"))?;
            if addresses.iter().any(is_peer) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the NodeAddr of a node from a query that is not older than `age`.
    async fn host(&self, node: &str, age: Duration) -> Result<Option<String>, String> {
        let found = |known: &Known| {
            let is_fresh = known.since.is_some_and(|since| since.elapsed() < age);
            is_fresh.then(|| known.nodes.get(node).cloned())
        };
        if let Some(host) = found(&self.known()) {
            return Ok(host);
        }
        let _asking = self.asking.acquire().await.map_err(|e| e.to_string())?;
        if let Some(host) = found(&self.known()) {
            return Ok(host);
        }
        let nodes: HashMap<_, _> = squeue::nodes().await?.into_iter().collect();
        let host = nodes.get(node).cloned();
        let mut known = self.known();
        known.nodes = Arc::new(nodes);
        known.since = Some(Instant::now());
        Ok(host)
    }

    async fn resolve(&self, host: &str, age: Duration) -> io::Result<Vec<IpAddr>> {
        if let Some((since, addresses)) = self.known().hosts.get(host)
            && since.elapsed() < age
        {
            return Ok(addresses.clone());
        }
        let found = timeout(RESOLVE, tokio::net::lookup_host((host, 0))).await;
        let found = found.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let addresses: Vec<_> = found.map(|address| address.ip().to_canonical()).collect();
        let looked_up = (Instant::now(), addresses.clone());
        self.known().hosts.insert(host.to_owned(), looked_up);
        Ok(addresses)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
