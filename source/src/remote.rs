// SPDX-License-Identifier: MIT OR Apache-2.0

//! A configured server: an authorization server or an issuer, by its URL.

mod discovery;

use std::{
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ::http::{
    HeaderValue, Method, Request, StatusCode, Uri,
    header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, LOCATION, USER_AGENT},
};
use tokio::{sync::Semaphore, time::timeout};
use zeroize::Zeroizing;

pub(crate) use self::discovery::{Metadata, Need};
use crate::{
    http::{self, Http, HttpReply, Peer, SourceError, Transport, quote, tls},
    secure_file,
    stamp::Stamp,
};

/// The longest file of certificates, in bytes.
const MAX_CA_FILE: usize = 4 << 20;

/// The maximum number of idle connections.
const MAX_IDLE: usize = 16;

/// The accepted types of answers: JSON, and the type of a JWKS (RFC 7517 section 8.5), because some servers produce
/// only that. A server that produces neither may send its own type.
const ACCEPTED: &str = "application/json, application/jwk-set+json, */*;q=0.1";

/// A server. It reads nothing and sends nothing before the first request.
pub(crate) struct Remote {
    peer: &'static Peer,
    proxy: Option<Uri>,
    ca_file: Option<PathBuf>,
    client: Mutex<Option<Client>>,
    /// Reads the files that requests need.
    pub files: Files,
}

#[derive(Clone)]
struct Client {
    http: Http,
    /// The file with the trusted certificates.
    file: Option<Arc<Stamp>>,
}

impl Remote {
    pub fn new(network: &config::Discovery, peer: &'static Peer) -> Self {
        Self {
            peer,
            // The configuration parser has checked it.
            proxy: network.proxy.as_ref().and_then(|proxy| proxy.parse().ok()),
            ca_file: network.ca_file.clone(),
            client: Mutex::default(),
            files: Files::default(),
        }
    }

    /// Returns the server in messages.
    pub fn peer(&self) -> &'static Peer {
        self.peer
    }

    /// Sends a GET request for JSON, and reads the answer.
    pub async fn get(&self, url: &str, max_body: usize, limit: Duration) -> Result<HttpReply, SourceError> {
        self.ask(Method::GET, url, None, None, max_body, limit).await
    }

    /// Sends a form, and reads the answer, which is JSON.
    pub async fn post(
        &self,
        url: &str,
        authorization: Option<HeaderValue>,
        form: Zeroizing<Vec<u8>>,
        max_body: usize,
        limit: Duration,
    ) -> Result<HttpReply, SourceError> {
        self.ask(Method::POST, url, authorization, Some(form), max_body, limit)
            .await
    }

    async fn ask(
        &self,
        method: Method,
        url: &str,
        authorization: Option<HeaderValue>,
        form: Option<Zeroizing<Vec<u8>>>,
        max_body: usize,
        limit: Duration,
    ) -> Result<HttpReply, SourceError> {
        let mut request = Request::builder()
            .method(method)
            .uri(url)
            .header(ACCEPT, ACCEPTED)
            .header(ACCEPT_ENCODING, "identity")
            .header(USER_AGENT, http::USER_AGENT);
        if form.is_some() {
            request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(http::body(form.unwrap_or_default())).map_err(|_| {
            SourceError::permanent(
                self.peer.unreachable,
                "its address is not valid",
                format_args!("correct {}", self.peer.address),
            )
        })?;
        let answer = async {
            let http = self.client().await?;
            http::exchange(&http, request, max_body, self.peer).await
        };
        timeout(limit, answer)
            .await
            .unwrap_or_else(|_| Err(self.peer.silent(limit)))
    }

    /// Returns the client for requests. Creates a new one if the file of certificates has changed.
    async fn client(&self) -> Result<Http, SourceError> {
        let known = self.client.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(client) = known {
            let Some(file) = client.file else {
                return Ok(client.http);
            };
            if !self.files.read(self.peer, move || file.is_stale()).await? {
                return Ok(client.http);
            }
        }
        let (peer, proxy, ca_file) = (self.peer, self.proxy.clone(), self.ca_file.clone());
        let client = self
            .files
            .read(peer, move || Client::new(peer, proxy, ca_file))
            .await??;
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = Some(client.clone());
        Ok(client.http)
    }

    /// Returns the error of an answer that is not a success.
    pub fn unusable(&self, answer: &HttpReply) -> SourceError {
        let mut cause = format!("it answered with the status {}", answer.status_text());
        let remedy = match answer.status {
            StatusCode::NOT_FOUND => format!(
                "check that {} is the address of {}",
                self.peer.address, self.peer.server
            ),
            status if status.is_redirection() => {
                if let Some(location) = answer.headers.get(LOCATION) {
                    let location = String::from_utf8_lossy(location.as_bytes());
                    cause = format!("{cause}, which redirects to `{}`", quote(&location, &[]));
                }
                format!("redirects are not followed: correct {}", self.peer.address)
            }
            _ => "see the server's log".to_owned(),
        };
        SourceError::new(answer.retry(), self.peer.unwell, cause, remedy)
    }
}

impl Client {
    fn new(peer: &Peer, proxy: Option<Uri>, ca_file: Option<PathBuf>) -> Result<Self, SourceError> {
        let file = ca_file.as_deref().map(|path| Arc::new(Stamp::of(path)));
        let pem = ca_file.map(|path| {
            let pem = secure_file::read_public(&path, MAX_CA_FILE);
            pem.map_err(|refusal| SourceError::of_file(peer.credential, peer.authorities, &path, refusal))
        });
        let pem = pem.transpose()?;
        let roots = pem.as_ref().map_or(tls::Roots::System, |pem| tls::Roots::Also(pem));
        let http = http::client(Transport {
            tls: tls::client_config(roots, None, peer)?,
            server_name: None,
            proxy,
            // The checks of the configuration and the metadata allow http only for servers on this node.
            plain: true,
            idle: MAX_IDLE,
        });
        Ok(Self { http, file })
    }
}

/// Reads the files of one server, one at a time: if a file system hangs, further reads wait for that one thread.
#[derive(Clone)]
pub(crate) struct Files(Arc<Semaphore>);

impl Default for Files {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Files {
    /// Runs a blocking call on its own thread.
    pub async fn read<T: Send + 'static>(
        &self,
        peer: &Peer,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, SourceError> {
        // The message of a panic is dropped, because it may contain a secret.
        let failed = || peer.wrong_credential("an internal error", "report it to the maintainers of this plugin");
        let permit = Arc::clone(&self.0).acquire_owned().await.map_err(|_| failed())?;
        let thread = tokio::task::spawn_blocking(move || (call(), permit));
        thread.await.map(|(value, _)| value).map_err(|_| failed())
    }
}

/// Awaits a future on a thread that may block, with the runtime of the thread or with a new short-lived one.
pub(crate) fn await_here<T>(future: impl Future<Output = T>) -> std::io::Result<T> {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        return Ok(runtime.block_on(future));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let value = runtime.block_on(future);
    // Do not wait for a hung name service.
    runtime.shutdown_background();
    Ok(value)
}

/// Awaits the answer of a server on a thread that may block, for at most `limit`.
pub(crate) fn ask_here<T>(
    peer: &Peer,
    limit: Duration,
    future: impl Future<Output = Result<T, SourceError>>,
) -> Result<T, SourceError> {
    let done = await_here(async { timeout(limit, future).await });
    let done = done.map_err(|_| {
        peer.wrong_credential(
            "the system has no more file descriptors",
            "raise ulimit -n, and run this again",
        )
    })?;
    done.unwrap_or_else(|_| Err(peer.silent(limit)))
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::mpsc,
        task::{Context, Waker},
    };

    use super::*;
    use crate::oauth2::SERVER;

    /// A hung read keeps its thread after its future is dropped. The next read waits for that thread.
    #[tokio::test]
    async fn files() {
        let files = Files::default();
        let mut context = Context::from_waker(Waker::noop());
        let (release, hangs) = mpsc::channel::<()>();
        {
            let mut read = pin!(files.read(&SERVER, move || hangs.recv()));
            assert!(read.as_mut().poll(&mut context).is_pending());
        }
        assert_eq!(files.0.available_permits(), 0);
        let mut next = pin!(files.read(&SERVER, || 2));
        assert!(next.as_mut().poll(&mut context).is_pending());
        drop(release);
        assert_eq!(next.await.expect("it is read"), 2);
    }
}
