//! `source = "oauth2"`: tokens of an external authorization server, by client credentials (RFC 6749 section 4.4), in exchange
//! for another token (RFC 8693), or by a refresh token (RFC 6749 section 6).
//!
//! What may pass is tried again until the rule's timeout. [`request`] is what is asked, [`answer`] what comes back.

mod answer;
mod examine;
mod login_store;
mod readers;
mod refresh;
mod request;
mod token_file;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use config::{AuthorizationServer, Grant, TokenRequest, Values};
use seal::{ExposeSecret, Secret, Variables};
use tokio::time::Instant;
use zeroize::Zeroizing;

use self::request::Client;
pub(crate) use self::{answer::Given, refresh::LOGIN, request::Subject};
pub use self::{examine::examine_oauth2, login_store::LoginStore};
use crate::{
    Error, Fetched, Slot, Source,
    http::{Attempts, Peer, Retry, SourceError},
    max_value,
    remote::{Metadata, Need, Remote},
    variable,
};

/// The bounds of the lifetime that a server states. A shorter one is ignored, and a longer one is cut.
const LIFETIMES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(365 * 86_400));

/// The age at which the metadata of a server is fetched again.
const METADATA_AGE: Duration = Duration::from_secs(3600);

/// The authorization server, in the words of messages.
pub(crate) static SERVER: Peer = Peer {
    server: "an authorization server",
    unreachable: "the authorization server that its token comes from could not be reached",
    unwell: "the authorization server that its token comes from is not well",
    credential: "the site's access to the authorization server that its token comes from is not set up",
    address: "the key issuer or token-endpoint",
    authorities: "ca-file",
    name: None,
    client_certificate: None,
};

/// The text for the user if the server refuses.
const REFUSED: &str = "the authorization server that its token comes from refused it";

pub(crate) struct OAuth2(Arc<TokenEndpoint>);

/// The token endpoint of a rule, or of a provider of logins.
pub(crate) struct TokenEndpoint {
    settings: Arc<config::OAuth2>,
    variable: String,
    timeout: Duration,
    remote: Remote,
    metadata: tokio::sync::Mutex<Option<(Instant, Arc<Metadata>)>>,
    shared: tokio::sync::Mutex<Option<Shared>>,
}

/// A token that jobs share.
struct Shared {
    token: Secret,
    expires: Option<SystemTime>,
    until: Instant,
}

impl OAuth2 {
    pub fn new(settings: &config::OAuth2, variable: String, timeout: Duration) -> Self {
        Self(Arc::new(TokenEndpoint::new(settings, variable, timeout)))
    }
}

#[async_trait]
impl Source for OAuth2 {
    async fn fetch(&self, job: &Values, _: Slot) -> Fetched {
        let fetch = Fetch::new(&self.0, self.0.requested(&job.request));
        let fetched = fetch.attempts.within(fetch.variables(job), || fetch.place()).await;
        let expires = fetched.as_ref().ok().and_then(|(_, expires)| *expires);
        Fetched {
            expires,
            warnings: fetch.warnings.into_inner().unwrap_or_else(PoisonError::into_inner),
            ..Fetched::of(fetched.map(|(variables, _)| variables))
        }
    }

    fn needs_user(&self) -> bool {
        let file = self.0.settings.grant.token_file();
        file.is_some_and(config::Template::needs_user)
    }
}

impl TokenEndpoint {
    pub fn new(settings: &config::OAuth2, variable: String, timeout: Duration) -> Self {
        Self {
            remote: Remote::new(&settings.network, &SERVER),
            settings: Arc::new(settings.clone()),
            variable,
            timeout,
            metadata: tokio::sync::Mutex::default(),
            shared: tokio::sync::Mutex::default(),
        }
    }

    /// Asks for a token until the timeout, as often as what failed may pass.
    pub async fn token(self: &Arc<Self>, subject: Subject) -> Result<Given, Error> {
        let fetch = Fetch::new(self, Arc::clone(&self.settings));
        fetch
            .attempts
            .within(fetch.token(Some(subject)), || fetch.place())
            .await
    }

    /// Returns the metadata of the server, which is named by its issuer.
    pub async fn metadata(self: &Arc<Self>) -> Result<Arc<Metadata>, Error> {
        let fetch = Fetch::new(self, Arc::clone(&self.settings));
        let attempts = &fetch.attempts;
        let found = attempts.run(|| self.discovered(attempts.request_limit()), || fetch.place());
        let found = attempts.within(found, || fetch.place()).await?;
        found.ok_or_else(|| Error::new(SERVER.unwell, "the key issuer is missing"))
    }

    /// Returns the settings with what the user requests in place of the defaults.
    fn requested(&self, request: &TokenRequest) -> Arc<config::OAuth2> {
        if *request == TokenRequest::default() {
            return Arc::clone(&self.settings);
        }
        let mut settings = config::OAuth2::clone(&self.settings);
        if let Some(audience) = &request.audience {
            settings.audience = vec![audience.clone()];
        }
        if request.scope.is_some() {
            settings.scope.clone_from(&request.scope);
        }
        if let Grant::ClientCredentials { share } = &mut settings.grant {
            // It is not the one that others share.
            *share = false;
        }
        Arc::new(settings)
    }

    /// Returns where tokens are asked for, and whom for a JWT by which the client authenticates is.
    async fn endpoint(&self, limit: Duration) -> Result<(String, String), SourceError> {
        let metadata = self.discovered(limit).await?;
        Ok(match (&self.settings.server, metadata) {
            (AuthorizationServer::Issuer(issuer), Some(metadata)) => (metadata.address.clone(), issuer.clone()),
            (AuthorizationServer::TokenEndpoint(url) | AuthorizationServer::Issuer(url), _) => {
                (url.clone(), url.clone())
            }
        })
    }

    /// Returns the metadata of the server; none if the configuration names its token endpoint.
    async fn discovered(&self, limit: Duration) -> Result<Option<Arc<Metadata>>, SourceError> {
        let AuthorizationServer::Issuer(issuer) = &self.settings.server else {
            return Ok(None);
        };
        // One delivery asks, while the others wait.
        let mut known = self.metadata.lock().await;
        if let Some((at, metadata)) = &*known
            && at.elapsed() < METADATA_AGE
        {
            return Ok(Some(Arc::clone(metadata)));
        }
        let metadata = Arc::new(self.remote.discover(issuer, Need::Tokens, limit).await?);
        *known = Some((Instant::now(), Arc::clone(&metadata)));
        Ok(Some(metadata))
    }

    /// Asks for a token once. A refresh token that comes with it is stored before this returns.
    async fn ask(
        self: Arc<Self>,
        settings: Arc<config::OAuth2>,
        subject: Option<Arc<Subject>>,
        limit: Duration,
    ) -> Result<Given, SourceError> {
        let (endpoint, audience) = self.endpoint(limit).await?;
        let how = self.settings.authentication.clone();
        // It is read each time, since it may have been changed, and it is not kept.
        let client = self.remote.files.read(&SERVER, move || Client::read(&how)).await??;
        let request = client.request(&settings, subject.as_deref(), &audience)?;
        let max = max_value(&self.variable);
        let answered = self
            .remote
            .post(
                &endpoint,
                request.authorization,
                request.form,
                answer::max_body(max),
                limit,
            )
            .await;
        let is_exchanged = matches!(subject.as_deref(), Some(Subject::Exchanged { .. }));
        let given = answered.and_then(|answer| answer::read(&self.remote, &answer, &request.secrets, is_exchanged));
        let given = given.map_err(|error| error.at(&endpoint))?;
        if let Some(Subject::Held(held)) = subject.as_deref() {
            let (held, next, id_token) = (Arc::clone(held), given.refresh_token.clone(), given.id_token.clone());
            let replace = move || held.replace(next.as_ref(), id_token.as_ref());
            self.remote.files.read(&SERVER, replace).await??;
        }
        Ok(given)
    }
}

/// The fetch for one job.
struct Fetch<'a> {
    of: &'a Arc<TokenEndpoint>,
    settings: Arc<config::OAuth2>,
    attempts: Attempts,
    /// Set after the token endpoint was missing once, and may have moved.
    moved: AtomicBool,
    warnings: Mutex<Vec<String>>,
}

impl<'a> Fetch<'a> {
    fn new(of: &'a Arc<TokenEndpoint>, settings: Arc<config::OAuth2>) -> Self {
        Self {
            of,
            settings,
            attempts: Attempts::new(&SERVER, of.timeout),
            moved: AtomicBool::new(false),
            warnings: Mutex::default(),
        }
    }

    /// Returns the token as a variable, and when it expires, if the server states that.
    async fn variables(&self, job: &Values) -> Result<(Variables, Option<SystemTime>), Error> {
        let Given { token, expires, .. } = match &self.settings.grant {
            // No rule has the second one.
            Grant::ClientCredentials { share: false } | Grant::AuthorizationCode => self.token(None).await?,
            Grant::ClientCredentials { share: true } => self.shared().await?,
            Grant::TokenExchange {
                subject_token,
                subject_token_type,
            } => {
                let token = token_file::SUBJECT.of_user(subject_token, job).await?;
                let kind = subject_token_type.clone();
                self.token(Some(Subject::Exchanged { token, kind })).await?
            }
            Grant::Login { store, munge } => {
                let held = login_store::of_login(store, munge, job).await?;
                self.token(Some(Subject::Held(held))).await?
            }
            Grant::RefreshToken { refresh_token } => {
                let held = refresh::held(refresh_token, job).await?;
                self.token(Some(Subject::Held(held))).await?
            }
        };
        let bytes = Zeroizing::new(token.expose_secret().as_bytes().to_vec());
        let variables = variable(&self.of.variable, bytes)
            .map_err(|e| Error::new(SERVER.unwell, format!("{}: its access_token: {e}", self.place())))?;
        Ok((variables, expires))
    }

    /// The token that jobs share: another one when half of its life is over.
    async fn shared(&self) -> Result<Given, Error> {
        // One delivery asks, while the others wait.
        let mut shared = self.of.shared.lock().await;
        if let Some(shared) = &*shared
            && Instant::now() < shared.until
        {
            return Ok(Given {
                token: shared.token.clone(),
                expires: shared.expires,
                lifetime: None,
                refresh_token: None,
                id_token: None,
                scope: None,
            });
        }
        *shared = None;
        let began = Instant::now();
        let given = self.token(None).await?;
        // Where it is not said how long it is good, each job has its own.
        if let Some(lifetime) = given.lifetime
            && let Some(until) = began.checked_add(lifetime / 2)
        {
            *shared = Some(Shared {
                token: given.token.clone(),
                expires: given.expires,
                until,
            });
        }
        Ok(given)
    }

    async fn token(&self, subject: Option<Subject>) -> Result<Given, Error> {
        let subject = subject.map(Arc::new);
        let given = self.attempts.run(|| self.attempt(subject.clone()), || self.place());
        let given = given.await?;
        self.warn_of_scope(&given);
        Ok(given)
    }

    async fn attempt(&self, subject: Option<Arc<Subject>>) -> Result<Given, SourceError> {
        let asked = SystemTime::now();
        let is_held = matches!(subject.as_deref(), Some(Subject::Held(_)));
        let (of, settings) = (Arc::clone(self.of), Arc::clone(&self.settings));
        let ask = of.ask(settings, subject, self.attempts.request_limit());
        let mut given = match is_held {
            // The server may have replaced the token by now, so the answer is stored even if the job has ended.
            true => tokio::spawn(ask).await.unwrap_or_else(|_| Err(internal())),
            false => ask.await,
        };
        if let Err(error) = &mut given
            && error.retry == Retry::NotFound
        {
            // Its metadata, which are asked for again, may name another endpoint.
            *self.of.metadata.lock().await = None;
            let moved = self.moved.swap(true, Ordering::Relaxed);
            error.retry = if moved { Retry::Never } else { Retry::Backoff(None) };
        }
        if let Ok(given) = &mut given {
            let (shortest, longest) = LIFETIMES;
            let lifetime = given.lifetime.filter(|lifetime| *lifetime >= shortest);
            given.expires = lifetime.and_then(|lifetime| asked.checked_add(lifetime.min(longest)));
        }
        given
    }

    /// RFC 6749 section 3.3: a server may give less than it was asked for, and says so then.
    fn warn_of_scope(&self, given: &Given) {
        let asked = self.settings.scope.as_deref().unwrap_or_default();
        let Some(has) = &given.scope else { return };
        if asked.split(' ').any(|word| !has.split(' ').any(|other| other == word)) && !asked.is_empty() {
            let warning = format!(
                "{}: the token has the scope `{has}`, and `{asked}` was asked for",
                self.place()
            );
            self.warnings
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(warning);
        }
    }

    /// Returns the request and its server, for messages.
    fn place(&self) -> String {
        let settings = &self.of.settings;
        let server = match &settings.server {
            AuthorizationServer::Issuer(url) | AuthorizationServer::TokenEndpoint(url) => url,
        };
        format!("client {} at {server}", settings.client_id.escape_debug())
    }
}

/// Returns whether the server refuses, rather than being unwell.
pub(crate) fn is_refusal(error: &Error) -> bool {
    error.summary() == REFUSED
}

fn internal() -> SourceError {
    SourceError::permanent(SERVER.unwell, "an internal error", "see the log of the agent")
}
