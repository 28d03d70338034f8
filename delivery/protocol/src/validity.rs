// SPDX-License-Identifier: MIT OR Apache-2.0

//! Questions to the agent about issued tokens, their revocation and their issuer.

use serde::{Deserialize, Serialize};

use crate::{
    Figures, Held, SecretText,
    login::{Bound, LoggedIn, LoginQuestion, ProviderSession},
};

/// The most subjects in one revocation.
pub const MAX_SUBJECTS: usize = 16;
/// The longest text of a subject, in bytes.
pub const MAX_TEXT: usize = 1024;

/// A question, the only message of its connection.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ask {
    /// [`VERSION`](crate::VERSION).
    pub version: u16,
    /// The question.
    pub question: Question,
}

/// A question to the agent.
#[derive(Debug, Serialize, Deserialize)]
pub enum Question {
    /// Asks whether a verified token is still valid.
    Check(TokenFacts),
    /// Revokes tokens. The agent answers after the revocation is on disk.
    Revoke {
        /// The tokens: those with any of these subjects.
        subjects: Vec<Subject>,
        /// The time for which the revocation is kept, in seconds: until the last of the tokens expires.
        keep_secs: u64,
    },
    /// A question to the issuer of the tokens.
    Issuer {
        /// The name of the issuer, the claim `iss` of its tokens.
        name: String,
        /// The question.
        question: IssuerQuestion,
    },
    /// Asks for the jobs of a user that hold tokens.
    Held {
        /// The uid of the user.
        uid: u32,
    },
    /// Asks for the figures of the agent.
    Figures,
}

/// A question to the issuer of tokens.
#[derive(Debug, Serialize, Deserialize)]
pub enum IssuerQuestion {
    /// Asks for its public keys.
    PublicKeys,
    /// Signs the response to an introspection (RFC 9701 section 5).
    SignIntrospection {
        /// The client that asked: the claim `aud` of the response.
        audience: String,
        /// The claim `token_introspection`, a JSON object.
        response: String,
    },
    /// Mints a token for a user or a client.
    Mint(MintRequest),
    /// A question about logins.
    Login(LoginQuestion),
    /// Asks for the numbers of its status lists.
    StatusLists,
    /// Asks for a signed status list (draft-ietf-oauth-status-list-20 section 5.1).
    StatusList {
        /// Its number.
        number: u32,
    },
}

/// A request for a token. The agent verifies the evidence and decides.
#[derive(Debug, Serialize, Deserialize)]
pub struct MintRequest {
    /// The proof of the subject.
    pub evidence: Evidence,
    /// The client, if it has authenticated to the service.
    pub client: Option<String>,
    /// The requested audiences; empty for all that are allowed.
    pub audience: Vec<String>,
    /// The requested scope; none for the allowed one.
    pub scope: Option<String>,
    /// The requested workspaces; empty for all that are allowed.
    pub workspaces: Vec<String>,
    /// The requested lifetime in seconds; none for the longest.
    pub lifetime_secs: Option<u64>,
}

/// The proof of the subject of a token.
#[derive(Debug, Serialize, Deserialize)]
pub enum Evidence {
    /// A MUNGE credential of the user, restricted to the agent, whose payload is that of [`munge_payload`].
    Munge(SecretText),
    /// A token: an identity token of a trusted issuer, or one of this issuer.
    Token(SecretText),
    /// The client itself is the subject.
    Client,
    /// A login of the user: [`LoggedIn::ticket`].
    Login(SecretText),
}

/// Returns the payload of a MUNGE credential that is exchanged for a token of an issuer. The agent rejects a credential
/// that was made for another purpose.
#[must_use]
pub fn munge_payload(issuer: &str) -> String {
    format!("workflow-token: a token of {issuer} for the user who encodes this")
}

/// The reason why no token is minted (RFC 6749 section 5.2, RFC 8693 section 2.2.2), for the requester.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    /// The class of the denial.
    pub code: DenialCode,
    /// The reason.
    pub text: String,
}

/// The class of a denial, with its OAuth 2.0 error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DenialCode {
    /// The evidence is not valid: `invalid_grant`.
    InvalidGrant,
    /// No grant covers these audiences: `invalid_target`.
    InvalidTarget,
    /// The scope, workspace or lifetime is wider than allowed: `invalid_scope`.
    InvalidScope,
    /// The client is not authorized: `unauthorized_client`.
    UnauthorizedClient,
}

/// An answer of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Question::Check`].
    Validity(Validity),
    /// To [`Question::Revoke`], and to a revocation by [`LoginQuestion::User`].
    Revoked,
    /// To [`IssuerQuestion::PublicKeys`]: a JWK Set (RFC 7517 section 5).
    PublicKeys(String),
    /// To [`IssuerQuestion::SignIntrospection`] and [`IssuerQuestion::StatusList`]: a JWT.
    Signed(String),
    /// To [`IssuerQuestion::Mint`]: a token.
    Minted(SecretText),
    /// To [`IssuerQuestion::Mint`] and [`IssuerQuestion::Login`]: the request is denied.
    Denied(Denial),
    /// The agent cannot answer the question. The reason is for the operator.
    Failed(String),
    /// To [`LoginQuestion::Begin`]: the URL.
    LoginAt(String),
    /// To [`LoginQuestion::Finish`].
    LoggedIn(Box<LoggedIn>),
    /// To [`LoginQuestion::LogoutToken`].
    LoggedOut(ProviderSession),
    /// To [`LoginQuestion::Bind`].
    Bound(Bound),
    /// To [`LoginQuestion::JobLogin`] and [`LoginQuestion::User`]: the time when the login began or was last used, in
    /// seconds since 1970-01-01T00:00:00Z; none if there is no login.
    JobLogin(Option<u64>),
    /// To [`Question::Held`], at most [`MAX_HELD`](crate::MAX_HELD).
    Held(Vec<Held>),
    /// To [`Question::Figures`].
    Figures(Figures),
    /// To [`IssuerQuestion::StatusLists`].
    StatusLists(Vec<u32>),
    /// To [`Question::Revoke`], and to a revocation by [`LoginQuestion::User`]: the key `revocations` of the agent is
    /// not set.
    NotStored,
}

/// The claims of a token that decide whether it is still valid.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TokenFacts {
    /// Its job, if it is bound to one.
    pub job: Option<JobFacts>,
    /// `jti` (RFC 7519 section 4.1.7).
    pub jti: Option<String>,
    /// `sub`.
    pub sub: Option<String>,
    /// `iat`, in seconds since 1970-01-01T00:00:00Z.
    pub iat: Option<f64>,
}

/// The job that a token is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFacts {
    /// The instance of Flux, or the cluster of Slurm.
    pub instance: String,
    /// The job id.
    pub jobid: u64,
    /// The uid of the job owner.
    pub uid: u32,
}

#[cfg(feature = "token")]
impl TokenFacts {
    /// Returns the facts of a verified token; none if it names a job by an id that its scheduler does not use.
    #[must_use]
    pub fn of(claims: &token::Claims) -> Option<Self> {
        let job = match claims.job() {
            Some(job) => Some(JobFacts::of_claim(job.id, job.is_slurm, job.instance, job.uid)?),
            None => None,
        };
        Some(Self {
            job,
            jti: claims.jti().map(str::to_owned),
            sub: claims.sub().map(str::to_owned),
            iat: claims.iat().map(token::NumericDate::seconds),
        })
    }
}

impl JobFacts {
    /// Returns the job in the claim of a token; none if its scheduler does not use such ids.
    #[must_use]
    pub fn of_claim(id: &str, is_slurm: bool, instance: &str, uid: u32) -> Option<Self> {
        let jobid = if is_slurm { id.parse().ok()? } else { parse_f58(id)? };
        let instance = instance.to_owned();
        Some(Self { instance, jobid, uid })
    }
}

/// The digits of F58 (RFC 19 of Flux), which are those of base58.
const F58: &[u8] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

/// Returns the job id of a text in F58, which begins with `ƒ` or `f`.
fn parse_f58(id: &str) -> Option<u64> {
    let digits = id.strip_prefix(['ƒ', 'f']).filter(|digits| !digits.is_empty())?;
    digits.bytes().try_fold(0u64, |number, digit| {
        let digit = F58.iter().position(|each| *each == digit)?;
        number.checked_mul(58)?.checked_add(digit as u64)
    })
}

/// The end of a job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEnd {
    /// The time when the job ended, in seconds since 1970-01-01T00:00:00Z; none if the scheduler no longer knows it.
    pub at: Option<u64>,
}

/// The tokens that a revocation concerns.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// All tokens of a job, including those issued later.
    Job {
        /// The instance of Flux, or the cluster of Slurm; none for the only one that the agent serves.
        instance: Option<String>,
        /// The job id.
        jobid: u64,
    },
    /// The token with this `jti`.
    Jti(String),
    /// The tokens with this `sub` that were issued before the revocation.
    User(String),
    /// The tokens of jobs of this uid that were issued before the revocation.
    Uid(u32),
}

/// The validity of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Validity {
    /// The token was not revoked, and its job, if any, is active.
    Active,
    /// The job of the token has ended.
    Ended(JobEnd),
    /// The token was revoked.
    Revoked,
    /// The validity is unknown at the moment. The reason is for the operator.
    Unknown(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_ids_of_claims() {
        let id = |id, is_slurm| JobFacts::of_claim(id, is_slurm, "a", 0).map(|job| job.jobid);
        // As printed by `flux job id --to=f58`.
        for (text, number) in [
            ("f1", 0),
            ("f2", 1),
            ("f21", 58),
            ("ƒ2oLkTLb1", 3_972_106_551_296),
            ("fjpXCZedGfVQ", u64::MAX),
        ] {
            assert_eq!(id(text, false), Some(number), "{text}");
        }
        for text in ["", "f", "1", "f0", "fO", "f1 ", "fjpXCZedGfVR", "fzzzzzzzzzzzz"] {
            assert_eq!(id(text, false), None, "{text}");
        }
        assert_eq!((id("17", true), id("f2", true), id("-1", true)), (Some(17), None, None));
    }
}
