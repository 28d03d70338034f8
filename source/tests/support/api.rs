//! A stand-in for the API server of Kubernetes: the paths, objects and answers that the real one has for what is asked of
//! it here, over real TLS, and the faults that it may have.
//!
//! It runs on a thread of its own, and ends when dropped.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
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
    Method, Request, Response, StatusCode,
    body::{Body, Bytes, Frame, Incoming, SizeHint},
    header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

/// The API group of Workflows.
pub const GROUP: &str = "dataworkflowservices.github.io";

/// A certificate authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

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
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for a client.
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

    /// What a server needs.
    fn server(&self, setup: &Setup) -> ServerConfig {
        let mut params = CertificateParams::new(setup.names.clone()).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        if setup.expired {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2020, 2, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        // As an API server does: a client may have a certificate.
        let clients: Arc<dyn ClientCertVerifier> = if setup.demands_certificate {
            clients.build().unwrap()
        } else {
            clients.allow_unauthenticated().build().unwrap()
        };
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap()
    }
}

/// How a server is to be.
pub struct Setup {
    /// What its certificate is for.
    pub names: Vec<String>,
    pub expired: bool,
    pub demands_certificate: bool,
    pub port: u16,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            names: vec!["127.0.0.1".to_owned()],
            expired: false,
            demands_certificate: false,
            port: 0,
        }
    }
}

/// What the server does wrong.
#[derive(Clone)]
pub enum Fault {
    /// It answers with this status, and these seconds in Retry-After.
    Status(u16, Option<u64>),
    /// It answers with this status, and says this.
    Says(u16, String),
    /// It does not answer.
    Hang,
    /// It ends the connection in the middle of the answer, of which this is the beginning.
    CutOff(&'static str),
    /// It ends the connection before the answer.
    HangUp,
    /// It answers with this, whatever was asked.
    Text(String),
    /// It says that a body of this many bytes is to come.
    Long(u64),
    /// It sends a body without end.
    Endless,
}

/// What was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
    pub with_certificate: bool,
    pub at: Instant,
}

#[derive(Default)]
struct World {
    /// Bearer tokens that are accepted.
    tokens: HashSet<String>,
    /// Versions of the group, the preferred one first.
    versions: Vec<String>,
    /// `namespace/name`
    workflows: BTreeMap<String, Value>,
    secrets: BTreeMap<String, Value>,
    /// As in `get secrets`.
    denied: BTreeSet<String>,
    is_admin: bool,
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
pub struct Api {
    pub authority: Authority,
    address: SocketAddr,
    world: Arc<Mutex<World>>,
    counters: Arc<Counters>,
    /// Changes whenever something is asked, or a connection ends.
    changed: watch::Receiver<()>,
    _end: tokio::sync::oneshot::Sender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Api {
    pub fn start() -> Self {
        Self::with(Setup::default())
    }

    pub fn with(setup: Setup) -> Self {
        Self::of(Authority::new("the cluster's authority"), setup)
    }

    pub fn of(authority: Authority, setup: Setup) -> Self {
        let tls = authority.server(&setup);
        let world = Arc::new(Mutex::new(World {
            versions: vec!["v1alpha7".to_owned()],
            ..World::default()
        }));
        let counters = Arc::<Counters>::default();
        let (tell, changed) = watch::channel(());
        let (end, ended) = tokio::sync::oneshot::channel();
        let (started, start) = std::sync::mpsc::channel();
        let server = Server {
            tls: TlsAcceptor::from(Arc::new(tls)),
            world: world.clone(),
            counters: counters.clone(),
            tell,
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                // A port that was in use a moment ago may be asked for again.
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, setup.port)).await.unwrap();
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
            world,
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
        format!("https://{}", self.address)
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Accepts a bearer token, and no other.
    pub fn accept(&self, token: &str) {
        self.world().tokens = HashSet::from([token.to_owned()]);
    }

    /// Has a Workflow, as the service of flux-coral2 creates it, with this status.
    pub fn workflow(&self, name: &str, uid: u32, status: Value) {
        let workflow = json!({
            "kind": "Workflow",
            "metadata": {"name": name, "namespace": "default", "resourceVersion": "1"},
            "spec": {"desiredState": "PreRun", "wlmID": "flux", "jobID": "fA", "userID": uid, "groupID": uid,
                "hurry": false, "forceReady": false, "dwDirectives": ["#DW jobdw type=xfs capacity=1GiB name=x"]},
            "status": status,
        });
        self.world().workflows.insert(format!("default/{name}"), workflow);
    }

    pub fn no_workflow(&self, name: &str) {
        self.world().workflows.remove(&format!("default/{name}"));
    }

    /// Has a Secret.
    pub fn secret(&self, name: &str, data: Value) {
        let (namespace, name) = name.split_once('/').unwrap();
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {"name": name, "namespace": namespace, "resourceVersion": "1"},
            "data": data,
        });
        self.world().secrets.insert(format!("{namespace}/{name}"), secret);
    }

    /// Serves these versions of Workflows, the first preferred; none where DWS is not installed.
    pub fn versions(&self, versions: &[&str]) {
        self.world().versions = versions.iter().map(|version| (*version).to_owned()).collect();
    }

    /// Does not permit this, as in `get secrets`.
    pub fn deny(&self, what: &str) {
        self.world().denied.insert(what.to_owned());
    }

    pub fn permit_all(&self) {
        self.world().is_admin = true;
    }

    /// Does this wrong, so many times, when asked for a path with `part` in it.
    pub fn fail(&self, part: &str, times: usize, fault: Fault) {
        let faults = std::iter::repeat_n((part.to_owned(), fault), times);
        self.world().faults.extend(faults);
    }

    pub fn mend(&self) {
        self.world().faults.clear();
    }

    /// All that was asked for a path with `part` in it.
    pub fn asked(&self, part: &str) -> Vec<Asked> {
        let world = self.world();
        world
            .asked
            .iter()
            .filter(|asked| asked.path.contains(part))
            .cloned()
            .collect()
    }

    /// Waits until this holds; looked at whenever something is asked, or a connection ends.
    pub async fn until(&self, holds: impl Fn(&Self) -> bool) {
        let mut changed = self.changed.clone();
        let wait = async {
            while !holds(self) {
                changed.changed().await.expect("the server runs");
            }
        };
        // It is no measure of time, but ends a test that would hang.
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

    /// How many connections there were.
    pub fn accepted(&self) -> usize {
        self.counters.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        let (end, _) = tokio::sync::oneshot::channel();
        self._end = end;
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

#[derive(Clone)]
struct Server {
    tls: TlsAcceptor,
    world: Arc<Mutex<World>>,
    counters: Arc<Counters>,
    tell: watch::Sender<()>,
}

impl Server {
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
        let Ok(mut stream) = self.tls.accept(stream).await else {
            return;
        };
        let with_certificate = stream.get_ref().1.peer_certificates().is_some();
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
        let path = head.uri.path().to_owned();
        let header = head.headers.get(AUTHORIZATION);
        let authorization = header.map(|value| value.to_str().unwrap().to_owned());
        let fault = {
            let mut world = self.world.lock().unwrap();
            world.asked.push(Asked {
                method: head.method.to_string(),
                path: path.clone(),
                authorization: authorization.clone(),
                with_certificate,
                at: Instant::now(),
            });
            let at = world.faults.iter().position(|(part, _)| path.contains(part.as_str()));
            at.and_then(|at| world.faults.remove(at)).map(|(_, fault)| fault)
        };
        self.tell.send_replace(());
        match fault {
            None => Ok(self.world.lock().unwrap().answer(
                &head.method,
                &path,
                authorization.as_deref(),
                with_certificate,
                &body,
            )),
            Some(fault) => fault.answer().await,
        }
    }
}

impl Fault {
    async fn answer(self) -> Result<Response<Script>, io::Error> {
        let script = |frames: Vec<Option<Bytes>>, len| Script {
            frames: frames.into(),
            endless: false,
            len,
            is_sent: false,
        };
        Ok(match self {
            Fault::Status(code, retry_after) => {
                let mut response = status(code, "InternalError", "something is wrong");
                if let Some(seconds) = retry_after {
                    response.headers_mut().insert(RETRY_AFTER, seconds.into());
                }
                response
            }
            Fault::Says(code, message) => status(code, "InternalError", &message),
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

impl World {
    fn answer(
        &self,
        method: &Method,
        path: &str,
        authorization: Option<&str>,
        with_certificate: bool,
        body: &[u8],
    ) -> Response<Script> {
        let token = authorization.and_then(|header| header.strip_prefix("Bearer "));
        if !with_certificate && !token.is_some_and(|token| self.tokens.contains(token)) {
            return status(401, "Unauthorized", "Unauthorized");
        }
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match (method.as_str(), parts.as_slice()) {
            ("GET", ["apis", GROUP]) if !self.versions.is_empty() => {
                let all: Vec<_> = self.versions.iter().map(|version| group_version(version)).collect();
                object(&json!({
                    "kind": "APIGroup", "apiVersion": "v1", "name": GROUP,
                    "versions": all, "preferredVersion": all[0],
                }))
            }
            ("GET", ["apis", GROUP, version, "namespaces", namespace, "workflows", name])
                if self.versions.iter().any(|served| served == version) =>
            {
                self.get(
                    "workflows",
                    &format!("workflows.{GROUP}"),
                    namespace,
                    name,
                    &self.workflows,
                    |found| {
                        found["apiVersion"] = json!(format!("{GROUP}/{version}"));
                    },
                )
            }
            ("GET", ["api", "v1", "namespaces", namespace, "secrets", name]) => {
                self.get("secrets", "secrets", namespace, name, &self.secrets, |_| {})
            }
            ("POST", ["apis", "authorization.k8s.io", "v1", "selfsubjectaccessreviews"]) => self.review(body),
            _ => {
                let mut response = Response::new(Script::of(b"404 page not found\n".to_vec()));
                *response.status_mut() = StatusCode::NOT_FOUND;
                response
            }
        }
    }

    fn get(
        &self,
        resource: &str,
        full: &str,
        namespace: &str,
        name: &str,
        objects: &BTreeMap<String, Value>,
        finish: impl Fn(&mut Value),
    ) -> Response<Script> {
        if self.denied.contains(&format!("get {resource}")) {
            let says = format!(
                "{full} \"{name}\" is forbidden: User \"system:serviceaccount:flux:tokens\" cannot get resource \
                 \"{resource}\" in the namespace \"{namespace}\""
            );
            return status(403, "Forbidden", &says);
        }
        match objects.get(&format!("{namespace}/{name}")) {
            Some(found) => {
                let mut found = found.clone();
                finish(&mut found);
                object(&found)
            }
            None => status(404, "NotFound", &format!("{full} \"{name}\" not found")),
        }
    }

    fn review(&self, body: &[u8]) -> Response<Script> {
        let mut review: Value = serde_json::from_slice(body).unwrap();
        let of = |key: &str| {
            review["spec"]["resourceAttributes"][key]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let what = format!("{} {}", of("verb"), of("resource"));
        let allowed = match what.as_str() {
            "* *" => self.is_admin,
            "get workflows" => of("group") == GROUP && !self.denied.contains(&what),
            _ => of("group").is_empty() && !self.denied.contains(&what),
        };
        review["status"] = json!({"allowed": allowed});
        let mut response = object(&review);
        *response.status_mut() = StatusCode::CREATED;
        response
    }
}

fn group_version(version: &str) -> Value {
    json!({"groupVersion": format!("{GROUP}/{version}"), "version": version})
}

fn object(value: &Value) -> Response<Script> {
    let mut response = Response::new(Script::of(value.to_string().into_bytes()));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, "application/json".parse().unwrap());
    response
}

/// The type `Status` of the API group `meta/v1`.
fn status(code: u16, reason: &str, message: &str) -> Response<Script> {
    let mut response = object(&json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    }));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

/// A body. `None` ends the connection, once all before it was sent.
pub struct Script {
    frames: VecDeque<Option<Bytes>>,
    endless: bool,
    len: Option<u64>,
    is_sent: bool,
}

impl Script {
    fn of(bytes: Vec<u8>) -> Self {
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
            // What was given so far is sent when there is nothing more to give.
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
