// SPDX-License-Identifier: MIT OR Apache-2.0

//! A server on loopback, with real TLS or without TLS. Its [`World`] determines the answers, and it simulates faults.
//!
//! It runs on its own thread and ends when dropped.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http_body_util::BodyExt;
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Bytes, Frame, Incoming, SizeHint},
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

/// A certificate authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>, Kind);

#[derive(PartialEq)]
enum Kind {
    Signs,
    IsTheServers,
}

/// A certificate and its key, in PEM.
pub struct Certified {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(
            CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(),
            Kind::Signs,
        )
    }

    /// Returns an authority whose self-signed certificate is also that of the server: as `openssl req -x509` creates
    /// it, or without CA:TRUE.
    pub fn of_server(is_ca: bool) -> Self {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.is_ca = match is_ca {
            true => IsCa::Ca(BasicConstraints::Unconstrained),
            false => IsCa::ExplicitNoCa,
        };
        Self(
            CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(),
            Kind::IsTheServers,
        )
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Issues a certificate for a client.
    pub fn client(&self, name: &str) -> Certified {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        Certified {
            certificate: params.signed_by(&key, &self.0).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    /// Returns the TLS configuration of a server.
    fn server(&self, setup: &Setup) -> ServerConfig {
        let mut params = CertificateParams::new(setup.names.clone()).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        if setup.expired {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2020, 2, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let (certificate, key) = match self.1 {
            Kind::Signs => (certificate.der().clone(), key.serialize_der()),
            Kind::IsTheServers => (self.0.der().clone(), self.0.key().serialize_der()),
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        // Client certificates are optional, as on an API server.
        let clients: Arc<dyn ClientCertVerifier> = if setup.demands_certificate {
            clients.build().unwrap()
        } else {
            clients.allow_unauthenticated().build().unwrap()
        };
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![certificate], PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key)))
            .unwrap()
    }
}

/// The settings of a server.
pub struct Setup {
    /// The names in its certificate.
    pub names: Vec<String>,
    pub expired: bool,
    pub demands_certificate: bool,
    pub port: u16,
    /// Set if it does not use TLS.
    pub plain: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            names: vec!["127.0.0.1".to_owned()],
            expired: false,
            demands_certificate: false,
            port: 0,
            plain: false,
        }
    }
}

/// A fault of the server.
#[derive(Clone)]
pub enum Fault {
    /// It answers with this status, and these seconds in Retry-After.
    Status(u16, Option<u64>),
    /// It answers with this status and these headers.
    Headers(u16, Vec<(&'static str, String)>),
    /// It answers with this status and this message.
    Says(u16, String),
    /// It does not answer.
    Hang,
    /// It sends only this beginning of the answer, and ends the connection.
    CutOff(&'static str),
    /// It ends the connection before the answer.
    HangUp,
    /// It sends this answer to any request.
    Text(String),
    /// It announces a body of this length.
    Long(u64),
    /// It sends an endless body.
    Endless,
}

impl Fault {
    /// It is busy, and requests this pause.
    pub fn busy(code: u16, retry_after: &str) -> Self {
        Self::Headers(code, vec![("retry-after", retry_after.to_owned())])
    }
}

/// Values of Retry-After with a time beyond every timeout (RFC 9110 section 10.2.3), and the expected text of the
/// error.
pub const FAR_AHEAD: [(&str, &str); 6] = [
    ("18446744073709551615", "requests a pause of 18446744073709551615 s"),
    ("9223372036854775807", "requests a pause of 9223372036854775807 s"),
    (
        "99999999999999999999999999",
        "requests a pause of 18446744073709551615 s",
    ),
    (
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT",
    ),
    (
        "Friday, 31-Dec-60 23:59:59 GMT",
        "Retry-After: Friday, 31-Dec-60 23:59:59 GMT",
    ),
    ("Fri Dec 31 23:59:59 9999", "Retry-After: Fri Dec 31 23:59:59 9999"),
];

/// Values of Retry-After without a valid time, or with a past one.
pub const NO_PAUSE: [&str; 10] = [
    "Sun, 06 Nov 1994 08:49:37 GMT",
    "Sunday, 06-Nov-94 08:49:37 GMT",
    "Sun Nov  6 08:49:37 1994",
    "-1",
    "-9223372036854775808",
    "+1",
    "1.5",
    "1e99",
    "soon",
    "",
];

/// A request.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// Without the query.
    pub path: String,
    pub content_type: Option<String>,
    pub accept: String,
    pub body: Vec<u8>,
    pub authorization: Option<String>,
    pub with_certificate: bool,
    pub at: Instant,
}

/// The behavior behind a server.
pub trait World: Send + 'static {
    fn answer(&mut self, asked: &Asked) -> Response<Script>;

    /// Returns an error in the format of the server.
    fn failure(code: u16, message: &str) -> Response<Script>;
}

struct Shared<W> {
    world: W,
    faults: VecDeque<(String, Fault)>,
    asked: Vec<Asked>,
}

#[derive(Default)]
struct Counters {
    open: AtomicUsize,
    most: AtomicUsize,
    accepted: AtomicUsize,
}

/// A server.
pub struct StandIn<W> {
    pub authority: Authority,
    address: SocketAddr,
    scheme: &'static str,
    shared: Arc<Mutex<Shared<W>>>,
    counters: Arc<Counters>,
    /// Changes after each request and each end of a connection.
    changed: watch::Receiver<()>,
    _end: tokio::sync::oneshot::Sender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl<W: World> StandIn<W> {
    pub fn of(authority: Authority, setup: Setup, world: W) -> Self {
        let tls = (!setup.plain).then(|| TlsAcceptor::from(Arc::new(authority.server(&setup))));
        let scheme = if setup.plain { "http" } else { "https" };
        let shared = Arc::new(Mutex::new(Shared {
            world,
            faults: VecDeque::new(),
            asked: Vec::new(),
        }));
        let counters = Arc::<Counters>::default();
        let (tell, changed) = watch::channel(());
        let (end, ended) = tokio::sync::oneshot::channel();
        let (started, start) = std::sync::mpsc::channel();
        let server = Server {
            tls,
            shared: shared.clone(),
            counters: counters.clone(),
            tell,
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                // A restarted server uses its former port. If another process, such as another test, has it now, wait.
                let listener = loop {
                    match TcpListener::bind((Ipv4Addr::LOCALHOST, setup.port)).await {
                        Err(e) if setup.port != 0 && e.kind() == std::io::ErrorKind::AddrInUse => {
                            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                        }
                        bound => break bound.unwrap(),
                    }
                };
                started.send(listener.local_addr().unwrap()).unwrap();
                tokio::select! {
                    () = server.serve(listener) => {}
                    _ = ended => {}
                }
            });
        });
        Self {
            authority,
            address: start.recv().unwrap(),
            scheme,
            shared,
            counters,
            changed,
            _end: end,
            thread: Some(thread),
        }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    fn shared(&self) -> MutexGuard<'_, Shared<W>> {
        self.shared.lock().unwrap()
    }

    /// Accesses the state behind the server.
    pub fn world<T>(&self, with: impl FnOnce(&mut W) -> T) -> T {
        with(&mut self.shared().world)
    }

    /// Simulates a fault for this number of requests whose path contains `part`.
    pub fn fail(&self, part: &str, times: usize, fault: Fault) {
        let faults = std::iter::repeat_n((part.to_owned(), fault), times);
        self.shared().faults.extend(faults);
    }

    pub fn mend(&self) {
        self.shared().faults.clear();
    }

    /// Returns the requests whose path contains `part`.
    pub fn asked(&self, part: &str) -> Vec<Asked> {
        self.shared()
            .asked
            .iter()
            .filter(|asked| asked.path.contains(part))
            .cloned()
            .collect()
    }

    /// Waits until a condition holds. Checks it after each request and each end of a connection.
    pub async fn until(&self, holds: impl Fn(&Self) -> bool) {
        let mut changed = self.changed.clone();
        let wait = async {
            while !holds(self) {
                changed.changed().await.expect("the server runs");
            }
        };
        // The timeout only ends a test that would hang.
        tokio::time::timeout(Duration::from_secs(60), wait)
            .await
            .expect("it comes to hold");
    }

    pub fn open(&self) -> usize {
        self.counters.open.load(Ordering::SeqCst)
    }

    pub fn most_open(&self) -> usize {
        self.counters.most.load(Ordering::SeqCst)
    }

    /// Returns the number of accepted connections.
    pub fn accepted(&self) -> usize {
        self.counters.accepted.load(Ordering::SeqCst)
    }
}

impl<W> Drop for StandIn<W> {
    fn drop(&mut self) {
        let (end, _) = tokio::sync::oneshot::channel();
        self._end = end;
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

struct Server<W> {
    tls: Option<TlsAcceptor>,
    shared: Arc<Mutex<Shared<W>>>,
    counters: Arc<Counters>,
    tell: watch::Sender<()>,
}

impl<W> Clone for Server<W> {
    fn clone(&self) -> Self {
        Self {
            tls: self.tls.clone(),
            shared: self.shared.clone(),
            counters: self.counters.clone(),
            tell: self.tell.clone(),
        }
    }
}

impl<W: World> Server<W> {
    async fn serve(self, listener: TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                continue;
            };
            let server = self.clone();
            let open = server.counters.open.fetch_add(1, Ordering::SeqCst) + 1;
            server.counters.most.fetch_max(open, Ordering::SeqCst);
            server.counters.accepted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                server.clone().connection(stream).await;
                server.counters.open.fetch_sub(1, Ordering::SeqCst);
                server.tell.send_replace(());
            });
        }
    }

    async fn connection(self, stream: TcpStream) {
        match &self.tls {
            None => self.clone().speak(stream, false).await,
            Some(tls) => {
                let Ok(stream) = tls.accept(stream).await else {
                    return;
                };
                let with_certificate = stream.get_ref().1.peer_certificates().is_some();
                self.clone().speak(stream, with_certificate).await;
            }
        }
    }

    async fn speak(self, mut stream: impl AsyncRead + AsyncWrite + Unpin, with_certificate: bool) {
        let service = service_fn(|request| {
            let server = self.clone();
            async move { server.answer(request, with_certificate).await }
        });
        let _ = http1::Builder::new()
            .serve_connection(TokioIo::new(&mut stream), service)
            .await;
        let _ = stream.shutdown().await;
    }

    async fn answer(self, request: Request<Incoming>, with_certificate: bool) -> Result<Response<Script>, io::Error> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let header = |name| head.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        let asked = Asked {
            method: head.method.to_string(),
            path: head.uri.path().to_owned(),
            content_type: header(CONTENT_TYPE),
            accept: header(ACCEPT).unwrap_or_default(),
            body: body.to_vec(),
            authorization: header(AUTHORIZATION),
            with_certificate,
            at: Instant::now(),
        };
        let fault = {
            let mut shared = self.shared.lock().unwrap();
            shared.asked.push(asked.clone());
            let mut faults = shared.faults.iter();
            let at = faults.position(|(part, _)| asked.path.contains(part.as_str()));
            at.and_then(|at| shared.faults.remove(at)).map(|(_, fault)| fault)
        };
        self.tell.send_replace(());
        match fault {
            None => Ok(self.shared.lock().unwrap().world.answer(&asked)),
            Some(fault) => fault.answer::<W>().await,
        }
    }
}

impl Fault {
    async fn answer<W: World>(self) -> Result<Response<Script>, io::Error> {
        let script = |frames: Vec<Option<Bytes>>, len| Script {
            frames: frames.into(),
            endless: false,
            len,
            is_sent: false,
        };
        Ok(match self {
            Fault::Status(code, retry_after) => {
                let mut response = W::failure(code, "something is wrong");
                if let Some(seconds) = retry_after {
                    response.headers_mut().insert(RETRY_AFTER, seconds.into());
                }
                response
            }
            Fault::Headers(code, headers) => {
                let mut response = W::failure(code, "something is wrong");
                for (name, value) in headers {
                    response.headers_mut().insert(name, value.parse().unwrap());
                }
                response
            }
            Fault::Says(code, message) => W::failure(code, &message),
            Fault::Hang => std::future::pending().await,
            Fault::HangUp => return Err(io::Error::other("it hangs up")),
            Fault::CutOff(start) => {
                let frames = vec![Some(Bytes::from(start)), None];
                Response::new(script(frames, Some(start.len() as u64 + 100)))
            }
            Fault::Text(text) => Response::new(Script::of(text.into_bytes())),
            Fault::Long(len) => Response::new(script(vec![Some(Bytes::from("{")), None], Some(len))),
            Fault::Endless => Response::new(Script {
                frames: VecDeque::new(),
                endless: true,
                len: None,
                is_sent: false,
            }),
        })
    }
}

/// Returns an answer in JSON.
pub fn json(code: u16, value: &Value) -> Response<Script> {
    let mut response = Response::new(Script::of(value.to_string().into_bytes()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    let kind = "application/json".parse().unwrap();
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// A body. `None` ends the connection after the preceding parts were sent.
pub struct Script {
    frames: VecDeque<Option<Bytes>>,
    endless: bool,
    len: Option<u64>,
    is_sent: bool,
}

impl Script {
    pub fn of(bytes: Vec<u8>) -> Self {
        Self {
            len: Some(bytes.len() as u64),
            frames: VecDeque::from([Some(Bytes::from(bytes))]),
            endless: false,
            is_sent: false,
        }
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.endless {
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b' '; 8192])))));
        }
        if self.frames.front() == Some(&None) && !std::mem::replace(&mut self.is_sent, true) {
            // Pending parts are sent before the connection ends.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(match self.frames.pop_front() {
            None => None,
            Some(None) => Some(Err(io::Error::other("it is cut off"))),
            Some(Some(bytes)) => Some(Ok(Frame::data(bytes))),
        })
    }

    fn size_hint(&self) -> SizeHint {
        self.len.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
