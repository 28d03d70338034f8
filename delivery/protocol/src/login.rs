// SPDX-License-Identifier: MIT OR Apache-2.0

//! Questions of the token service about logins of users at an OpenID provider. The agent holds the client secret and
//! the refresh tokens, so it sends the requests to the provider.

use serde::{Deserialize, Serialize};

use crate::SecretText;

/// A question about logins.
#[derive(Debug, Serialize, Deserialize)]
pub enum LoginQuestion {
    /// Begins a login. The answer is the URL at the provider.
    Begin(BeginLogin),
    /// Finishes a login. The answer is the user.
    Finish(FinishLogin),
    /// Asks for the session that a logout token of the provider ends (OpenID Connect Back-Channel Logout 1.0 section
    /// 2.4).
    LogoutToken(SecretText),
    /// Asks for the user who encoded a MUNGE credential whose payload is that of [`job_login_payload`] for
    /// [`JobLogin::Begin`].
    Bind(SecretText),
    /// A request about the login that serves the jobs of a user, with a MUNGE credential that proves the user.
    JobLogin {
        /// The request: [`JobLogin::Status`] or [`JobLogin::End`].
        request: JobLogin,
        /// The credential.
        credential: SecretText,
    },
    /// A request of a user who has logged in.
    User {
        /// [`LoggedIn::ticket`].
        ticket: SecretText,
        /// The request.
        request: UserRequest,
    },
}

/// A request of a logged-in user about the user's own login or jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UserRequest {
    /// Asks whether a login serves the jobs of the user.
    JobLogin,
    /// Ends that login.
    EndJobLogin,
    /// Revokes the tokens of a job.
    Revoke {
        /// The instance of Flux, or the cluster of Slurm.
        instance: String,
        /// The job id.
        jobid: u64,
    },
}

/// The start of a login. The service chooses all values and keeps them until the end of the login.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BeginLogin {
    /// The URL to which the provider redirects the browser.
    pub redirect_uri: String,
    /// `state` (RFC 6749 section 4.1.1).
    pub state: String,
    /// `nonce` (OpenID Connect Core section 3.1.2.1).
    pub nonce: String,
    /// `code_challenge` of the method S256 (RFC 7636 section 4.3).
    pub challenge: String,
    /// Set if the refresh token will serve jobs, so that the provider asks for the user's consent.
    pub is_for_jobs: bool,
}

/// The end of a login, with the response of the provider.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FinishLogin {
    /// The code (RFC 6749 section 4.1.2).
    pub code: SecretText,
    /// `code_verifier` (RFC 7636 section 4.1).
    pub verifier: SecretText,
    /// The `nonce` of [`BeginLogin`].
    pub nonce: String,
    /// The `redirect_uri` of [`BeginLogin`].
    pub redirect_uri: String,
    /// The parameter `iss` of the response, if it has one (RFC 9207).
    pub iss: Option<String>,
    /// For a login for jobs: [`Bound::proof`].
    pub binding: Option<SecretText>,
}

/// A user who has logged in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggedIn {
    /// The evidence for tokens of this user: [`Evidence::Login`](crate::Evidence::Login).
    pub ticket: SecretText,
    /// The user name on this cluster.
    pub user: String,
    /// The uid on this cluster.
    pub uid: u32,
    /// The projects of the user.
    pub projects: Vec<String>,
    /// The end of the login, in seconds since 1970-01-01T00:00:00Z.
    pub expires: u64,
    /// The session at the provider.
    pub session: ProviderSession,
    /// The URL at the provider at which the user logs out, if there is one (OpenID Connect RP-Initiated Logout 1.0
    /// section 2.1), without `post_logout_redirect_uri` and `state`.
    pub end_session: Option<String>,
}

/// A session at the provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderSession {
    /// `sub`: the user at the provider.
    pub sub: Option<String>,
    /// `sid`: the session; none means all sessions of the user.
    pub sid: Option<String>,
}

/// A user who will log in for jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// The user name on this cluster.
    pub user: String,
    /// Proves the user to the agent later.
    pub proof: SecretText,
}

/// A request about the login that serves the jobs of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobLogin {
    /// Begins a login.
    Begin,
    /// Asks whether there is a login.
    Status,
    /// Ends the login.
    End,
}

impl JobLogin {
    /// Returns its name in requests.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Begin => "login",
            Self::Status => "status",
            Self::End => "logout",
        }
    }
}

/// Returns the payload of a MUNGE credential for a request about the login for jobs. The agent rejects a credential
/// that was made for another purpose.
#[must_use]
pub fn job_login_payload(issuer: &str, request: JobLogin) -> String {
    let request = request.name();
    format!("workflow-token: {request} at {issuer} for the jobs of the user who encodes this")
}
