//! Connections to an API server, shared by all deliveries of the rules that use the same one.
//!
//! How many requests are under way at once is bounded by [`MAX_REQUESTS`], and with it the number of connections.
//!
//! A [`Connection`] never changes. When a file that it was made from does, its credential is about to expire, or the
//! server refused it, a new one is made, by one delivery while the others wait.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, SystemTime},
};

use ::http::{HeaderValue, Uri};
use rustls::pki_types::ServerName;
use seal::{ExposeSecret, Secret};
use tokio::{sync::Semaphore, time::Instant};

use super::{
    access::{self, Access},
    exec::Credential,
    trouble::{API_SERVER, Kind, Trouble, credential},
};
use crate::{
    http::{
        self, Http, Way,
        tls::{self, Identity, Roots},
    },
    stamp::Stamp,
};

/// How many requests are under way at once, to one API server.
pub(super) const MAX_REQUESTS: usize = 16;

/// For how long the reason why there is no connection is told to others, instead of trying again for each.
const REST: Duration = Duration::from_secs(1);

/// An API server, as the configuration names it, and how it is reached at present.
pub(super) struct Cluster {
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
    helpers: Vec<PathBuf>,
    /// For requests.
    pub permits: Semaphore,
    /// The version of the API group that the server prefers, once it was asked.
    pub version: tokio::sync::Mutex<Option<Arc<str>>>,
    state: tokio::sync::Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<Arc<Connection>>,
    failed: Option<(Instant, Trouble)>,
}

/// How an API server is reached, and as whom.
pub(super) struct Connection {
    pub http: Http,
    /// The server's address, without a slash at its end.
    pub base: String,
    pub authorization: Option<HeaderValue>,
    /// The bearer token, so that it can be kept out of what the server says.
    pub token: Option<Secret>,
    files: Vec<Stamp>,
    renew: Option<SystemTime>,
    expires: Option<SystemTime>,
}

/// Those that are in use.
static CLUSTERS: Mutex<Vec<Weak<Cluster>>> = Mutex::new(Vec::new());

impl Cluster {
    /// The one that other rules use, or a new one. Nothing is read, and nobody asked, before it is used.
    pub fn of(settings: &config::Kubernetes, helpers: &[PathBuf]) -> Arc<Self> {
        let mut all = CLUSTERS.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|cluster| cluster.strong_count() > 0);
        let same = |cluster: &Arc<Self>| {
            cluster.kubeconfig == settings.kubeconfig
                && cluster.context == settings.context
                && cluster.helpers == helpers
        };
        if let Some(found) = all.iter().filter_map(Weak::upgrade).find(same) {
            return found;
        }
        let new = Arc::new(Self {
            kubeconfig: settings.kubeconfig.clone(),
            context: settings.context.clone(),
            helpers: helpers.to_vec(),
            permits: Semaphore::new(MAX_REQUESTS),
            version: tokio::sync::Mutex::default(),
            state: tokio::sync::Mutex::default(),
        });
        all.push(Arc::downgrade(&new));
        new
    }

    /// The connection to use now. What an exec command had to say goes to `notes`.
    pub async fn connection(&self, limit: Duration, notes: &Mutex<Vec<String>>) -> Result<Arc<Connection>, Trouble> {
        let mut state = self.state.lock().await;
        let old = match state.connection.take() {
            None => None,
            Some(old) => {
                // It stays what it is where this future is dropped while the files are looked at.
                state.connection = Some(old.clone());
                let looked_at = old.clone();
                let is_stale = blocking(move || looked_at.files.iter().any(Stamp::is_stale)).await?;
                if !is_stale && !old.is_due(old.renew) {
                    return Ok(old);
                }
                // What is only about to expire is good until it does.
                Some(old).filter(|old| !is_stale && !old.is_due(old.expires))
            }
        };
        if let Some((at, trouble)) = &state.failed
            && at.elapsed() < REST
        {
            return old.ok_or_else(|| trouble.clone());
        }
        let had_one = state.connection.is_some();
        match self.connect(limit, notes).await {
            Ok(new) => {
                let new = Arc::new(new);
                *state = State {
                    connection: Some(new.clone()),
                    failed: None,
                };
                Ok(new)
            }
            Err(mut trouble) => {
                // A file that was good before may be in the middle of being written.
                if had_one && trouble.kind == Kind::Permanent {
                    trouble.kind = Kind::Passing(None);
                }
                state.failed = Some((Instant::now(), trouble.clone()));
                old.ok_or(trouble)
            }
        }
    }

    /// Has the next connection be a new one, unless that has happened since `refused` was made.
    pub async fn renew(&self, refused: &Arc<Connection>) {
        let mut state = self.state.lock().await;
        if state.connection.as_ref().is_some_and(|now| Arc::ptr_eq(now, refused)) {
            *state = State::default();
        }
    }

    async fn connect(&self, limit: Duration, notes: &Mutex<Vec<String>>) -> Result<Connection, Trouble> {
        let (kubeconfig, context) = (self.kubeconfig.clone(), self.context.clone());
        let mut access = blocking(move || access::load(kubeconfig.as_deref(), context.as_deref())).await??;
        let given = match access.exec.take() {
            None => None,
            Some(exec) => {
                let (given, said) = exec.run(&self.helpers, limit).await;
                notes.lock().unwrap_or_else(PoisonError::into_inner).extend(said);
                Some(given?)
            }
        };
        blocking(move || Connection::new(access, given)).await?
    }
}

impl Connection {
    fn new(access: Access, given: Option<Credential>) -> Result<Self, Trouble> {
        let Access {
            server,
            server_name,
            authorities,
            identity,
            token,
            exec: _,
            files,
        } = access;
        let (token, identity, renew, expires) = match given {
            None => (token, identity, None, None),
            Some(given) => (given.token, given.identity.or(identity), given.renew, given.expires),
        };
        Ok(Self {
            http: client(server_name, authorities.as_deref(), identity.as_ref())?,
            base: base(&server),
            authorization: token.as_ref().map(authorization).transpose()?,
            token,
            files,
            renew,
            expires,
        })
    }

    fn is_due(&self, time: Option<SystemTime>) -> bool {
        time.is_some_and(|time| time <= SystemTime::now())
    }
}

fn client(
    server_name: Option<String>,
    authorities: Option<&[u8]>,
    identity: Option<&Identity>,
) -> Result<Http, Trouble> {
    let server_name = server_name.map(ServerName::try_from).transpose().map_err(|_| {
        credential(
            "tls-server-name in the kubeconfig file is no name of a host",
            "set it to the name that the server's certificate is for",
        )
    })?;
    Ok(http::client(Way {
        tls: tls::client_config(authorities.map_or(Roots::System, Roots::Only), identity, &API_SERVER)?,
        server_name,
        proxy: None,
        plain: false,
        idle: MAX_REQUESTS,
    }))
}

/// The header is kept as long as the connection: it is one copy of the token that is not zeroized, for all requests.
fn authorization(token: &Secret) -> Result<HeaderValue, Trouble> {
    let text = zeroize::Zeroizing::new(format!("Bearer {}", token.expose_secret()));
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| credential("the token is none that can be sent", "write the token again"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn base(server: &Uri) -> String {
    server.to_string().trim_end_matches('/').to_owned()
}

/// Runs what may block on a thread for it.
async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Result<T, Trouble> {
    // What a panic said is not repeated: it may quote anything.
    tokio::task::spawn_blocking(call)
        .await
        .map_err(|_| credential("an internal error", "report it to the maintainers of this plugin"))
}
