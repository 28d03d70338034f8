// SPDX-License-Identifier: MIT OR Apache-2.0

//! Refresh tokens (RFC 6749 section 6). Each is valid once, and is exchanged for the next one: they form a family. The
//! use of a former token shows that one was stolen, so the family ends (RFC 9700 section 4.14.2).

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA256, digest},
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    clock::now,
    error::OAuthError,
    grantee::Grantee,
    log::Kind as Line,
    random,
    settings::Client,
    state::{Kind, State, StateError, Stored},
    wanted::Wanted,
};

static REUSED: Line = Line::new();

/// A family of refresh tokens.
#[derive(Serialize, Deserialize)]
pub struct Family {
    /// The client.
    pub client: String,
    /// When the family began, in seconds since 1970-01-01T00:00:00Z.
    pub since: u64,
    /// The user.
    pub grantee: Grantee,
    /// The request that the user approved.
    pub wanted: Wanted,
    /// The SHA-256 digest of the secret of the current token.
    current: Vec<u8>,
}

/// A valid refresh token.
pub struct Held {
    /// Its family.
    pub family: Family,
    id: String,
    version: i64,
}

/// The maximum number of families of one user.
const MOST: u64 = 200;

/// Begins a family. Returns its id and its first token.
///
/// # Errors
/// [`OAuthError`].
pub async fn begin(
    state: &State,
    client: &Client,
    wanted: Wanted,
    grantee: Grantee,
) -> Result<(String, Zeroizing<String>), OAuthError> {
    if state.count_owned(Kind::Family, &grantee.owner).await? >= MOST {
        let text = "too many programs may act for the user: end some of them at the page of the user";
        return Err(OAuthError::InvalidGrant(text.to_owned()));
    }
    let (id, secret) = (random::secret().to_string(), random::secret());
    let (owner, expires) = (grantee.owner.clone(), grantee.expires);
    let family = Family {
        client: client.id.clone(),
        since: now(),
        grantee,
        wanted,
        current: digest_of(&secret),
    };
    state.insert(Kind::Family, &id, Some(&owner), &family, expires).await?;
    let token = token(&id, &secret);
    Ok((id, token))
}

/// Looks up the family of a refresh token of a client.
///
/// # Errors
/// [`OAuthError::InvalidGrant`] if the token is not valid, or was used before. The latter ends its family.
pub async fn redeem(state: &State, client: &Client, token: &str) -> Result<Held, OAuthError> {
    let invalid = || OAuthError::InvalidGrant("the refresh token is not valid".to_owned());
    let (id, secret) = token.split_once('.').ok_or_else(invalid)?;
    let stored = state.get::<Family>(Kind::Family, id).await?;
    let Some(Stored { value, version, .. }) = stored.filter(|stored| stored.value.client == client.id) else {
        return Err(invalid());
    };
    if verify_slices_are_equal(&value.current, &digest_of(secret)).is_err() {
        end_reused(state, id, client).await?;
        return Err(invalid());
    }
    Ok(Held {
        family: value,
        id: id.to_owned(),
        version,
    })
}

/// Consumes a refresh token. Returns the next one.
///
/// # Errors
/// [`OAuthError::InvalidGrant`] if another request consumed it first, which ends its family.
pub async fn rotate(state: &State, client: &Client, held: Held) -> Result<Zeroizing<String>, OAuthError> {
    let Held {
        mut family,
        id,
        version,
    } = held;
    let secret = random::secret();
    family.current = digest_of(&secret);
    let expires = family.grantee.expires;
    match state.replace(Kind::Family, &id, version, &family, expires).await? {
        true => Ok(token(&id, &secret)),
        false => {
            end_reused(state, &id, client).await?;
            Err(OAuthError::InvalidGrant("the refresh token was used before".to_owned()))
        }
    }
}

/// Ends a family, by its id.
///
/// # Errors
/// [`StateError::Unavailable`].
pub async fn end(state: &State, id: &str) -> Result<(), StateError> {
    state.remove(Kind::Family, id).await.map(drop)
}

/// Ends the family of a refresh token of this client (RFC 7009 section 2.1). Returns false if the token has no family.
///
/// # Errors
/// [`StateError::Unavailable`].
pub async fn revoke(state: &State, client: &Client, token: &str) -> Result<bool, StateError> {
    let Some((id, _)) = token.split_once('.') else {
        return Ok(false);
    };
    match state.get::<Family>(Kind::Family, id).await? {
        Some(stored) if stored.value.client == client.id => state.remove(Kind::Family, id).await,
        _ => Ok(false),
    }
}

async fn end_reused(state: &State, id: &str, client: &Client) -> Result<(), StateError> {
    REUSED.log(format_args!(
        "a refresh token of the client {} was used twice: all tokens of its family were revoked",
        client.id.escape_debug()
    ));
    end(state, id).await
}

fn token(id: &str, secret: &str) -> Zeroizing<String> {
    Zeroizing::new(format!("{id}.{secret}"))
}

fn digest_of(secret: &str) -> Vec<u8> {
    digest(&SHA256, secret.as_bytes()).as_ref().to_vec()
}
