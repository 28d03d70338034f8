// SPDX-License-Identifier: MIT OR Apache-2.0

//! Browser sessions: an opaque id in a cookie, and a record in the state.

use axum::http::{HeaderMap, HeaderValue, header};
use protocol::{LoggedIn, ProviderSession, SecretText};
use serde::{Deserialize, Serialize};
use token::Token;
use zeroize::Zeroizing;

use crate::{
    clock::now,
    cookies,
    form::Form,
    pages::Frame,
    random,
    settings::IssuerUrl,
    state::{Kind, State, StateError},
};

/// A session.
#[derive(Serialize, Deserialize)]
pub struct Session {
    /// The evidence with which the agent mints tokens of the user.
    pub ticket: SecretText,
    /// The user name on the cluster.
    pub user: String,
    /// The uid on the cluster.
    pub uid: u32,
    /// The projects.
    pub projects: Vec<String>,
    /// The hidden field `csrf` of forms.
    pub csrf: SecretText,
    /// When it began, in seconds since 1970-01-01T00:00:00Z.
    pub since: u64,
    /// When it ends.
    pub expires: u64,
    /// The session at the provider.
    pub provider: ProviderSession,
    /// The URL to log out at the provider.
    pub end_session: Option<String>,
}

/// The session of a request, by its cookie.
pub struct Current {
    /// The value of the cookie.
    pub id: Zeroizing<String>,
    /// The session.
    pub session: Session,
}

/// A session that the provider can end, by the provider's name of it.
#[derive(Serialize, Deserialize)]
struct Owned {
    owner: String,
    login: Option<Login>,
}

/// A login. Its revocation ends everything that depends on it.
#[derive(Clone, Serialize, Deserialize)]
pub struct Login {
    /// The claim `jti` of its ticket.
    pub jti: String,
    /// When it ends, in seconds since 1970-01-01T00:00:00Z.
    pub expires: u64,
}

impl Session {
    /// Returns the owner of this session and of the logins that it allows, as named in the state.
    pub fn owner(&self) -> String {
        owner(self.provider.sub.as_deref().unwrap_or(&self.user))
    }

    /// Returns the login that this session depends on.
    fn login(&self) -> Option<Login> {
        let ticket = Token::inspect(&self.ticket.0).ok()?;
        let jti = ticket.claims().as_map().get("jti")?.as_str()?.to_owned();
        let expires = self.expires;
        Some(Login { jti, expires })
    }

    /// Returns the common parts of pages for this user.
    pub fn frame(&self, issuer: &IssuerUrl) -> Frame {
        Frame {
            base: issuer.path().to_owned(),
            user: Some(self.user.clone()),
            csrf: Some(self.csrf.0.to_string()),
            // The response to the logout button redirects there.
            form_origins: self.end_session.iter().cloned().collect(),
        }
    }

    /// Returns whether a page of the service made a form for this session.
    pub fn made(&self, form: &Form, headers: &HeaderMap, issuer: &IssuerUrl) -> bool {
        let csrf = form.get("csrf").unwrap_or_default();
        let is_ours = match headers.get(header::ORIGIN) {
            Some(origin) => origin == issuer.origin(),
            // Old browsers do not send this header.
            None => true,
        };
        let expected = self.csrf.0.as_bytes();
        is_ours && aws_lc_rs::constant_time::verify_slices_are_equal(expected, csrf.as_bytes()).is_ok()
    }
}

/// Returns the owner of a user's records, by the subject at the provider.
fn owner(sub: &str) -> String {
    format!("sub:{sub}")
}

/// Returns the session of a browser.
///
/// # Errors
/// [`StateError::Unavailable`].
pub async fn current(state: &State, headers: &HeaderMap) -> Result<Option<Current>, StateError> {
    let Some(id) = cookies::get(headers, cookies::SESSION) else {
        return Ok(None);
    };
    let stored = state.get::<Session>(Kind::Session, id).await?;
    Ok(stored.map(|stored| Current {
        id: Zeroizing::new(id.to_owned()),
        session: stored.value,
    }))
}

/// The maximum number of sessions of one user.
const MOST_SESSIONS: u64 = 200;

/// Begins the session of a user who has logged in, and ends the browser's former session. Returns the cookie.
///
/// # Errors
/// [`StateError`].
pub async fn begin(state: &State, headers: &HeaderMap, login: LoggedIn) -> Result<(HeaderValue, Session), StateError> {
    let id = random::secret();
    let now = now();
    let session = Session {
        ticket: login.ticket,
        user: login.user,
        uid: login.uid,
        projects: login.projects,
        csrf: SecretText(random::secret()),
        since: now,
        expires: login.expires,
        provider: login.session,
        end_session: login.end_session,
    };
    let owner = session.owner();
    if state.count_owned(Kind::Session, &owner).await? >= MOST_SESSIONS {
        // No user needs this many sessions. End them all, so that this one can begin.
        state.remove_owned(Kind::Session, &owner).await?;
    }
    state
        .insert(Kind::Session, &id, Some(&owner), &session, session.expires)
        .await?;
    if let Some(sid) = &session.provider.sid {
        let sid = format!("sid:{sid}");
        let login = session.login();
        let owned = Owned { owner, login };
        state
            .insert(Kind::ProviderSession, &id, Some(&sid), &owned, session.expires)
            .await?;
    }
    if let Some(former) = cookies::get(headers, cookies::SESSION) {
        end(state, former).await?;
    }
    let cookie = cookies::set(cookies::SESSION, &id, session.expires.saturating_sub(now));
    Ok((cookie, session))
}

/// Ends a session. What the provider calls it is kept until its login ends: programs may act by this login, and a logout at the provider
/// must still find it.
///
/// # Errors
/// [`StateError::Unavailable`].
pub async fn end(state: &State, id: &str) -> Result<(), StateError> {
    state.remove(Kind::Session, id).await?;
    Ok(())
}

/// The maximum number of sessions to read at once.
const MOST: u32 = 1000;

/// Ends the sessions that a logout at the provider concerns. If the logout names no single session, also ends all
/// programs and sessions of the user. Returns the logins that they depend on.
///
/// # Errors
/// [`StateError::Unavailable`].
pub async fn end_of(state: &State, provider: &ProviderSession) -> Result<Vec<Login>, StateError> {
    let mut logins = Vec::new();
    let Some(sid) = &provider.sid else {
        let Some(sub) = &provider.sub else { return Ok(logins) };
        let owner = owner(sub);
        for (_, stored) in state.owned::<Session>(Kind::Session, &owner, MOST).await? {
            logins.extend(stored.value.login());
        }
        for kind in [Kind::Session, Kind::Family, Kind::Code] {
            state.remove_owned(kind, &owner).await?;
        }
        return Ok(logins);
    };
    let sid = format!("sid:{sid}");
    loop {
        let found = state.owned::<Owned>(Kind::ProviderSession, &sid, MOST).await?;
        let before = logins.len();
        for (digest, stored) in &found {
            let owner = &stored.value.owner;
            if provider.sub.as_deref().is_none_or(|sub| *owner == self::owner(sub)) {
                logins.extend(stored.value.login.clone());
                state.remove_digest(Kind::Session, owner, digest).await?;
                state.remove_digest(Kind::ProviderSession, &sid, digest).await?;
            }
        }
        if found.len() < MOST as usize || logins.len() == before {
            return Ok(logins);
        }
    }
}
