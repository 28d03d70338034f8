// SPDX-License-Identifier: MIT OR Apache-2.0

//! Connections to an API server. All deliveries of the rules that use the same server share them.
//!
//! [`MAX_REQUESTS`] bounds the number of concurrent requests, and so the number of connections.
//!
//! A [`Connection`] is immutable. If one of its files changes, its credential is about to expire, or the server rejects
//! the credential, one delivery creates a new connection while the others wait.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, SystemTime},
};

use kube::{
    Client, Config,
    client::{Body, ConfigExt},
};
use rustls::pki_types::ServerName;
use seal::Secret;
use tokio::{sync::Semaphore, time::Instant};
use tower::{BoxError, ServiceBuilder};
use tower_http::map_response_body::MapResponseBodyLayer;

use super::{
    access::{self, Access},
    error::{API_SERVER, Retry, SourceError, credential},
    exec::{Credential, Exec},
};
use crate::{
    Slot,
    http::{
        self, Transport,
        tls::{self, Roots},
    },
    remote::Files,
    stamp::Stamp,
};

/// The maximum number of concurrent requests to one API server.
pub(super) const MAX_REQUESTS: usize = 16;

/// The longest body, in bytes. etcd limits an object to 1.5 MiB, and Kubernetes a Secret to 1 MiB before base64.
pub(super) const MAX_BODY: usize = 3 << 20;

/// The time that other deliveries get the error of a failed connection instead of trying again.
const REST: Duration = Duration::from_secs(1);

/// A configured API server and the current connection to it.
pub(super) struct Cluster {
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
    supervisors: Vec<PathBuf>,
    permits: Arc<Semaphore>,
    files: Files,
    /// The version of the API group that the server prefers, once known.
    pub version: tokio::sync::Mutex<Option<Arc<str>>>,
    state: tokio::sync::Mutex<ConnectionState>,
}

#[derive(Default)]
struct ConnectionState {
    connection: Option<Arc<Connection>>,
    failed: Option<(Instant, SourceError)>,
}

/// A client of an API server.
pub(super) struct Connection {
    pub client: Client,
    /// Permits for requests.
    pub permits: Arc<Semaphore>,
    /// The server's address, without a trailing slash.
    pub base: String,
    /// The bearer token, which is redacted from messages of the server.
    pub token: Option<Secret>,
    files: Vec<Stamp>,
    renew: Option<SystemTime>,
    expires: Option<SystemTime>,
}

/// The clusters in use.
static CLUSTERS: Mutex<Vec<Weak<Cluster>>> = Mutex::new(Vec::new());

impl Cluster {
    /// Returns the cluster that other rules use, or a new one. Reads nothing and sends nothing before the first use.
    pub fn of(settings: &config::Kubernetes, supervisors: &[PathBuf]) -> Arc<Self> {
        let mut all = CLUSTERS.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|cluster| cluster.strong_count() > 0);
        let same = |cluster: &Arc<Self>| {
            cluster.kubeconfig == settings.kubeconfig
                && cluster.context == settings.context
                && cluster.supervisors == supervisors
        };
        if let Some(found) = all.iter().filter_map(Weak::upgrade).find(same) {
            return found;
        }
        let new = Arc::new(Self::new(settings, supervisors));
        all.push(Arc::downgrade(&new));
        new
    }

    pub fn new(settings: &config::Kubernetes, supervisors: &[PathBuf]) -> Self {
        Self {
            kubeconfig: settings.kubeconfig.clone(),
            context: settings.context.clone(),
            supervisors: supervisors.to_vec(),
            permits: Arc::new(Semaphore::new(MAX_REQUESTS)),
            files: Files::default(),
            version: tokio::sync::Mutex::default(),
            state: tokio::sync::Mutex::default(),
        }
    }

    /// Returns the current connection. An exec command holds `slot`, and its standard error is added to `notes`, if
    /// any.
    pub async fn connection(
        &self,
        limit: Duration,
        slot: &Slot,
        notes: Option<&Mutex<Vec<String>>>,
    ) -> Result<Arc<Connection>, SourceError> {
        let mut state = self.state.lock().await;
        let old = match state.connection.take() {
            None => None,
            Some(old) => {
                // The state stays unchanged if this future is dropped while the files are examined.
                state.connection = Some(old.clone());
                let examined = old.clone();
                let is_stale = move || examined.files.iter().any(Stamp::is_stale);
                let is_stale = self.files.read(&API_SERVER, is_stale).await?;
                if !is_stale && !is_due(old.renew) {
                    return Ok(old);
                }
                // A connection whose credential expires soon remains usable until then.
                Some(old).filter(|old| !is_stale && !is_due(old.expires))
            }
        };
        if let Some((at, error)) = &state.failed
            && at.elapsed() < REST
        {
            return old.ok_or_else(|| error.clone());
        }
        let had_one = state.connection.is_some();
        match self.connect(limit, slot, notes).await {
            Ok(new) => {
                let new = Arc::new(new);
                *state = ConnectionState {
                    connection: Some(new.clone()),
                    failed: None,
                };
                Ok(new)
            }
            Err(mut error) => {
                // A formerly valid file may currently be rewritten.
                if had_one && error.retry == Retry::Never {
                    error.retry = Retry::Backoff(None);
                }
                state.failed = Some((Instant::now(), error.clone()));
                old.ok_or(error)
            }
        }
    }

    /// Forces a new connection, unless `refused` has already been replaced.
    pub async fn renew(&self, refused: &Arc<Connection>) {
        let mut state = self.state.lock().await;
        if state.connection.as_ref().is_some_and(|now| Arc::ptr_eq(now, refused)) {
            *state = ConnectionState::default();
        }
    }

    async fn connect(
        &self,
        limit: Duration,
        slot: &Slot,
        notes: Option<&Mutex<Vec<String>>>,
    ) -> Result<Connection, SourceError> {
        let (kubeconfig, context) = (self.kubeconfig.clone(), self.context.clone());
        let load = move || {
            let mut access = access::load(kubeconfig.as_deref(), context.as_deref())?;
            access.exec.as_mut().map(Exec::find).transpose()?;
            Ok(access)
        };
        let mut access: Access = self.files.read(&API_SERVER, load).await??;
        let credential = match access.exec.take() {
            None => None,
            Some(exec) => {
                let (credential, lines) = exec.run(&self.supervisors, limit, slot.clone(), notes.is_some()).await;
                if let Some(notes) = notes {
                    notes.lock().unwrap_or_else(PoisonError::into_inner).extend(lines);
                }
                Some(credential?)
            }
        };
        let permits = self.permits.clone();
        let connect = move || Connection::new(permits, access, credential);
        self.files.read(&API_SERVER, connect).await?
    }
}

impl Connection {
    fn new(permits: Arc<Semaphore>, mut access: Access, credential: Option<Credential>) -> Result<Self, SourceError> {
        let (mut renew, mut expires) = (None, None);
        if let Some(credential) = credential {
            access.token = credential.token;
            access.identity = credential.identity.or(access.identity);
            (renew, expires) = (credential.renew, credential.expires);
        }
        Ok(Self {
            client: client(&access)?,
            permits,
            base: access.server.to_string().trim_end_matches('/').to_owned(),
            token: access.token,
            files: access.files,
            renew,
            expires,
        })
    }
}

fn is_due(time: Option<SystemTime>) -> bool {
    time.is_some_and(|time| time <= SystemTime::now())
}

/// Returns a client of kube over our connections, with bounded answers. It keeps a copy of the token that is not
/// zeroized.
fn client(access: &Access) -> Result<Client, SourceError> {
    let server_name = access.server_name.clone().map(ServerName::try_from).transpose();
    let server_name = server_name.map_err(|_| {
        credential(
            "tls-server-name in the kubeconfig file is not a host name",
            "set it to the name that the server's certificate is for",
        )
    })?;
    let roots = access.authorities.as_deref().map_or(Roots::System, Roots::Only);
    let http = http::client::<Body>(Transport {
        tls: tls::client_config(roots, access.identity.as_ref(), &API_SERVER)?,
        server_name,
        proxy: None,
        plain: false,
        idle: MAX_REQUESTS,
    });
    let mut config = Config::new(access.server.clone());
    config.auth_info.token = access.token.clone();
    let auth = config.auth_layer();
    let auth = auth.map_err(|_| credential("the token cannot be sent in a header", "write the token again"))?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(auth)
        .layer(MapResponseBodyLayer::new(|body| http::bounded(body, MAX_BODY)))
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace))
}
