//! HTTP as the sources speak it: over verified TLS, with bounds on all that comes back.
//!
//! What is spoken is HTTP/1.1 with keep-alive, and not HTTP/2: answers are small, a few connections carry them all, and one
//! that hangs does not hold up the others. Redirects are not followed: what is sent has secrets in it.
//!
//! A body is collected in memory that is zeroized, and so is what is sent. What comes before that is not in our hands: the
//! buffers of hyper and rustls, which live as long as their connection.

mod backoff;
pub(crate) mod tls;
mod trouble;

use std::{
    error::Error as StdError,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use http::{
    Request, StatusCode, Uri,
    header::{CACHE_CONTROL, HeaderMap, RETRY_AFTER},
};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
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
use tower_service::Service;
use zeroize::Zeroizing;

pub(crate) use self::{
    backoff::Backoff,
    trouble::{Kind, Peer, Trouble, quote},
};

/// What each request says who sends it.
pub(crate) const USER_AGENT: &str = concat!("flux-workflow-token/", env!("CARGO_PKG_VERSION"));

/// How long a connection that nobody uses is kept.
const IDLE: Duration = Duration::from_secs(60);

/// After what time a peer that is silent is asked whether it is there, so that one that was cut off is not used again.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// The memory that a body is begun with, in bytes, where the server does not say how long it is.
const FIRST_BODY: usize = 16 << 10;

/// What requests are sent with.
pub(crate) type Http = Client<HttpsConnector<Route>, Full<Bytes>>;

/// How a server is reached.
pub(crate) struct Way {
    pub tls: ClientConfig,
    /// What the server's certificate must be for, where it is not the host.
    pub server_name: Option<ServerName<'static>>,
    /// The proxy that is asked for a tunnel to it (RFC 9110, section 9.3.6).
    pub proxy: Option<Uri>,
    /// Whether a server without TLS will do. Whoever says so sees to it that it is on this node.
    pub plain: bool,
    /// How many connections are kept while nobody uses them.
    pub idle: usize,
}

/// Makes a client, which connects to nobody yet.
pub(crate) fn client(way: Way) -> Http {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(KEEPALIVE));
    let route = Route {
        tunnel: way.proxy.map(|proxy| Tunnel::new(proxy, tcp.clone())),
        direct: tcp,
    };
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
        .build(tls.enable_http1().wrap_connector(route))
}

/// The way to a server: through a proxy where there is one, but not to a server on this node.
#[derive(Clone)]
pub(crate) struct Route {
    direct: HttpConnector,
    tunnel: Option<Tunnel<HttpConnector>>,
}

type BoxError = Box<dyn StdError + Send + Sync>;

impl Service<Uri> for Route {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // That of the tunnel is the same one.
        self.direct.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        match &mut self.tunnel {
            Some(tunnel) if to.scheme_str() == Some("https") => {
                let way = tunnel.call(to);
                Box::pin(async { way.await.map_err(Into::into) })
            }
            _ => {
                let way = self.direct.call(to);
                Box::pin(async { way.await.map_err(Into::into) })
            }
        }
    }
}

/// What a server answered.
pub(crate) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Zeroizing<Vec<u8>>,
}

impl Answer {
    /// The time to wait before another try (RFC 9110, section 10.2.3): seconds, or a date.
    pub fn retry_after(&self) -> Option<Duration> {
        let text = self.headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
        if let Ok(seconds) = text.parse() {
            return Some(Duration::from_secs(seconds));
        }
        let date = jiff::fmt::rfc2822::parse(text).ok()?;
        let date = SystemTime::from(date.timestamp());
        Some(date.duration_since(SystemTime::now()).unwrap_or_default())
    }

    /// For how long it may be used (RFC 9111, section 5.2.2.1).
    pub fn max_age(&self) -> Option<Duration> {
        let values = self.headers.get_all(CACHE_CONTROL).iter();
        let directives = values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|text| text.split(','));
        let mut ages = directives.filter_map(|directive| {
            let (name, value) = directive.split_once('=')?;
            let is_age = name.trim().eq_ignore_ascii_case("max-age");
            is_age.then(|| value.trim().trim_matches('"').parse().ok())?
        });
        ages.next().map(Duration::from_secs)
    }

    /// Whether another try may end in another way, whoever answered it.
    pub fn is_passing(&self) -> bool {
        matches!(
            self.status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
        ) || self.status.is_server_error()
    }
}

/// Sends a request, and collects the answer, whose body may have `max_body` bytes.
pub(crate) async fn exchange(
    http: &Http,
    request: Request<Full<Bytes>>,
    max_body: usize,
    peer: &Peer,
) -> Result<Answer, Trouble> {
    let response = http.request(request).await.map_err(|e| Trouble::of_request(&e, peer))?;
    let (head, body) = response.into_parts();
    Ok(Answer {
        status: head.status,
        headers: head.headers,
        body: collect(body, max_body, peer).await?,
    })
}

/// What is sent, in memory that is zeroized.
pub(crate) fn body(bytes: Zeroizing<Vec<u8>>) -> Full<Bytes> {
    Full::new(Bytes::from_owner(bytes))
}

async fn collect(mut body: Incoming, max: usize, peer: &Peer) -> Result<Zeroizing<Vec<u8>>, Trouble> {
    let too_long = || {
        Trouble::permanent(
            peer.unwell,
            format_args!("it answered with more than {max} bytes"),
            format_args!("see that {} is the one of {}", peer.address, peer.server),
        )
    };
    let known = body.size_hint().upper().map(usize::try_from);
    let known = known.transpose().map_err(|_| too_long())?;
    if known.is_some_and(|len| len > max) {
        return Err(too_long());
    }
    let mut all = Zeroizing::new(Vec::with_capacity(known.unwrap_or(FIRST_BODY.min(max))));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Trouble::of_request(&e, peer))?;
        let Some(data) = frame.data_ref() else { continue };
        if all.len() + data.len() > max {
            return Err(too_long());
        }
        append(&mut all, data);
    }
    Ok(all)
}

/// A vector that grows leaves what it held behind, as it is. This one does not.
pub(crate) fn append(all: &mut Zeroizing<Vec<u8>>, data: &[u8]) {
    if all.capacity() - all.len() < data.len() {
        let mut larger = Zeroizing::new(Vec::with_capacity((all.len() + data.len()) * 2));
        larger.extend_from_slice(all);
        *all = larger;
    }
    all.extend_from_slice(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(name: &'static str, value: &str) -> Answer {
        Answer {
            status: StatusCode::OK,
            headers: HeaderMap::from_iter([(http::HeaderName::from_static(name), value.parse().unwrap())]),
            body: Zeroizing::default(),
        }
    }

    #[test]
    fn the_time_to_wait_is_seconds_or_a_date() {
        let after = |value| answer("retry-after", value).retry_after();
        assert_eq!(after("120"), Some(Duration::from_secs(120)));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert!(after("Sat, 06 Nov 2094 08:49:37 GMT").unwrap() > Duration::from_secs(86400));
        for bad in ["soon", "-1", "", "1.5"] {
            assert_eq!(after(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_time_to_keep_is_found_among_other_directives() {
        let age = |value| answer("cache-control", value).max_age();
        assert_eq!(
            age("public, max-age=300, must-revalidate"),
            Some(Duration::from_secs(300))
        );
        assert_eq!(age("Max-Age=\"5\""), Some(Duration::from_secs(5)));
        for none in ["no-store", "s-maxage=5", "max-age=", "max-age=x", "max-age"] {
            assert_eq!(age(none), None, "{none}");
        }
    }
}
