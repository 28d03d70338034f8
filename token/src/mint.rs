// SPDX-License-Identifier: MIT OR Apache-2.0

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::SecretString;

use crate::{Name, Scope, Session, SigningKey, StatusEntry};

/// The claims of a token to be issued.
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
    /// The lifetime, in whole seconds: `exp` less `iat`. [`workflow_lifetime`] returns it for a job.
    pub lifetime: Duration,
    /// The grant.
    pub grant: Grant,
    /// `status`: its entry in a Status List, if it has one.
    pub status: Option<StatusEntry>,
}

/// The grant of a token: its [`Scope`], and the claims that belong to it.
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
    /// Its id: in F58, or a number of Slurm.
    pub id: Session,
    /// The user id of the job owner.
    pub uid: u32,
    /// The Flux instance or the cluster that it runs in.
    pub instance: String,
    /// Its scheduler.
    pub scheduler: JobScheduler,
}

/// The scheduler of a job. Its name is that of the claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum JobScheduler {
    /// The claim `flux`.
    #[default]
    Flux,
    /// The claim `slurm`.
    Slurm {
        /// The job id and the index of an array task.
        array: Option<(u32, u32)>,
        /// The number of times that Slurm has requeued the job.
        restarts: u32,
    },
}

impl Grant {
    /// Its scope.
    ///
    /// ```
    /// use token::{Grant, Scope};
    ///
    /// assert_eq!(Grant::Workspaces(vec!["hydro".parse()?]).scope(), Scope::Workspace);
    /// # Ok::<(), token::NameError>(())
    /// ```
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
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use secrecy::ExposeSecret;
/// use token::{Algorithm, ClaimsToIssue, Grant, KeySet, SigningKey, Verifier, mint};
///
/// let key = SigningKey::generate(Algorithm::EdDsa);
/// let now = SystemTime::now();
/// let token = mint(&key, &ClaimsToIssue {
///     iss: "https://hpc.example.org".to_owned(),
///     sub: "alice".to_owned(),
///     aud: vec!["copy-offload".to_owned()],
///     iat: now,
///     lifetime: Duration::from_secs(600),
///     grant: Grant::Cluster,
///     status: None,
/// });
///
/// let verifier = Verifier::new(KeySet::from(key.verifying_key()))
///     .issuer("https://hpc.example.org")
///     .audience("copy-offload");
/// assert_eq!(verifier.verify(token.expose_secret(), now)?.sub(), Some("alice"));
/// # Ok::<(), token::VerifyError>(())
/// ```
pub fn mint(key: &SigningKey, claims: &ClaimsToIssue) -> SecretString {
    key.sign_jwt(to_json(claims).as_bytes())
}

/// Without a signature, it is no secret. It is pieced together by hand: to format it takes as long as to sign it.
fn to_json(claims: &ClaimsToIssue) -> String {
    let iat = claims.iat.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let exp = iat.saturating_add(claims.lifetime.as_secs());
    let mut json = Json(String::with_capacity(512));
    json.raw(r#"{"iss":"#).quoted(&claims.iss);
    json.raw(r#","sub":"#).quoted(&claims.sub);
    json.raw(r#","aud":"#).one_or_more(&claims.aud);
    json.raw(r#","exp":"#).number(exp);
    json.raw(r#","nbf":"#).number(iat);
    json.raw(r#","iat":"#).number(iat);
    json.raw(r#","jti":""#).random();
    json.raw(r#"","scope":""#).raw(claims.grant.scope().as_str()).raw("\"");
    match &claims.grant {
        Grant::Cluster => (),
        Grant::Workspaces(names) | Grant::System(names) => {
            json.raw(r#","workspace":"#).one_or_more(names);
        }
        Grant::Session { workspace, job } => {
            json.raw(r#","workspace":"#).quoted(workspace.as_str());
            let (claim, instance) = match job.scheduler {
                JobScheduler::Flux => (r#","flux":{"jobid":"#, r#","instance":"#),
                JobScheduler::Slurm { .. } => (r#","slurm":{"jobid":"#, r#","cluster":"#),
            };
            json.raw(claim).quoted(job.id.as_str());
            json.raw(r#","uid":"#).number(job.uid.into());
            json.raw(instance).quoted(&job.instance);
            if let JobScheduler::Slurm { array, restarts } = job.scheduler {
                if let Some((jobid, task)) = array {
                    json.raw(r#","array-jobid":"#).number(jobid.into());
                    json.raw(r#","array-task":"#).number(task.into());
                }
                json.raw(r#","restarts":"#).number(restarts.into());
            }
            json.raw("}");
        }
    }
    if let Some(StatusEntry { index, uri }) = &claims.status {
        json.raw(r#","status":{"status_list":{"idx":"#).number((*index).into());
        json.raw(r#","uri":"#).quoted(uri).raw("}}");
    }
    json.raw("}");
    json.0
}

struct Json(String);

impl Json {
    fn raw(&mut self, json: &str) -> &mut Self {
        self.0.push_str(json);
        self
    }

    fn quoted(&mut self, text: &str) -> &mut Self {
        if text.bytes().all(|b| b >= b' ' && b != b'"' && b != b'\\') {
            return self.raw("\"").raw(text).raw("\"");
        }
        self.raw(&crate::json::quoted(text))
    }

    /// A string, or an array of them where there are several or none.
    fn one_or_more<T: AsRef<str>>(&mut self, texts: &[T]) -> &mut Self {
        if let [only] = texts {
            return self.quoted(only.as_ref());
        }
        self.raw("[");
        for (i, text) in texts.iter().enumerate() {
            self.raw(if i > 0 { "," } else { "" }).quoted(text.as_ref());
        }
        self.raw("]")
    }

    fn number(&mut self, number: u64) -> &mut Self {
        // Writing to a string does not fail.
        let written = write!(self.0, "{number}");
        debug_assert_eq!(written, Ok(()));
        self
    }

    fn random(&mut self) -> &mut Self {
        let mut bytes = [0; 16];
        // aws-lc ends the process where there is no randomness.
        rand::fill(&mut bytes).expect("random bytes");
        URL_SAFE_NO_PAD.encode_string(bytes, &mut self.0);
        self
    }
}

/// How long the token of a job is good for: its time limit and a margin, and never more than `max`. A job without a
/// time limit has `None` or zero.
///
/// ```
/// use std::time::Duration;
/// use token::workflow_lifetime;
///
/// let [minute, hour, day] = [60, 3600, 86400].map(Duration::from_secs);
/// assert_eq!(workflow_lifetime(Some(hour), minute, day), hour + minute);
/// assert_eq!(workflow_lifetime(None, minute, day), day);
/// ```
pub fn workflow_lifetime(time_limit: Option<Duration>, margin: Duration, max: Duration) -> Duration {
    match time_limit {
        None | Some(Duration::ZERO) => max,
        Some(limit) => limit.saturating_add(margin).min(max),
    }
}
