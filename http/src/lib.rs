// SPDX-License-Identifier: MIT OR Apache-2.0

//! A client for servers that send small responses: HTTP/1.1 over verified TLS, through a proxy if one is configured.
//!
//! The client uses HTTP/1.1 with keep-alive, not HTTP/2: responses are small, a few connections suffice, and a
//! connection that hangs does not delay the others. It does not follow redirects, because requests contain secrets.

#![forbid(unsafe_code)]

use std::time::Duration;

use http::Uri;
use http_body_util::{Full, Limited};
use hyper::body::{Body, Bytes};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{HttpConnector, proxy::Tunnel},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tower::{BoxError, ServiceExt, service_fn, util::BoxCloneSyncService};

/// How long an idle connection is kept.
const IDLE: Duration = Duration::from_secs(60);

/// The idle time after which TCP keep-alive probes the peer, so that a dead connection is not used again.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// A client that sends requests with bodies of the type `B`.
pub type Http<B = Full<Bytes>> = Client<HttpsConnector<Route>, B>;

/// Settings for connections to a server.
pub struct Transport {
    /// The trusted certificates, and the certificate of the client.
    pub tls: ClientConfig,
    /// The name that the server's certificate must contain, if not the host.
    pub server_name: Option<ServerName<'static>>,
    /// The proxy that opens a tunnel to the server (RFC 9110, section 9.3.6).
    pub proxy: Option<Uri>,
    /// Allows a server without TLS. The caller checks that it is on this node.
    pub plain: bool,
    /// The maximum number of idle connections.
    pub idle: usize,
}

/// Returns a client that has not connected yet.
pub fn client<B>(way: Transport) -> Http<B>
where
    B: Body + Send,
    B::Data: Send,
{
    let tls = HttpsConnectorBuilder::new().with_tls_config(way.tls);
    let mut tls = if way.plain {
        tls.https_or_http()
    } else {
        tls.https_only()
    };
    if let Some(name) = way.server_name {
        tls = tls.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(way.idle)
        .build(tls.enable_http1().wrap_connector(route(way.proxy)))
}

/// Connects to a server, through the proxy if one is set. Servers without TLS, which are on this node, bypass it.
type Route = BoxCloneSyncService<Uri, TokioIo<TcpStream>, BoxError>;

fn route(proxy: Option<Uri>) -> Route {
    let mut direct = HttpConnector::new();
    direct.enforce_http(false);
    direct.set_nodelay(true);
    direct.set_keepalive(Some(KEEPALIVE));
    let tunnel = proxy.map(|proxy| Tunnel::new(proxy, direct.clone()));
    BoxCloneSyncService::new(service_fn(move |to: Uri| {
        let (direct, tunnel) = (direct.clone(), tunnel.clone());
        async move {
            match tunnel {
                Some(tunnel) if to.scheme_str() == Some("https") => tunnel.oneshot(to).await.map_err(BoxError::from),
                _ => direct.oneshot(to).await.map_err(BoxError::from),
            }
        }
    }))
}

/// Limits a body to `max` bytes. A body that is declared longer fails at once.
pub fn bounded<B: Body>(body: B, max: usize) -> Limited<B> {
    let is_longer = body.size_hint().lower() > max as u64;
    Limited::new(body, if is_longer { 0 } else { max })
}
