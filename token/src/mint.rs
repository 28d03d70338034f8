use std::fmt::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rsa::rand_core::{OsRng, RngCore};
use secrecy::SecretString;
use zeroize::Zeroizing;

use crate::{Name, Scope, Session, SigningKey};

/// What a token is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimsToIssue {
    /// `iss`: who issues it.
    pub iss: String,
    /// `sub`: the principal that it is of. For a workflow token, the name of the job owner.
    pub sub: String,
    /// `aud`: the services that it is for. Without one, no service accepts it.
    pub aud: Vec<String>,
    /// `iat` and `nbf`: when it is issued. Fractions of a second are cut off.
    pub iat: SystemTime,
    /// How long it is good for from then on, in whole seconds: `exp` less `iat`. [`workflow_lifetime`] tells for a job.
    pub lifetime: Duration,
    /// What it is good for.
    pub grant: Grant,
}

/// What a token is good for: its [`Scope`], and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Everything.
    Cluster,
    /// These workspaces.
    Workspaces(Vec<Name>),
    /// For an executor: the workspaces that it is bound to.
    System(Vec<Name>),
    /// One job, in its workspace.
    Session {
        /// The workspace of the job.
        workspace: Name,
        /// The job.
        job: Job,
    },
}

/// The job of a workflow token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its id, in F58.
    pub id: Session,
    /// The user id of the job owner.
    pub uid: u32,
    /// The Flux instance that it runs in.
    pub instance: String,
}

impl Grant {
    /// Its scope.
    pub fn scope(&self) -> Scope {
        match self {
            Self::Cluster => Scope::Cluster,
            Self::Workspaces(_) => Scope::Workspace,
            Self::System(_) => Scope::System,
            Self::Session { .. } => Scope::Session,
        }
    }
}

/// Issues a token: a JWT (RFC 7519) of `"typ":"JWT"` that names its key, with a `jti` of its own of 128 random bits.
pub fn mint(key: &SigningKey, claims: &ClaimsToIssue) -> SecretString {
    key.sign_jwt(to_json(claims).as_bytes())
}

fn to_json(claims: &ClaimsToIssue) -> Zeroizing<String> {
    let mut json = Zeroizing::new(String::with_capacity(512));
    let iat = claims.iat.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let exp = iat.saturating_add(claims.lifetime.as_secs());
    let mut jti = [0; 16];
    OsRng.fill_bytes(&mut jti);
    let mut encoded = [0; 22];
    // 16 bytes are 22 characters, all of which are ASCII.
    let written = URL_SAFE_NO_PAD.encode_slice(jti, &mut encoded);
    debug_assert_eq!(written, Ok(encoded.len()));
    let jti = std::str::from_utf8(&encoded).unwrap_or_default();

    let written = write!(
        json,
        r#"{{"iss":{},"sub":{},"aud":{},"exp":{exp},"nbf":{iat},"iat":{iat},"jti":"{jti}","scope":"{}""#,
        Quoted(&claims.iss),
        Quoted(&claims.sub),
        OneOrMore(&claims.aud),
        claims.grant.scope(),
    )
    .and_then(|()| match &claims.grant {
        Grant::Cluster => Ok(()),
        Grant::Workspaces(names) | Grant::System(names) => write!(json, r#","workspace":{}"#, OneOrMore(names)),
        Grant::Session { workspace, job } => write!(
            json,
            r#","workspace":"{workspace}","flux":{{"jobid":"{}","uid":{},"instance":{}}}"#,
            job.id,
            job.uid,
            Quoted(&job.instance)
        ),
    });
    // Writing to a string does not fail.
    debug_assert_eq!(written, Ok(()));
    json.push('}');
    json
}

/// A JSON string.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.bytes().all(|b| b >= b' ' && b != b'"' && b != b'\\') {
            return write!(f, "\"{}\"", self.0);
        }
        f.write_str(&serde_json::to_string(self.0).map_err(|_| fmt::Error)?)
    }
}

/// A string, or an array of them where there are several or none.
struct OneOrMore<'a, T>(&'a [T]);

impl<T: AsRef<str>> fmt::Display for OneOrMore<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = self.0 {
            return Quoted(only.as_ref()).fmt(f);
        }
        f.write_char('[')?;
        for (i, text) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_char(',')?;
            }
            Quoted(text.as_ref()).fmt(f)?;
        }
        f.write_char(']')
    }
}

/// How long the token of a job is good for: its time limit and a margin, and never more than `max`. A job without a time
/// limit has `None` or zero.
pub fn workflow_lifetime(time_limit: Option<Duration>, margin: Duration, max: Duration) -> Duration {
    match time_limit {
        None | Some(Duration::ZERO) => max,
        Some(limit) => limit.saturating_add(margin).min(max),
    }
}
