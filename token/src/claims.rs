// SPDX-License-Identifier: MIT OR Apache-2.0

mod text;

use std::fmt;

use serde::de::MapAccess;

use crate::json::{self, Members, ObjectOr, Skipped, Value};
use crate::jws;
use crate::malformed::{Malformed, Segment};
use crate::status_claim::{RawStatus, StatusClaim};
use crate::times::Times;
use crate::{Name, NumericDate, Scope, Session, TokenKind, VerifyError};
use text::{Text, Texts, texts};

/// The claims of a token that was verified (RFC 7519 section 4).
///
/// They are kept as they came, in one piece.
#[derive(Clone)]
pub struct Claims {
    payload: String,
    exp: NumericDate,
    nbf: Option<NumericDate>,
    iat: Option<NumericDate>,
    iss: Option<Text>,
    sub: Option<Text>,
    jti: Option<Text>,
    aud: Texts,
    scope: Option<Scope>,
    workspaces: Texts,
    job: Option<JobTexts>,
    status: Option<(u32, Text)>,
}

/// The job of a workflow token, in the claim `flux` or `slurm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobClaim<'a> {
    /// `jobid`: the job's id, which is the name of its [`Session`].
    pub id: &'a str,
    /// `uid`: the user id of the job owner.
    pub uid: u32,
    /// `instance` of `flux`, `cluster` of `slurm`: the Flux instance or the cluster that the job runs in.
    pub instance: &'a str,
    /// Set if the claim is `slurm`.
    pub is_slurm: bool,
}

impl Claims {
    /// `iss`: who issued the token (RFC 7519 section 4.1.1).
    ///
    /// ```
    #[doc = include_str!("doc_example.txt")]
    /// let claims = verifier.verify(token, now)?;
    /// assert_eq!(claims.iss(), Some("https://hpc.example.org"));
    /// # Ok::<(), token::VerifyError>(())
    /// ```
    pub fn iss(&self) -> Option<&str> {
        self.iss.as_ref().map(|text| text.of(&self.payload))
    }

    /// `sub`: the principal that the token is of, which no other claim repeats (RFC 7519 section 4.1.2).
    ///
    /// ```
    #[doc = include_str!("doc_example.txt")]
    /// let claims = verifier.verify(token, now)?;
    /// assert_eq!(claims.sub(), Some("alice"));
    /// # Ok::<(), token::VerifyError>(())
    /// ```
    pub fn sub(&self) -> Option<&str> {
        self.sub.as_ref().map(|text| text.of(&self.payload))
    }

    /// `aud`: the services that the token is for, at least one (RFC 7519 section 4.1.3).
    ///
    /// ```
    #[doc = include_str!("doc_example.txt")]
    /// let claims = verifier.verify(token, now)?;
    /// assert!(claims.aud().eq(["copy-offload"]));
    /// # Ok::<(), token::VerifyError>(())
    /// ```
    pub fn aud(&self) -> impl Iterator<Item = &str> {
        self.aud.iter(&self.payload)
    }

    /// `exp`: from when on the token is not accepted (RFC 7519 section 4.1.4).
    ///
    /// ```
    #[doc = include_str!("doc_example.txt")]
    /// let claims = verifier.verify(token, now)?;
    /// assert_eq!(claims.exp().to_string(), "2027-01-15T08:10:00Z");
    /// # Ok::<(), token::VerifyError>(())
    /// ```
    pub fn exp(&self) -> NumericDate {
        self.exp
    }

    /// `nbf`: before when the token is not accepted (RFC 7519 section 4.1.5).
    ///
    /// ```
    #[doc = include_str!("doc_example.txt")]
    /// let claims = verifier.verify(token, now)?;
    /// assert_eq!(claims.nbf().map(|nbf| nbf.seconds()), Some(1_800_000_000.0));
    /// # Ok::<(), token::VerifyError>(())
    /// ```
    pub fn nbf(&self) -> Option<NumericDate> {
        self.nbf
    }

    /// `iat`: when the token was issued (RFC 7519 section 4.1.6).
    ///
    /// ```
    #[doc = include_str!("doc_example.txt")]
    /// let claims = verifier.verify(token, now)?;
    /// assert_eq!(claims.iat().map(|iat| iat.seconds()), Some(1_800_000_000.0));
    /// # Ok::<(), token::VerifyError>(())
    /// ```
    pub fn iat(&self) -> Option<NumericDate> {
        self.iat
    }

    /// `jti`: the name of the token (RFC 7519 section 4.1.7).
    ///
    /// ```
    #[doc = include_str!("doc_example.txt")]
    /// let claims = verifier.verify(token, now)?;
    /// // 128 random bits in base64url.
    /// assert_eq!(claims.jti().map(str::len), Some(22));
    /// # Ok::<(), token::VerifyError>(())
    /// ```
    pub fn jti(&self) -> Option<&str> {
        self.jti.as_ref().map(|text| text.of(&self.payload))
    }

    /// Returns the scope of the token; none if its claim `scope` is not a [`Scope`], as for other issuers.
    ///
    /// ```
    #[doc = include_str!("doc_example.txt")]
    /// let claims = verifier.verify(token, now)?;
    /// assert_eq!(claims.scope(), Some(Scope::Session));
    /// # Ok::<(), token::VerifyError>(())
    /// ```
    pub fn scope(&self) -> Option<Scope> {
        self.scope
    }

    /// Returns the kind of the token, if it has a [`scope`](Self::scope).
    ///
    /// ```
    #[doc = include_str!("doc_example.txt")]
    /// let claims = verifier.verify(token, now)?;
    /// assert_eq!(claims.kind(), Some(TokenKind::Workflow));
    /// # Ok::<(), token::VerifyError>(())
    /// ```
    pub fn kind(&self) -> Option<TokenKind> {
        self.scope.map(Scope::kind)
    }

    /// `workspace`: the workspaces that the token is limited to, each of which is a valid [`Name`]. None where it has
    /// no [`scope`](Self::scope).
    ///
    /// ```
    #[doc = include_str!("doc_example.txt")]
    /// let claims = verifier.verify(token, now)?;
    /// assert!(claims.workspaces().eq(["hydro"]));
    /// # Ok::<(), token::VerifyError>(())
    /// ```
    pub fn workspaces(&self) -> impl Iterator<Item = &str> {
        self.workspaces.iter(&self.payload)
    }

    /// The job of a workflow token.
    ///
    /// ```
    #[doc = include_str!("doc_example.txt")]
    /// let claims = verifier.verify(token, now)?;
    /// let job = claims.job().expect("the token of a job");
    /// assert_eq!((job.id, job.uid, job.instance, job.is_slurm), ("f4dVSvb", 1000, "ƒ2u", false));
    /// # Ok::<(), token::VerifyError>(())
    /// ```
    pub fn job(&self) -> Option<JobClaim<'_>> {
        self.job.as_ref().map(|job| JobClaim {
            id: job.id.of(&self.payload),
            uid: job.uid,
            instance: job.instance.of(&self.payload),
            is_slurm: job.is_slurm,
        })
    }

    /// `status`: the entry of the token in a Status List, if it has one (draft-ietf-oauth-status-list-20 section 6.2).
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    /// use secrecy::ExposeSecret;
    /// use token::{Algorithm, ClaimsToIssue, Grant, KeySet, SigningKey, StatusEntry, Verifier, mint};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let key = SigningKey::generate(Algorithm::EdDsa);
    /// let uri = "https://hpc.example.org/status/7".to_owned();
    /// let token = mint(&key, &ClaimsToIssue {
    ///     iss: "https://hpc.example.org".to_owned(),
    ///     sub: "alice".to_owned(),
    ///     aud: vec!["copy-offload".to_owned()],
    ///     iat: SystemTime::now(),
    ///     lifetime: Duration::from_secs(60),
    ///     grant: Grant::Cluster,
    ///     status: Some(StatusEntry { index: 5, uri }),
    /// });
    /// let verifier = Verifier::new(KeySet::from(key.verifying_key())).audience("copy-offload");
    /// let claims = verifier.verify(token.expose_secret(), SystemTime::now())?;
    /// let status = claims.status().ok_or("no status")?;
    /// assert_eq!((status.index, status.uri), (5, "https://hpc.example.org/status/7"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn status(&self) -> Option<StatusClaim<'_>> {
        self.status.as_ref().map(|(index, uri)| StatusClaim {
            index: *index,
            uri: uri.of(&self.payload),
        })
    }

    /// Any claim, by its name. It is read again at each call.
    ///
    /// ```
    #[doc = include_str!("doc_example.txt")]
    /// let claims = verifier.verify(token, now)?;
    /// assert_eq!(claims.get("sub"), Some("alice".into()));
    /// assert_eq!(claims.get("email"), None);
    /// # Ok::<(), token::VerifyError>(())
    /// ```
    pub fn get(&self, name: &str) -> Option<serde_json::Value> {
        // The payload was read before.
        let mut claims: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&self.payload).ok()?;
        claims.remove(name)
    }

    /// All claims, as JSON.
    ///
    /// ```
    #[doc = include_str!("doc_example.txt")]
    /// let claims = verifier.verify(token, now)?;
    /// assert!(claims.as_json().starts_with(r#"{"iss":"https://hpc.example.org","sub":"alice""#));
    /// # Ok::<(), token::VerifyError>(())
    /// ```
    pub fn as_json(&self) -> &str {
        &self.payload
    }

    pub(crate) fn read(payload: Vec<u8>) -> Result<Self, VerifyError> {
        jws::object_text(&payload, Segment::Claims)?;
        let payload = String::from_utf8(payload).map_err(|e| Malformed::NotUtf8 {
            segment: Segment::Claims,
            at: e.utf8_error().valid_up_to(),
        })?;
        let raw: Raw = jws::members(&payload, Segment::Claims)?;
        let text = |claim, value| match value {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(Text::new(text, &payload))),
            Some(_) => Err(VerifyError::InvalidClaim(claim)),
        };
        let scope = scope(raw.scope.as_ref())?;
        let (workspaces, job) = match scope {
            None => (Texts::None, None),
            Some(scope) => (
                workspaces(scope, raw.workspace, &payload)?,
                match (raw.flux, raw.slurm) {
                    (flux, None) => job(scope, flux, "flux", &payload)?,
                    (None, slurm) => job(scope, slurm, "slurm", &payload)?,
                    (Some(_), Some(_)) => return Err(VerifyError::InvalidClaim("slurm")),
                },
            ),
        };
        let status = match raw.status.map_or(Ok(None), RawStatus::entry) {
            Ok(entry) => entry.map(|(index, uri)| (index, Text::new(uri, &payload))),
            // Another issuer may have a claim of this name for something else.
            Err(_) if scope.is_none() => None,
            Err(malformed) => return Err(malformed),
        };
        let sub = text("sub", raw.sub)?;
        match &sub {
            None if scope.is_some() => return Err(VerifyError::Missing("sub")),
            Some(sub) if sub.of(&payload).is_empty() => return Err(VerifyError::InvalidClaim("sub")),
            _ => (),
        }
        let read = (
            raw.times.exp()?.ok_or(VerifyError::Missing("exp"))?,
            raw.times.nbf()?,
            raw.times.iat()?,
            text("iss", raw.iss)?,
            text("jti", raw.jti)?,
            texts("aud", raw.aud, &payload)?,
        );
        let (exp, nbf, iat, iss, jti, aud) = read;
        Ok(Self {
            exp,
            nbf,
            iat,
            iss,
            sub,
            jti,
            aud,
            scope,
            workspaces,
            job,
            status,
            payload,
        })
    }
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Claims").field(&self.payload).finish()
    }
}

#[derive(Default)]
struct Raw<'a> {
    times: Times<'a>,
    iss: Option<Value<'a>>,
    sub: Option<Value<'a>>,
    aud: Option<Value<'a>>,
    jti: Option<Value<'a>>,
    scope: Option<Value<'a>>,
    workspace: Option<Value<'a>>,
    flux: Option<Option<RawJob<'a>>>,
    slurm: Option<Option<RawJob<'a>>>,
    status: Option<RawStatus<'a>>,
}

impl<'de> Members<'de> for Raw<'de> {
    type Unknown = Skipped;

    fn take<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        match name {
            "iss" => json::value(map, &mut self.iss),
            "sub" => json::value(map, &mut self.sub),
            "aud" => json::value(map, &mut self.aud),
            "jti" => json::value(map, &mut self.jti),
            "scope" => json::value(map, &mut self.scope),
            "workspace" => json::value(map, &mut self.workspace),
            "flux" => {
                let ObjectOr(flux) = map.next_value()?;
                self.flux = Some(flux);
                Ok(true)
            }
            "slurm" => {
                let ObjectOr(slurm) = map.next_value()?;
                self.slurm = Some(slurm);
                Ok(true)
            }
            "status" => {
                self.status = Some(map.next_value()?);
                Ok(true)
            }
            name => self.times.take(name, map),
        }
    }
}

#[derive(Default)]
struct RawJob<'a> {
    jobid: Option<Value<'a>>,
    uid: Option<Value<'a>>,
    instance: Option<Value<'a>>,
    cluster: Option<Value<'a>>,
}

impl<'de> Members<'de> for RawJob<'de> {
    type Unknown = Skipped;

    fn take<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        match name {
            "jobid" => json::value(map, &mut self.jobid),
            "uid" => json::value(map, &mut self.uid),
            "instance" => json::value(map, &mut self.instance),
            "cluster" => json::value(map, &mut self.cluster),
            _ => Ok(false),
        }
    }
}

/// The one word of `scope` that is ours (RFC 8693 section 4.2: words, with spaces between).
fn scope(value: Option<&Value>) -> Result<Option<Scope>, VerifyError> {
    let Some(Value::Text(words)) = value else {
        return Ok(None);
    };
    let mut ours = words.split(' ').filter_map(|word| word.parse().ok());
    match (ours.next(), ours.next()) {
        (scope, None) => Ok(scope),
        _ => Err(VerifyError::InvalidClaim("scope")),
    }
}

fn workspaces(scope: Scope, value: Option<Value>, payload: &str) -> Result<Texts, VerifyError> {
    let workspaces = match value {
        None if scope == Scope::Cluster => return Ok(Texts::None),
        value => texts("workspace", value, payload)?,
    };
    let one = matches!(workspaces, Texts::One(_)) || scope != Scope::Session;
    if one && workspaces.iter(payload).all(Name::is_valid) {
        Ok(workspaces)
    } else {
        Err(VerifyError::InvalidClaim("workspace"))
    }
}

fn job(
    scope: Scope,
    job: Option<Option<RawJob>>,
    claim: &'static str,
    payload: &str,
) -> Result<Option<JobTexts>, VerifyError> {
    let is_slurm = claim == "slurm";
    let job = job.map(|job| job.map(|job| (if is_slurm { job.cluster } else { job.instance }, job.jobid, job.uid)));
    match job {
        None if scope == Scope::Session => Err(VerifyError::Missing(claim)),
        None => Ok(None),
        Some(Some((Some(Value::Text(instance)), Some(Value::Text(id)), Some(Value::Number(uid)))))
            if scope == Scope::Session
                && Session::is_valid(&id)
                && uid.fract() == 0.0
                && (0.0..=f64::from(u32::MAX)).contains(&uid) =>
        {
            Ok(Some(JobTexts {
                id: Text::new(id, payload),
                uid: uid as u32,
                instance: Text::new(instance, payload),
                is_slurm,
            }))
        }
        Some(_) => Err(VerifyError::InvalidClaim(claim)),
    }
}

#[derive(Clone)]
struct JobTexts {
    id: Text,
    uid: u32,
    instance: Text,
    is_slurm: bool,
}
