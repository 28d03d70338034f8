// SPDX-License-Identifier: MIT OR Apache-2.0

//! An OpenID provider (OpenID Connect Core section 3.1): the addresses for logins, and the identity of users.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use config::{Login, Trust};
use seal::{ExposeSecret, Secret};
use token::{Claims, Token};
use tokio::task::spawn_blocking;
use zeroize::Zeroizing;

use crate::{
    Error,
    oauth2::{LOGIN, LoginStore, Subject, TokenEndpoint, is_refusal},
    remote::await_here,
    verify::{TokenVerifier, Unverified},
};

/// The timeout of all requests of one login.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// The timeout for fetching the keys of the provider.
const KEYS: Duration = Duration::from_secs(5);

/// The types of logout tokens (OpenID Connect Back-Channel Logout 1.0 section 2.4). Some providers write `JWT`.
const LOGOUT_TYPES: [&str; 2] = ["logout+jwt", "JWT"];

/// The event of a logout token.
const LOGOUT_EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";

/// The longest age of a logout token.
const LOGOUT_AGE: Duration = Duration::from_secs(600);

/// An OpenID provider.
pub struct Provider {
    issuer: String,
    client_id: String,
    scope: String,
    endpoint: Arc<TokenEndpoint>,
    verifier: Arc<TokenVerifier>,
}

/// The parameters of an authorization request.
pub struct Authorization<'a> {
    /// `redirect_uri`.
    pub redirect_uri: &'a str,
    /// `state`.
    pub state: &'a str,
    /// `nonce`.
    pub nonce: &'a str,
    /// `code_challenge`, of the method S256.
    pub challenge: &'a str,
    /// Set to request a refresh token.
    pub is_offline: bool,
}

/// The code of a user who has logged in.
pub struct Code {
    /// The code.
    pub code: Secret,
    /// `code_verifier`.
    pub verifier: Secret,
    /// `redirect_uri`.
    pub redirect_uri: String,
    /// `nonce`.
    pub nonce: String,
}

/// A user who has logged in.
pub struct Identified {
    /// The claims of the identity token.
    pub claims: Claims,
    /// The identity token.
    pub id_token: Secret,
    /// The refresh token, if any.
    pub refresh_token: Option<Secret>,
}

/// The reason why a login failed.
#[derive(Debug)]
pub enum LoginError {
    /// The provider or this client rejected the login. The text is for the user.
    Refused(String),
    /// The provider returned no usable answer. The text is for the operator.
    Unavailable(String),
}

impl From<Error> for LoginError {
    fn from(error: Error) -> Self {
        match is_refusal(&error) {
            true => Self::Refused("the provider refused the login".to_owned()),
            false => Self::Unavailable(error.to_string()),
        }
    }
}

impl Provider {
    /// Returns the provider of a table `service.login`. It sends nothing before the first login.
    pub fn new(login: &Login, trust: &Trust, verifier: Arc<TokenVerifier>) -> Self {
        Self {
            issuer: trust.issuer.clone(),
            client_id: login.client.client_id.clone(),
            scope: login.client.scope.clone().unwrap_or_default(),
            endpoint: Arc::new(TokenEndpoint::new(&login.client, String::new(), TIMEOUT)),
            verifier,
        }
    }

    /// Returns the URL at which a user logs in (OpenID Connect Core section 3.1.2.1).
    ///
    /// # Errors
    /// [`LoginError::Unavailable`].
    pub async fn authorization_url(&self, authorization: &Authorization<'_>) -> Result<String, LoginError> {
        let metadata = self.endpoint.metadata().await?;
        let at = metadata.authorization.as_ref().ok_or_else(|| {
            LoginError::Unavailable(format!(
                "{}: its metadata contain no authorization_endpoint: check the configuration of the provider",
                self.issuer
            ))
        })?;
        let mut scope = self.scope.clone();
        let has_offline = scope.split(' ').any(|word| word == "offline_access");
        if authorization.is_offline && !has_offline {
            scope.push_str(" offline_access");
        }
        let mut parameters = vec![
            ("response_type", "code"),
            ("client_id", &self.client_id),
            ("redirect_uri", authorization.redirect_uri),
            ("scope", &scope),
            ("state", authorization.state),
            ("nonce", authorization.nonce),
            ("code_challenge", authorization.challenge),
            ("code_challenge_method", "S256"),
        ];
        if authorization.is_offline {
            // OpenID Connect Core section 11: offline access requires the consent of the user.
            parameters.push(("prompt", "consent"));
        }
        Ok(with_query(at, &parameters))
    }

    /// Returns the URL at which a user logs out, if the provider has one.
    pub async fn end_session(&self) -> Option<String> {
        let metadata = self.endpoint.metadata().await.ok()?;
        let at = metadata.end_session.as_ref()?;
        Some(with_query(at, &[("client_id", &self.client_id)]))
    }

    /// Exchanges a code for the identity of the user (OpenID Connect Core section 3.1.3).
    ///
    /// # Errors
    /// [`LoginError`].
    pub async fn identify(&self, code: Code) -> Result<Identified, LoginError> {
        let subject = Subject::Code {
            code: code.code,
            verifier: code.verifier,
            redirect_uri: code.redirect_uri,
        };
        let given = self.endpoint.token(subject).await?;
        let id_token = given.id_token.ok_or_else(|| {
            LoginError::Unavailable(format!(
                "{}: it returned no identity token: add openid to scope",
                self.issuer
            ))
        })?;
        let claims = verify(Arc::clone(&self.verifier), id_token.clone()).await?;
        let text = |name: &str| Some(claims.get(name)?.as_str()?.to_owned());
        if text("nonce").as_ref() != Some(&code.nonce) {
            return Err(LoginError::Refused(
                "the identity token belongs to another login".to_owned(),
            ));
        }
        let is_ours = claims.aud().any(|aud| aud == self.client_id);
        // OpenID Connect Core section 3.1.3.7.
        let is_authorized = match text("azp") {
            Some(azp) => azp == self.client_id,
            None => claims.aud().count() == 1,
        };
        if !is_ours || !is_authorized {
            return Err(LoginError::Refused(
                "the identity token is for another client".to_owned(),
            ));
        }
        Ok(Identified {
            claims,
            id_token,
            refresh_token: given.refresh_token,
        })
    }

    /// Verifies a logout token (OpenID Connect Back-Channel Logout 1.0 section 2.6). Returns its claims `sub` and
    /// `sid`.
    ///
    /// # Errors
    /// [`LoginError`].
    pub async fn logout(&self, token: Secret) -> Result<(Option<String>, Option<String>), LoginError> {
        let refused = || LoginError::Refused("the logout token is not valid".to_owned());
        let verifier = Arc::new(self.verifier.of_types(&LOGOUT_TYPES));
        let claims = verify(verifier, token).await?;
        let text = |name: &str| Some(claims.get(name)?.as_str()?.to_owned());
        let is_logout = claims
            .get("events")
            .is_some_and(|events| events.get(LOGOUT_EVENT).is_some_and(serde_json::Value::is_object));
        let age = SystemTime::UNIX_EPOCH.elapsed().map_or(f64::MAX, |now| {
            now.as_secs_f64() - claims.iat().map_or(0.0, token::NumericDate::seconds)
        });
        let is_ours = claims.aud().any(|aud| aud == self.client_id);
        let (sub, sid) = (text("sub"), text("sid"));
        let is_valid = is_logout && is_ours && claims.get("nonce").is_none() && age < LOGOUT_AGE.as_secs_f64();
        match is_valid && (sub.is_some() || sid.is_some()) {
            true => Ok((sub, sid)),
            false => Err(refused()),
        }
    }
}

/// The shortest remaining lifetime of an identity token that is used again, in seconds.
const LEFT: f64 = 30.0;

/// Returns the identity token of the login of a user: the stored one, or a new one from the provider if it has expired.
/// None if the user has not logged in. The token is not verified. Blocks.
///
/// # Errors
/// For the user and the operator: the login cannot be used, or the provider returns no identity token.
pub(crate) fn identity_token(client: &config::OAuth2, uid: u32) -> Result<Option<Zeroizing<String>>, Error> {
    let config::Grant::Login { store, munge } = &client.grant else {
        return Ok(None);
    };
    let munge = munge.client().map_err(|e| LOGIN.failed("cannot be used", store, &e))?;
    let store = LoginStore::new(store, munge);
    if store.since(uid)?.is_none() {
        return Ok(None);
    }
    let text = |token: &Secret| Some(Zeroizing::new(token.expose_secret().to_owned()));
    let held = store.take_soon(uid)?;
    if let Some(token) = held.id_token().filter(|token| is_fresh(token)) {
        return Ok(text(token));
    }
    let endpoint = Arc::new(TokenEndpoint::new(client, String::new(), TIMEOUT));
    let given = await_here(endpoint.token(Subject::Held(held)));
    let given = given.map_err(|e| Error::new("its login could not be used", e))??;
    match &given.id_token {
        Some(token) => Ok(text(token)),
        None => Err(Error::new(
            "its login has expired: log in again",
            "the provider returns no identity token for a refresh token",
        )),
    }
}

fn is_fresh(token: &Secret) -> bool {
    let Ok(token) = Token::inspect(token.expose_secret()) else {
        return false;
    };
    let exp = token.claims().as_map().get("exp").and_then(serde_json::Value::as_f64);
    exp.is_some_and(|exp| exp - token::NumericDate::from(SystemTime::now()).seconds() > LEFT)
}

async fn verify(verifier: Arc<TokenVerifier>, token: Secret) -> Result<Claims, LoginError> {
    let verified = spawn_blocking(move || verifier.verify(token.expose_secret(), SystemTime::now()).0);
    match tokio::time::timeout(KEYS, verified).await {
        Ok(Ok(Ok(claims))) => Ok(claims),
        Ok(Ok(Err(Unverified::Refused(e)))) => Err(LoginError::Refused(format!("the token of the provider: {e}"))),
        Ok(Ok(Err(Unverified::NoKeys(e)))) => Err(LoginError::Unavailable(e.to_string())),
        Ok(Err(_)) => Err(LoginError::Unavailable("an internal error".to_owned())),
        Err(_) => Err(LoginError::Unavailable(
            "the keys of the provider could not be fetched in time".to_owned(),
        )),
    }
}

fn with_query(url: &str, parameters: &[(&str, &str)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(parameters);
    let separator = if url.contains('?') { '&' } else { '?' };
    format!("{url}{separator}{}", query.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_added_to_the_address_of_the_provider() {
        let url = with_query("https://a.example.org/authorize", &[("state", "a b&c"), ("x", "1")]);
        assert_eq!(url, "https://a.example.org/authorize?state=a+b%26c&x=1");
        assert_eq!(with_query("https://a/?p=1", &[("x", "1")]), "https://a/?p=1&x=1");
    }
}
