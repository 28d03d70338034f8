// SPDX-License-Identifier: MIT OR Apache-2.0

//! `source = "oauth2"`: tokens of an external authorization server, by client credentials (RFC 6749 section 4.4), token
//! exchange (RFC 8693), or a refresh token (RFC 6749 section 6).
//!
//! Retryable errors are retried with backoff until the rule's timeout. [`request`] forms requests, and [`answer`]
//! parses answers.

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
pub use self::{examine::examine_oauth2, login_store::LoginStore, refresh::rotations_ended};
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

/// The authorization server in messages.
pub(crate) static SERVER: Peer = Peer {
    server: "an authorization server",
    unreachable: "the authorization server that its token comes from could not be reached",
    unwell: "the authorization server that its token comes from returned no usable answer",
    credential: "the site's access to the authorization server that its token comes from is not set up correctly",
    address: "the key issuer or token-endpoint",
    authorities: "ca-file",
    name: None,
    client_certificate: None,
};

/// The text for the user if the server refuses the request.
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

    /// Requests a token. Retries retryable errors until the timeout.
    pub async fn token(self: &Arc<Self>, subject: Subject) -> Result<Given, Error> {
        let fetch = Fetch::new(self, Arc::clone(&self.settings));
        fetch
            .attempts
            .within(fetch.token(Some(subject)), || fetch.place())
            .await
    }

    /// Returns the metadata of the server, which must be configured by its issuer.
    pub async fn metadata(self: &Arc<Self>) -> Result<Arc<Metadata>, Error> {
        let fetch = Fetch::new(self, Arc::clone(&self.settings));
        let attempts = &fetch.attempts;
        let found = attempts.run(|| self.discovered(attempts.request_limit()), || fetch.place());
        let found = attempts.within(found, || fetch.place()).await?;
        found.ok_or_else(|| Error::new(SERVER.unwell, "the key issuer is missing"))
    }

    /// Returns the settings with the requested values in place of the defaults.
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
            // A token for a request must not be shared with other jobs.
            *share = false;
        }
        Arc::new(settings)
    }

    /// Returns the token endpoint, and the audience of a JWT that authenticates the client.
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
        // One delivery fetches the metadata while the others wait.
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

    /// Sends one token request. Stores a new refresh token before it returns.
    async fn ask(
        self: Arc<Self>,
        settings: Arc<config::OAuth2>,
        subject: Option<Arc<Subject>>,
        limit: Duration,
    ) -> Result<Given, SourceError> {
        let (endpoint, audience) = self.endpoint(limit).await?;
        let how = self.settings.authentication.clone();
        // The credential may change, and must not stay in memory, so it is read for each request.
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
    /// Set after the token endpoint was not found once, because it may have moved.
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

    /// Returns the token as a variable, and its expiry, if the server states it.
    async fn variables(&self, job: &Values) -> Result<(Variables, Option<SystemTime>), Error> {
        let Given { token, expires, .. } = match &self.settings.grant {
            // No rule has the grant `AuthorizationCode`.
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

    /// Returns the token that jobs share. Requests a new one after half of its lifetime.
    async fn shared(&self) -> Result<Given, Error> {
        // One delivery requests the token while the others wait.
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
        // If the server does not state the lifetime, each job gets its own token.
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
            // The server may replace the token, so the answer is stored even if the fetch is dropped.
            true => {
                let rotation = refresh::rotation().await;
                let ask = async move {
                    let answer = ask.await;
                    drop(rotation);
                    answer
                };
                tokio::spawn(ask).await.unwrap_or_else(|_| Err(internal()))
            }
            false => ask.await,
        };
        if let Err(error) = &mut given
            && error.retry == Retry::NotFound
        {
            // The metadata are fetched again, and may name another endpoint.
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

    /// Warns if the server granted less than the requested scope, which it then states (RFC 6749 section 3.3).
    fn warn_of_scope(&self, given: &Given) {
        let asked = self.settings.scope.as_deref().unwrap_or_default();
        let Some(has) = &given.scope else { return };
        if asked.split(' ').any(|word| !has.split(' ').any(|other| other == word)) && !asked.is_empty() {
            let warning = format!(
                "{}: the token has the scope `{has}`, but the scope `{asked}` was requested",
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

/// Returns whether the server refused the request, as opposed to other failures.
pub(crate) fn is_refusal(error: &Error) -> bool {
    error.summary() == REFUSED
}

fn internal() -> SourceError {
    SourceError::permanent(SERVER.unwell, "an internal error", "see the log of the agent")
}
