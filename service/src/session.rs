//! Sessions of browsers: an opaque id in a cookie, and what belongs to it in the state.

use axum::http::{HeaderMap, HeaderValue, header};
use protocol::{LoggedIn, ProviderSession, SecretText};
use serde::{Deserialize, Serialize};
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
    /// The evidence for tokens of the user.
    pub ticket: SecretText,
    /// The user name on the cluster.
    pub user: String,
    /// The uid on the cluster.
    pub uid: u32,
    /// The projects.
    pub projects: Vec<String>,
    /// The hidden field of forms.
    pub csrf: SecretText,
    /// When it began, in seconds since 1970-01-01T00:00:00Z.
    pub since: u64,
    /// When it ends.
    pub expires: u64,
    /// The session at the provider.
    pub provider: ProviderSession,
    /// Where to log out at the provider.
    pub end_session: Option<String>,
}

/// A session of a browser that has shown its cookie.
pub struct Current {
    /// The value of the cookie.
    pub id: Zeroizing<String>,
    /// The session.
    pub session: Session,
}

/// The owner of a session that the provider can end by its name for it.
#[derive(Serialize, Deserialize)]
struct Owned {
    owner: String,
}

impl Session {
    /// Returns the owner of this session and of the logins that it allows, as the state names it.
    pub fn owner(&self) -> String {
        owner(self.provider.sub.as_deref().unwrap_or(&self.user))
    }

    /// Returns the parts of pages for this user.
    pub fn frame(&self, issuer: &IssuerUrl) -> Frame {
        Frame {
            base: issuer.path().to_owned(),
            user: Some(self.user.clone()),
            csrf: Some(self.csrf.0.to_string()),
            // The button to log out leads there.
            form_origins: self.end_session.iter().cloned().collect(),
        }
    }

    /// Returns whether a form was made for this session, by a page of the service.
    pub fn made(&self, form: &Form, headers: &HeaderMap, issuer: &IssuerUrl) -> bool {
        let csrf = form.get("csrf").unwrap_or_default();
        let is_ours = match headers.get(header::ORIGIN) {
            Some(origin) => origin == issuer.origin(),
            // Old browsers do not send it.
            None => true,
        };
        let expected = self.csrf.0.as_bytes();
        is_ours && aws_lc_rs::constant_time::verify_slices_are_equal(expected, csrf.as_bytes()).is_ok()
    }
}

/// The owner of the records of a user, by the subject at the provider.
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

/// Begins the session of a user who has logged in, and ends that which the browser had. Returns the cookie.
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
    state
        .insert(Kind::Session, &id, Some(&owner), &session, session.expires)
        .await?;
    if let Some(sid) = &session.provider.sid {
        let sid = format!("sid:{sid}");
        let owned = Owned { owner };
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

/// Ends a session.
///
/// # Errors
/// [`StateError::Unavailable`].
pub async fn end(state: &State, id: &str) -> Result<(), StateError> {
    state.remove(Kind::Session, id).await?;
    state.remove(Kind::ProviderSession, id).await?;
    Ok(())
}

/// The most sessions that one logout at the provider ends by its name for the session.
const MOST: u32 = 1000;

/// Ends the sessions that a logout at the provider is about, and all logins of the user if it is about no single session.
/// Returns their number.
///
/// # Errors
/// [`StateError::Unavailable`].
pub async fn end_of(state: &State, provider: &ProviderSession) -> Result<u64, StateError> {
    let Some(sid) = &provider.sid else {
        let Some(sub) = &provider.sub else { return Ok(0) };
        let owner = owner(sub);
        let sessions = state.remove_owned(Kind::Session, &owner).await?;
        return Ok(sessions + state.remove_owned(Kind::Family, &owner).await?);
    };
    let sid = format!("sid:{sid}");
    let mut ended = 0;
    for (digest, stored) in state.owned::<Owned>(Kind::ProviderSession, &sid, MOST).await? {
        let owner = stored.value.owner;
        if provider.sub.as_deref().is_none_or(|sub| owner == self::owner(sub)) {
            ended += u64::from(state.remove_digest(Kind::Session, &owner, &digest).await?);
            state.remove_digest(Kind::ProviderSession, &sid, &digest).await?;
        }
    }
    Ok(ended)
}
