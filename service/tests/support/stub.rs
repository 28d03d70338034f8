// SPDX-License-Identifier: MIT OR Apache-2.0

//! A simulated authorization server, and a proxy.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// The response at a path.
#[derive(Clone)]
pub enum Reply {
    /// The status 200, with this body.
    Body(String),
    /// Another status, with this header.
    Status(u16, String),
    /// A body that never ends.
    Endless,
    /// No response. The connection stays open.
    Silence,
    /// No response. The connection is closed.
    Nothing,
}

#[derive(Default)]
struct State {
    replies: HashMap<String, Reply>,
    asked: Vec<String>,
    silent: Vec<TcpStream>,
}

/// A server. Its response at paths that the test did not set is 404.
pub struct Stub {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Stub {
    pub fn start() -> Self {
        Self::serve(None)
    }

    /// Serves over TLS, with a certificate and its key in PEM.
    pub fn with_tls(certificate: &str, key: &str) -> Self {
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth();
        Self::serve(Some(Arc::new(config.with_single_cert(chain, key).unwrap())))
    }

    fn serve(tls: Option<Arc<ServerConfig>>) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let address = listen(move |stream| {
            let held = stream.try_clone().unwrap();
            match &tls {
                None => answer(stream, held, &shared),
                Some(config) => {
                    let server = ServerConnection::new(Arc::clone(config)).unwrap();
                    answer(StreamOwned::new(server, stream), held, &shared);
                }
            }
        });
        Self { address, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set(&self, path: &str, reply: Reply) {
        self.state.lock().unwrap().replies.insert(path.to_owned(), reply);
    }

    /// Sets a response in JSON.
    pub fn set_json(&self, path: &str, json: &serde_json::Value) {
        self.set(path, Reply::Body(json.to_string()));
    }

    /// Returns the number of requests for a path.
    pub fn asked(&self, path: &str) -> usize {
        let state = self.state.lock().unwrap();
        state.asked.iter().filter(|asked| *asked == path).count()
    }
}

/// Starts an HTTP proxy that opens all tunnels to one server. Returns its address, and the requested targets.
pub fn proxy(server: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let shared = Arc::clone(&asked);
    let address = listen(move |mut stream| {
        let Some(line) = request_line(&mut stream) else { return };
        shared.lock().unwrap().push(line);
        let mut server = TcpStream::connect(server).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        let (mut back, mut from) = (stream.try_clone().unwrap(), server.try_clone().unwrap());
        thread::spawn(move || std::io::copy(&mut from, &mut back));
        let _ = std::io::copy(&mut stream, &mut server);
    });
    (address, asked)
}

fn listen(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        for stream in socket.incoming() {
            let (stream, serve) = (stream.unwrap(), serve.clone());
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            thread::spawn(move || serve(stream));
        }
    });
    address
}

fn answer(mut stream: impl Read + Write, held: TcpStream, state: &Mutex<State>) {
    let Some(line) = request_line(&mut stream) else { return };
    let path = line.split(' ').nth(1).unwrap().to_owned();
    let reply = {
        let mut state = state.lock().unwrap();
        state.asked.push(path.clone());
        state.replies.get(&path).cloned()
    };
    let head = |status: u16, rest: &str| format!("HTTP/1.1 {status} x\r\nConnection: close\r\n{rest}\r\n");
    // Some tests need a client that disconnects early.
    let _ = match reply.unwrap_or(Reply::Status(404, String::new())) {
        Reply::Body(body) => {
            let length = format!("Content-Length: {}\r\n", body.len());
            stream.write_all((head(200, &length) + &body).as_bytes())
        }
        Reply::Status(status, header) => stream.write_all((head(status, &header) + "\r\n").as_bytes()),
        Reply::Endless => {
            let mut sent = stream.write_all(head(200, "").as_bytes());
            while sent.is_ok() {
                sent = stream.write_all(&[b' '; 64 << 10]);
            }
            sent
        }
        Reply::Silence => {
            state.lock().unwrap().silent.push(held);
            Ok(())
        }
        Reply::Nothing => Ok(()),
    };
}

/// Receives the head of a request. Returns its first line.
fn request_line(stream: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return None,
        }
    }
    String::from_utf8(head).ok()?.lines().next().map(str::to_owned)
}
