// SPDX-License-Identifier: MIT OR Apache-2.0

//! Logins of devices in the state (RFC 8628).

use protocol::SecretText;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use zeroize::Zeroizing;

use crate::{
    clock::now,
    error::OAuthError,
    failed::Failed,
    grantee::Grantee,
    random,
    settings::Client,
    state::{Kind, State, StateError, Stored},
    wanted::Wanted,
};

/// The time within which the user must log in, in seconds.
pub const LIFETIME: u64 = 600;

/// The shortest interval between two polls of a device, in seconds.
pub const INTERVAL: u64 = 5;

/// The maximum number of attempts to change a record that other requests change at the same time.
const CHANGES: u32 = 8;

/// The login of a device.
#[derive(Serialize, Deserialize)]
pub struct Device {
    /// The client, or `None` for a login for jobs, whose user has proved their identity.
    pub client: Option<String>,
    /// The request of the device.
    pub wanted: Wanted,
    /// The code that the user types, without its hyphen.
    pub user_code: String,
    /// The login for jobs, if it is one.
    pub job_login: Option<JobLogin>,
    /// The time of the last poll.
    asked: u64,
    decision: Decision,
}

/// A login for jobs.
#[derive(Clone, Serialize, Deserialize)]
pub struct JobLogin {
    /// The user of the cluster whose jobs the login serves.
    pub user: String,
    /// The evidence of the user's identity, for the agent.
    pub proof: SecretText,
}

#[derive(Serialize, Deserialize)]
enum Decision {
    Open,
    Denied,
    Allowed(Grantee),
}

/// A grant that the user approved.
pub enum Given {
    /// A token of a user.
    Token(Grantee, Wanted),
    /// A login for jobs, which returns no token.
    JobLogin,
}

/// Begins the login of a device. Returns the device code, and the code that the user types.
///
/// # Errors
/// [`StateError`].
pub async fn begin(
    state: &State,
    client: Option<String>,
    wanted: Wanted,
    job_login: Option<JobLogin>,
) -> Result<(Zeroizing<String>, String), StateError> {
    let (code, user_code, expires) = (random::secret(), random::user_code(), now() + LIFETIME);
    let device = Device {
        client,
        wanted,
        user_code: user_code.clone(),
        job_login,
        asked: 0,
        decision: Decision::Open,
    };
    state.insert(Kind::Device, &code, None, &device, expires).await?;
    // The state seals all values, so it may contain the device code.
    let value = SecretText(code.clone());
    state.insert(Kind::UserCode, &user_code, None, &value, expires).await?;
    Ok((code, user_code))
}

/// Returns the undecided login of the code that a user typed, with its device code.
///
/// # Errors
/// [`StateError::Unavailable`].
pub async fn typed(state: &State, code: &str) -> Result<Option<(SecretText, Device)>, StateError> {
    let Some(code) = random::typed(code) else {
        return Ok(None);
    };
    let Some(code) = state.get::<SecretText>(Kind::UserCode, &code).await? else {
        return Ok(None);
    };
    Ok(open(state, &code.value.0).await?.map(|device| (code.value, device)))
}

/// Returns an undecided login.
///
/// # Errors
/// [`StateError::Unavailable`].
pub async fn open(state: &State, code: &str) -> Result<Option<Device>, StateError> {
    let device = state.get::<Device>(Kind::Device, code).await?;
    let is_open = |device: &Stored<Device>| matches!(device.value.decision, Decision::Open);
    Ok(device.filter(is_open).map(|device| device.value))
}

/// Records the decision: a grantee approves the login, `None` denies it. The first decision counts.
///
/// # Errors
/// [`Failed`].
pub async fn decide(state: &State, code: &str, grantee: Option<Grantee>) -> Result<(), Failed> {
    for _ in 0..CHANGES {
        let stored = state.get::<Device>(Kind::Device, code).await?.ok_or(Failed::Stale)?;
        let mut device = stored.value;
        if !matches!(device.decision, Decision::Open) {
            return Err(Failed::Stale);
        }
        device.decision = grantee.clone().map_or(Decision::Denied, Decision::Allowed);
        // A poll of the device may have changed the record meanwhile.
        if state
            .replace(Kind::Device, code, stored.version, &device, stored.expires)
            .await?
        {
            state.remove(Kind::UserCode, &device.user_code).await?;
            return Ok(());
        }
    }
    Err(Failed::Unavailable)
}

/// Returns what the user approved (RFC 8628 section 3.5).
///
/// # Errors
/// [`OAuthError`].
pub async fn redeem(state: &State, client: Option<&Client>, code: &str) -> Result<Given, OAuthError> {
    let stored = state.get::<Device>(Kind::Device, code).await?;
    let stored = stored.ok_or(OAuthError::ExpiredToken)?;
    let mut device = stored.value;
    if device.client.is_some() && client.is_none() {
        return Err(OAuthError::InvalidClient);
    }
    if device.client.as_ref() != client.map(|client| &client.id) {
        return Err(OAuthError::ExpiredToken);
    }
    match device.decision {
        Decision::Open => {
            let now = now();
            if now.saturating_sub(device.asked) < INTERVAL - 1 {
                // Do not record this poll: anybody could send it.
                return Err(OAuthError::SlowDown);
            }
            device.asked = now;
            // If another request changed the record, the next poll sees the change.
            state
                .replace(Kind::Device, code, stored.version, &device, stored.expires)
                .await?;
            Err(OAuthError::AuthorizationPending)
        }
        Decision::Denied => {
            state.remove(Kind::Device, code).await?;
            Err(OAuthError::AccessDenied)
        }
        Decision::Allowed(_) if device.job_login.is_some() => {
            state.remove(Kind::Device, code).await?;
            Ok(Given::JobLogin)
        }
        Decision::Allowed(grantee) => Ok(Given::Token(grantee, device.wanted)),
    }
}

/// Consumes a device code. Returns false if another request consumed it first.
///
/// # Errors
/// [`StateError::Unavailable`].
pub async fn take(state: &State, code: &str) -> Result<bool, StateError> {
    Ok(state.take::<IgnoredAny>(Kind::Device, code).await?.is_some())
}
