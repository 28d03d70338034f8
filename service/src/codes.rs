// SPDX-License-Identifier: MIT OR Apache-2.0

//! Authorization codes in the state (RFC 6749 section 4.1.2).

use protocol::SecretText;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    clock::now,
    error::OAuthError,
    families,
    grantee::Grantee,
    random,
    settings::Client,
    state::{Kind, State, StateError},
    wanted::Wanted,
};

/// The lifetime of a code, in seconds: enough for a redirect (RFC 6749 section 4.1.2 allows at most ten minutes).
const LIFETIME: u64 = 60;

/// An authorization code.
#[derive(Serialize, Deserialize)]
pub struct Code {
    /// The client.
    pub client: String,
    /// The redirect URI to which the browser was sent with the code.
    pub redirect_uri: String,
    /// `code_challenge` of the method S256.
    pub challenge: String,
    /// The request that the user approved.
    pub wanted: Wanted,
    /// The user.
    pub grantee: Grantee,
    /// The family that began with the code, after its use.
    pub family: Option<String>,
}

/// A valid code.
pub struct Redeemed {
    /// The code.
    pub code: Code,
    id: SecretText,
    version: i64,
    expires: u64,
}

/// Issues a code.
///
/// # Errors
/// [`StateError`].
pub async fn issue(state: &State, code: &Code) -> Result<Zeroizing<String>, StateError> {
    let id = random::secret();
    let owner = &code.grantee.owner;
    state
        .insert(Kind::Code, &id, Some(owner), code, now() + LIFETIME)
        .await?;
    Ok(id)
}

/// Looks up a code of a client (RFC 6749 section 4.1.3).
///
/// # Errors
/// [`OAuthError::InvalidGrant`] if the code is not valid. If it was used before, its family ends.
pub async fn redeem(
    state: &State,
    client: &Client,
    id: &str,
    verifier: &str,
    redirect_uri: Option<&str>,
) -> Result<Redeemed, OAuthError> {
    let invalid = || OAuthError::InvalidGrant("the code is not valid".to_owned());
    let stored = state.get::<Code>(Kind::Code, id).await?.ok_or_else(invalid)?;
    let code = stored.value;
    if code.client != client.id {
        return Err(invalid());
    }
    let is_verifier = aws_lc_rs::constant_time::verify_slices_are_equal(
        code.challenge.as_bytes(),
        random::challenge(verifier).as_bytes(),
    );
    if let Some(family) = &code.family {
        // RFC 6749 section 4.1.2: a second use means that the code was stolen.
        families::end(state, family).await?;
    } else if is_verifier.is_ok() && redirect_uri == Some(&code.redirect_uri) {
        return Ok(Redeemed {
            code,
            id: SecretText(Zeroizing::new(id.to_owned())),
            version: stored.version,
            expires: stored.expires,
        });
    }
    // One failed attempt invalidates the code, so that it cannot be guessed.
    state.remove(Kind::Code, id).await?;
    Err(invalid())
}

/// Records that a family began with a code. Returns false if another request used the code first.
///
/// # Errors
/// [`StateError::Unavailable`].
pub async fn used(state: &State, redeemed: Redeemed, family: &str) -> Result<bool, StateError> {
    let Redeemed {
        mut code,
        id,
        version,
        expires,
    } = redeemed;
    code.family = Some(family.to_owned());
    state.replace(Kind::Code, &id.0, version, &code, expires).await
}
