// SPDX-License-Identifier: MIT OR Apache-2.0

//! Serves HTTP/1.1 and 1.0 at all sockets, until the service shuts down.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::{
    listen::{Listener, Served, Socket},
    metrics::Connected,
    peer::Peer,
    routes,
    service::Service,
};

/// The maximum number of connections per socket. Further ones wait until one ends. The buffers and bodies of all
/// connections fit into the memory limit of the systemd unit.
const CONNECTIONS: usize = 12_288;

/// The timeout of a TLS handshake, and of the headers of a request. It also limits the idle time of a connection.
const HEADERS: Duration = Duration::from_secs(30);

/// The timeout of a write to a peer.
const WRITE: Duration = Duration::from_secs(30);

/// The longest request line and headers, in bytes.
const MAX_HEADERS: usize = 32 << 10;

/// The time that requests have to end at a shutdown.
const STOPPING: Duration = Duration::from_secs(10);

/// The pause after an error of accept(2), for example if no file descriptors are left.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// The values that each connection needs.
#[derive(Clone)]
struct Server {
    router: Router,
    tls: Option<TlsAcceptor>,
    service: Arc<Service>,
}

/// Serves until `stopping` is true, and then until all requests end.
pub async fn serve_all(listeners: Vec<Listener>, service: Arc<Service>, stopping: watch::Receiver<bool>) {
    let graceful = Arc::new(GracefulShutdown::new());
    let mut servers = JoinSet::new();
    for Listener { socket, served } in listeners {
        let router = match served {
            Served::Public(_) => routes::public(&service),
            Served::Internal => routes::internal(&service),
        };
        let certificate = match served {
            Served::Public(i) => service.certificate(i),
            Served::Internal => None,
        };
        let tls = match certificate.map(|certificate| certificate.acceptor()).transpose() {
            Ok(tls) => tls,
            Err(e) => {
                eprintln!("workflow-tokend: {e}");
                continue;
            }
        };
        let server = Server {
            router,
            tls,
            service: Arc::clone(&service),
        };
        servers.spawn(accept(socket, server, Arc::clone(&graceful), stopping.clone()));
    }
    while servers.join_next().await.is_some() {}
    // The servers have ended, and connections hold only watchers.
    if let Some(graceful) = Arc::into_inner(graceful)
        && timeout(STOPPING, graceful.shutdown()).await.is_err()
    {
        eprintln!("workflow-tokend: requests did not end in time");
    }
}

async fn accept(socket: Socket, server: Server, graceful: Arc<GracefulShutdown>, mut stopping: watch::Receiver<bool>) {
    let listening = match socket {
        Socket::Tcp(socket) => TcpListener::from_std(socket).map(Listening::Tcp),
        Socket::Unix(socket) => UnixListener::from_std(socket).map(Listening::Unix),
    };
    let listening = match listening {
        Ok(listening) => listening,
        Err(e) => return eprintln!("workflow-tokend: a socket failed: {e}"),
    };
    let turns = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let turn = async {
            // The semaphore is never closed.
            let turn = Arc::clone(&turns).acquire_owned().await.map_err(io::Error::other)?;
            Ok((turn, listening.accept().await?))
        };
        let accepted: io::Result<(OwnedSemaphorePermit, Accepted)> = tokio::select! {
            accepted = turn => accepted,
            _ = stopping.wait_for(|stop| *stop) => return,
        };
        let (turn, Accepted { stream, peer }) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                eprintln!("workflow-tokend: a connection could not be accepted: {e}");
                sleep(AFTER_ERROR).await;
                continue;
            }
        };
        let (server, watcher) = (server.clone(), graceful.watcher());
        tokio::spawn(async move {
            let connected = server.service.metrics.connected();
            serve(stream, peer, server, watcher, (turn, connected)).await;
        });
    }
}

enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

struct Accepted {
    stream: Stream,
    peer: Peer,
}

enum Stream {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

impl Listening {
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(socket) => {
                let (stream, _) = socket.accept().await?;
                // Failure costs only latency.
                let _ = stream.set_nodelay(true);
                Ok(Accepted {
                    stream: Stream::Tcp(stream),
                    peer: Peer::Tcp,
                })
            }
            Self::Unix(socket) => {
                let (stream, _) = socket.accept().await?;
                let uid = stream.peer_cred()?.uid();
                Ok(Accepted {
                    stream: Stream::Unix(stream),
                    peer: Peer::Unix(uid),
                })
            }
        }
    }
}

async fn serve(stream: Stream, peer: Peer, server: Server, watcher: Watcher, held: (OwnedSemaphorePermit, Connected)) {
    match (stream, &server.tls) {
        (Stream::Tcp(stream), Some(tls)) => {
            // A failed handshake is the problem of the peer, and is not logged.
            if let Ok(Ok(stream)) = timeout(HEADERS, tls.accept(stream)).await {
                serve_http(stream, peer, server.router, watcher).await;
            }
        }
        (Stream::Tcp(stream), None) => serve_http(stream, peer, server.router, watcher).await,
        (Stream::Unix(stream), _) => serve_http(stream, peer, server.router, watcher).await,
    }
    drop(held);
}

async fn serve_http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    router: Router,
    watcher: Watcher,
) {
    let answer = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let router = router.clone();
        async move {
            let answered: Result<_, Infallible> = router.oneshot(request.map(Body::new)).await;
            answered
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(MAX_HEADERS)
        .half_close(false);
    // Without a timeout, a peer that reads nothing would keep its connection forever.
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE));
    let connection = http.serve_connection(TokioIo::new(Box::pin(stream)), answer);
    // Errors of a connection are the problem of the peer, and are not logged.
    let _ = watcher.watch(connection).await;
}
