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

/// The lifetime of a code, in seconds: that of a redirection (RFC 6749 section 4.1.2 has ten minutes at most).
const LIFETIME: u64 = 60;

/// An authorization code.
#[derive(Serialize, Deserialize)]
pub struct Code {
    /// The client.
    pub client: String,
    /// Where the browser was sent with it.
    pub redirect_uri: String,
    /// `code_challenge` of the method S256.
    pub challenge: String,
    /// What the user has allowed.
    pub wanted: Wanted,
    /// The user.
    pub grantee: Grantee,
    /// The family that began with it, once it was used.
    pub family: Option<String>,
}

/// A code that is valid.
pub struct Redeemed {
    /// What it is for.
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

/// Finds a code of a client (RFC 6749 section 4.1.3).
///
/// # Errors
/// [`OAuthError::InvalidGrant`]: it is not valid. If it was used before, what began with it ends.
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
        // RFC 6749 section 4.1.2: somebody has stolen it.
        families::end(state, family).await?;
    } else if is_verifier.is_ok() && redirect_uri == Some(&code.redirect_uri) {
        return Ok(Redeemed {
            code,
            id: SecretText(Zeroizing::new(id.to_owned())),
            version: stored.version,
            expires: stored.expires,
        });
    }
    // It is good once, also for whoever guesses.
    state.remove(Kind::Code, id).await?;
    Err(invalid())
}

/// Notes that a code was used for a family. Returns whether nobody else has used it.
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
