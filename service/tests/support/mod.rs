// SPDX-License-Identifier: MIT OR Apache-2.0

//! A service with a simulated agent, and a client that can send arbitrary bytes.

#![allow(dead_code, reason = "each test uses a part of it")]

pub mod login;

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant, SystemTime},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use protocol::{
    Answer, Denial, DenialCode, Evidence, Figures, Held, IssuerQuestion, JobEnd, MintRequest, Question, SecretText,
    Subject, Validity,
    service::{MAX_QUESTION, ServiceAnswer, ServiceAsk},
};
use secrecy::ExposeSecret;
use tempfile::TempDir;
use token::{Algorithm, ClaimsToIssue, Grant, Job, JobScheduler, KeySet, SigningKey, StatusList, StatusListToIssue};

/// The issuer of all tokens.
pub const ISSUER: &str = "https://tokens.example.org";
/// The secret of the client `copy`.
pub const SECRET: &str = "canary-secret-of-the-client-copy-0123456789";
/// The timeout of every step.
const LIMIT: Duration = Duration::from_secs(60);

/// Waits until a condition is true.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < end, "{what}: not in time");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The state of the simulated agent.
#[derive(Default)]
pub struct Answers {
    /// The jobs that have ended.
    pub ended: HashSet<u64>,
    /// The revoked tokens, by `jti`.
    pub revoked: HashSet<String>,
    /// Makes the validity of all tokens unknown.
    pub is_unknown: bool,
    /// Makes revocations fail.
    pub is_read_only: bool,
    /// Makes the agent report that it stores no revocations.
    pub has_no_revocations: bool,
    /// Stops all replies.
    pub is_silent: bool,
    /// The number of requests without a reply.
    pub received: usize,
    /// The keys. The first one signs.
    pub keys: Vec<SigningKey>,
    /// The number of requests for keys.
    pub asked_for_keys: usize,
    /// The number of requests for the validity of a token.
    pub checked: usize,
    /// The number of requests for a token.
    pub minted: usize,
    /// The error with which requests for a token fail, if any.
    pub denied: Option<DenialCode>,
    /// Logins.
    pub logins: login::Logins,
    /// The figures, or `None` to fail requests for them.
    pub figures: Option<Figures>,
    /// The jobs that hold tokens.
    pub held: Vec<Held>,
    /// The Status Lists: their numbers, and the invalid tokens.
    pub lists: HashMap<u32, Vec<u32>>,
    /// The number of signatures of a list.
    pub signed_lists: usize,
    /// The time of signatures in seconds, or `None` for the current time.
    pub fixed_time: Option<u64>,
}

/// A simulated agent.
pub struct Agent {
    pub answers: Arc<Mutex<Answers>>,
    path: PathBuf,
    streams: Arc<Mutex<Vec<UnixStream>>>,
    stop: Option<mpsc::Sender<()>>,
}

impl Agent {
    fn start(path: &Path) -> Self {
        let answers = Answers {
            keys: vec![SigningKey::generate(Algorithm::EdDsa)],
            ..Answers::default()
        };
        let mut agent = Self {
            answers: Arc::new(Mutex::new(answers)),
            path: path.to_owned(),
            streams: Arc::default(),
            stop: None,
        };
        agent.listen();
        agent
    }

    /// Listens, also after a stop.
    pub fn listen(&mut self) {
        let _ = fs::remove_file(&self.path);
        let socket = UnixListener::bind(&self.path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let (stop, stopped) = mpsc::channel();
        self.stop = Some(stop);
        let (answers, streams) = (Arc::clone(&self.answers), Arc::clone(&self.streams));
        thread::spawn(move || {
            while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                let Ok((stream, _)) = socket.accept() else {
                    thread::sleep(Duration::from_millis(5));
                    continue;
                };
                stream.set_nonblocking(false).unwrap();
                streams.lock().unwrap().push(stream.try_clone().unwrap());
                let answers = Arc::clone(&answers);
                thread::spawn(move || serve(stream, &answers));
            }
        });
    }

    /// Stops as if the agent had been killed.
    pub fn kill(&mut self) {
        drop(self.stop.take());
        fs::remove_file(&self.path).unwrap();
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn set(&self, change: impl FnOnce(&mut Answers)) {
        change(&mut self.answers.lock().unwrap());
    }

    pub fn get<T>(&self, read: impl FnOnce(&Answers) -> T) -> T {
        read(&self.answers.lock().unwrap())
    }

    /// Signs claims with the first key.
    pub fn sign(&self, claims: &str) -> String {
        self.get(|answers| {
            answers.keys[0]
                .sign(&[("typ", "JWT")], claims.as_bytes())
                .expose_secret()
                .to_owned()
        })
    }
}

fn serve(mut stream: UnixStream, answers: &Mutex<Answers>) {
    while let Ok(ServiceAsk { number, ask }) = protocol::receive(&mut stream, MAX_QUESTION) {
        assert_eq!(ask.version, protocol::VERSION);
        let mut answers = answers.lock().unwrap();
        if answers.is_silent {
            answers.received += 1;
            continue;
        }
        let answer = answer(&mut answers, ask.question);
        let frame = protocol::encode(&ServiceAnswer { number, answer }).unwrap();
        if stream.write_all(&frame).is_err() {
            return;
        }
    }
}

fn answer(answers: &mut Answers, question: Question) -> Answer {
    match question {
        Question::Check(facts) => {
            answers.checked += 1;
            let is_revoked = facts.jti.is_some_and(|jti| answers.revoked.contains(&jti));
            let has_ended = facts.job.is_some_and(|job| answers.ended.contains(&job.jobid));
            Answer::Validity(match (answers.is_unknown, is_revoked, has_ended) {
                (true, ..) => Validity::Unknown("canary-cause-for-the-operator".to_owned()),
                (_, true, _) => Validity::Revoked,
                (_, _, true) => Validity::Ended(JobEnd::default()),
                _ => Validity::Active,
            })
        }
        Question::Revoke { .. } if answers.has_no_revocations => Answer::NotStored,
        Question::Revoke { .. } if answers.is_read_only => Answer::Failed("the disk is full".to_owned()),
        Question::Revoke { subjects, keep_secs } => {
            assert!(keep_secs > 0);
            for subject in subjects {
                let Subject::Jti(jti) = subject else {
                    panic!("{subject:?}")
                };
                answers.revoked.insert(jti);
            }
            Answer::Revoked
        }
        Question::Figures => match &answers.figures {
            Some(figures) => Answer::Figures(figures.clone()),
            None => Answer::Failed("canary-cause-for-the-operator".to_owned()),
        },
        Question::Held { uid } => {
            let held = answers.held.iter().filter(|held| held.job.uid == uid);
            Answer::Held(held.cloned().collect())
        }
        Question::Issuer { name, question } => {
            assert_eq!(name, ISSUER);
            match question {
                IssuerQuestion::PublicKeys => {
                    answers.asked_for_keys += 1;
                    let mut keys = KeySet::new();
                    for key in &answers.keys {
                        keys.insert(key.verifying_key());
                    }
                    Answer::PublicKeys(keys.public_jwks())
                }
                IssuerQuestion::Mint(request) => mint_for(answers, request),
                IssuerQuestion::Login(question) => answers.logins.answer(question),
                IssuerQuestion::StatusLists => Answer::StatusLists(answers.lists.keys().copied().collect()),
                IssuerQuestion::StatusList { .. } if answers.is_unknown => {
                    Answer::Failed("canary-cause-for-the-operator".to_owned())
                }
                IssuerQuestion::StatusList { number } => sign_list(answers, number),
                IssuerQuestion::SignIntrospection { audience, response } => {
                    let claims =
                        format!(r#"{{"iss":"{ISSUER}","aud":"{audience}","iat":1,"token_introspection":{response}}}"#);
                    let signed = answers.keys[0].sign(&[("typ", "token-introspection+jwt")], claims.as_bytes());
                    Answer::Signed(signed.expose_secret().to_owned())
                }
            }
        }
    }
}

fn sign_list(answers: &mut Answers, number: u32) -> Answer {
    answers.signed_lists += 1;
    let mut list = StatusList::new(1000);
    for index in &answers.lists[&number] {
        list.set(*index, 1);
    }
    let issue = StatusListToIssue {
        iss: ISSUER,
        uri: &format!("{ISSUER}/status/{number}"),
        iat: answers.fixed_time.map_or_else(SystemTime::now, |seconds| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
        }),
        lifetime: Duration::from_secs(600),
        ttl: protocol::service::STATUS_LIST_TTL,
        list: &list,
    };
    Answer::Signed(token::sign_status_list(&answers.keys[0], &issue))
}

/// Mints tokens as a grant for all users would, unless the test has set an error.
fn mint_for(answers: &mut Answers, request: MintRequest) -> Answer {
    answers.minted += 1;
    if let Some(code) = answers.denied {
        let text = "canary-reason".to_owned();
        return Answer::Denied(Denial { code, text });
    }
    let proof = match &request.evidence {
        Evidence::Munge(SecretText(credential)) => format!("munge:{}", credential.as_str()),
        Evidence::Token(SecretText(token)) => format!("token:{}", token.as_str()),
        Evidence::Client => "client".to_owned(),
        Evidence::Login(SecretText(ticket)) => format!("login:{}", ticket.as_str()),
    };
    let claims = serde_json::json!({
        "iss": ISSUER,
        "sub": request.client.as_deref().unwrap_or("alice"),
        "aud": if request.audience.is_empty() { vec!["copy-offload".to_owned()] } else { request.audience },
        "exp": 9e9,
        "jti": "of-the-minted",
        "scope": "workspace",
        "workspace": if request.workspaces.is_empty() { vec!["hydro".to_owned()] } else { request.workspaces },
        "proof": proof,
        "wanted": request.scope,
        "lifetime": request.lifetime_secs,
    });
    let token = answers.keys[0].sign(&[("typ", "JWT")], claims.to_string().as_bytes());
    Answer::Minted(SecretText(token.expose_secret().to_owned().into()))
}

/// Returns the token of a job.
pub fn job_token(agent: &Agent, jobid: &str, audience: &str) -> String {
    let job = Job {
        id: jobid.parse().unwrap(),
        uid: 1000,
        instance: "hpc".to_owned(),
        scheduler: JobScheduler::Slurm {
            array: None,
            restarts: 0,
        },
    };
    let workspace = "hydro".parse().unwrap();
    mint(agent, audience, Grant::Session { workspace, job })
}

/// Returns a token of the user alice.
pub fn mint(agent: &Agent, audience: &str, grant: Grant) -> String {
    let claims = ClaimsToIssue {
        iss: ISSUER.to_owned(),
        sub: "alice".to_owned(),
        aud: vec![audience.to_owned()],
        iat: SystemTime::now(),
        lifetime: Duration::from_secs(3600),
        grant,
        status: None,
    };
    agent.get(|answers| token::mint(&answers.keys[0], &claims).expose_secret().to_owned())
}

/// A running service.
pub struct Service {
    pub agent: Agent,
    pub dir: TempDir,
    pub address: SocketAddr,
    pub child: Child,
    log: Arc<Mutex<String>>,
}

impl Service {
    /// Starts a service with an agent and the client `copy`.
    pub fn start() -> Self {
        Self::with("")
    }

    /// Like `start`, with additional text in the file of the service.
    pub fn with(more: &str) -> Self {
        Self::with_listener("address = \"127.0.0.1:0\"", more)
    }

    /// Like `start`, with other listeners. Here and above, `DIR` is the directory of the service.
    pub fn with_listener(listener: &str, more: &str) -> Self {
        Self::with_files(listener, more, |_| {})
    }

    /// Like `start`, with additional files.
    pub fn with_files(listener: &str, more: &str, write: impl FnOnce(&Path)) -> Self {
        Self::run(
            listener,
            more,
            write,
            Command::new(env!("CARGO_BIN_EXE_workflow-tokend")),
        )
    }

    /// Like `start`, with a blocking socket, as systemd passes it.
    pub fn with_passed(socket: &std::net::TcpListener, listener: &str) -> Self {
        let mut command = Command::new("sh");
        let pass = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\"";
        command.args(["-c", pass, env!("CARGO_BIN_EXE_workflow-tokend")]);
        command.stdin(std::os::fd::OwnedFd::from(socket.try_clone().unwrap()));
        Self::run(listener, "", |_| {}, command)
    }

    fn run(listener: &str, more: &str, write: impl FnOnce(&Path), command: Command) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let agent = Agent::start(&dir.path().join("agent"));
        write(dir.path());
        let secret = dir.path().join("secret");
        write_private(&secret, SECRET);
        write_settings(dir.path(), listener, more);
        let log = Arc::default();
        let (child, address) = launch(dir.path(), command, &log);
        let service = Self {
            agent,
            dir,
            address,
            child,
            log,
        };
        if service.address.port() > 1 && !listener.contains("certificate") {
            service.until_ready();
        }
        service
    }

    /// Kills and restarts the service.
    pub fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let command = Command::new(env!("CARGO_BIN_EXE_workflow-tokend"));
        (self.child, self.address) = launch(self.dir.path(), command, &self.log);
        self.until_ready();
    }

    pub fn until_ready(&self) {
        until("the service is ready", || self.get("/readyz").status == 200);
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Returns the metrics of a service that has a listener for them.
    pub fn metrics(&self) -> String {
        self.internal("/metrics").body
    }

    /// Requests a path of the listener for metrics.
    pub fn internal(&self, path: &str) -> Response {
        let log = self.log();
        let address = log
            .split([' ', ','])
            .rev()
            .find(|word| word.starts_with("127.0.0.1:"))
            .unwrap()
            .to_owned();
        let mut stream = TcpStream::connect(address).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        Response::receive(&mut stream).unwrap()
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// Sends bytes, and receives one response.
    pub fn send(&self, request: &[u8]) -> Response {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        Response::receive(&mut stream).expect("a response")
    }

    pub fn get(&self, path: &str) -> Response {
        self.get_with(path, &[])
    }

    pub fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n");
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        self.send((request + "\r\n").as_bytes())
    }

    /// Posts a form as the client `copy`.
    pub fn post(&self, path: &str, form: &str) -> Response {
        self.post_as(Some(&format!("copy:{SECRET}")), path, form, &[])
    }

    pub fn post_as(&self, client: Option<&str>, path: &str, form: &str, headers: &[(&str, &str)]) -> Response {
        self.send(&form_request(client, path, form, headers))
    }

    /// Introspects a token as the client `copy`.
    pub fn introspect(&self, token: &str) -> serde_json::Value {
        let response = self.post("/introspect", &format!("token={token}"));
        assert_eq!(response.status, 200, "{}", response.body);
        assert_eq!(response.header("cache-control"), Some("no-store"));
        serde_json::from_str(&response.body).unwrap()
    }
}

/// Starts a service. Returns its address, or an unusable one if it has only Unix sockets.
pub fn launch(dir: &Path, mut command: Command, log: &Arc<Mutex<String>>) -> (Child, SocketAddr) {
    let mut child = command
        .arg("--config")
        .arg(dir.join("tokend.toml"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    // The service may log other lines first.
    let address = loop {
        let mut line = String::new();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "{}", log.lock().unwrap());
        log.lock().unwrap().push_str(&line);
        if line.starts_with("workflow-tokend: serves ") {
            let addresses = line.rsplit_once(" at ").map(|(_, all)| all.trim().to_owned());
            break addresses.and_then(|all| all.split(", ").next()?.parse().ok());
        }
    };
    let written = Arc::clone(log);
    thread::spawn(move || {
        for line in lines.lines().map_while(Result::ok) {
            written.lock().unwrap().push_str(&(line + "\n"));
        }
    });
    (child, address.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 1))))
}

/// Returns a request that posts a form.
pub fn form_request(client: Option<&str>, path: &str, form: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n",
        form.len()
    );
    if let Some(client) = client {
        request += &format!("Authorization: Basic {}\r\n", STANDARD.encode(client));
    }
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    format!("{request}\r\n{form}").into_bytes()
}

pub fn write_private(path: &Path, content: &str) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Writes the file of a service.
pub fn write_settings(dir: &Path, listener: &str, more: &str) {
    let text = format!(
        "issuer = \"{ISSUER}\"\nagent = \"DIR/agent\"\n\n[[listen]]\n{listener}\n\n[audit]\nfile = \"DIR/audit\"\n\n\
         [[client]]\nid = \"copy\"\nsecret-file = \"DIR/secret\"\naudience = [\"copy-offload\"]\n\
         may = [\"introspect\", \"revoke\"]\n\n{more}\n"
    );
    fs::write(dir.join("tokend.toml"), text.replace("DIR", dir.to_str().unwrap())).unwrap();
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Whatever a test did, no secret may be in a log.
        let log = self.log();
        assert!(
            thread::panicking() || !log.contains("canary-secret") && !log.contains("eyJ"),
            "{log}"
        );
    }
}

/// A response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: HashMap<String, String>,
    /// The values of `Set-Cookie`.
    pub cookies: Vec<String>,
    pub body: String,
}

impl Response {
    /// Receives a response, or returns `None` if the peer closes the connection first.
    pub fn receive(stream: &mut impl Read) -> Option<Self> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte) {
                Ok(0) | Err(_) => return None,
                Ok(_) => head.push(byte[0]),
            }
        }
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let (mut headers, mut cookies) = (HashMap::new(), Vec::new());
        for line in lines.filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':')?;
            if name.eq_ignore_ascii_case("set-cookie") {
                cookies.push(value.trim().to_owned());
                continue;
            }
            let twice = headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
            assert_eq!(twice, None, "{name} is repeated");
        }
        let length = headers
            .get("content-length")
            .map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        Some(Self {
            status,
            headers,
            cookies,
            body: String::from_utf8(body).unwrap(),
        })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}
