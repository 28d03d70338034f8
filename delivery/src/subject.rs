// SPDX-License-Identifier: MIT OR Apache-2.0

//! The subject of a token that is minted for a user or a client, and the grant that applies.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::{Duration, SystemTime},
};

use config::{EvidenceKind, ServiceGrant};
use nix::unistd::User;
use protocol::{Denial, DenialCode, Evidence, MintRequest, SecretText, munge_payload};
use source::verify::Unverified;
use token::Token;
use tokio::{task::spawn_blocking, time::timeout};

use crate::{Engine, Owner};

/// The longest time for verifying evidence: no caller waits longer.
const LIMIT: Duration = Duration::from_secs(5);

/// A token that may be minted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// The claim `sub`: the name of the user, or the id of the client.
    pub sub: String,
    /// Set if the subject is the client itself.
    pub is_client: bool,
    /// The audiences.
    pub audience: Vec<String>,
    /// The workspaces.
    pub workspaces: Vec<String>,
    /// The longest lifetime.
    pub lifetime: Duration,
}

/// The reason why no token is minted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// For the requester.
    Denied(Denial),
    /// The agent cannot decide at the moment. The reason is for the operator.
    Unknown(String),
}

impl From<Denial> for Refusal {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

/// Returns a denial.
pub fn denied(code: DenialCode, text: impl Into<String>) -> Denial {
    let text = text.into();
    Denial { code, text }
}

/// A user whose identity is proved.
pub(crate) struct Proved {
    pub owner: Arc<Owner>,
    pub name: String,
    /// The remaining validity of the proof, if it is limited.
    pub left: Option<Duration>,
}

impl Engine {
    /// Decides whether a request gets a token, and which one. `issuer` is the name of this issuer.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn grant(&self, issuer: &str, request: &MintRequest) -> Result<Granted, Refusal> {
        let service = self.config().agent.service.as_ref();
        let grants = service.map_or(&[][..], |service| &service.grants);
        if matches!(request.evidence, Evidence::Munge(_))
            && !grants.iter().any(|grant| is_for(grant, EvidenceKind::Munge, request))
        {
            // Do not send munged a request whose answer cannot matter.
            return Err(no_grant().into());
        }
        let (kind, proved) = match &request.evidence {
            Evidence::Client => (EvidenceKind::Client, None),
            Evidence::Munge(credential) => (
                EvidenceKind::Munge,
                Some(self.munge_user(&munge_payload(issuer), credential).await?),
            ),
            Evidence::Token(token) => {
                let (trust, proved) = self.identified(token, grants, request).await?;
                (EvidenceKind::Trust(trust), Some(proved))
            }
            // The agent handles logins before it calls this function.
            Evidence::Login(_) => return Err(Refusal::Unknown("an internal error".to_owned())),
        };
        self.granted(request, kind, proved)
    }

    /// Decides on a request of a user whose identity is proved.
    pub(crate) fn granted(
        &self,
        request: &MintRequest,
        kind: EvidenceKind,
        proved: Option<Proved>,
    ) -> Result<Granted, Refusal> {
        let service = self.config().agent.service.as_ref();
        let grants = service.map_or(&[][..], |service| &service.grants);
        let owner = proved.as_ref().map(|proved| &*proved.owner);
        let grant = choose(grants, kind, request, owner)?;
        let workspaces = match owner {
            Some(owner) if grant.workspaces.is_empty() => self.projects_of(owner),
            Some(owner) => self.admitted(&grant.workspaces, owner),
            None => grant.workspaces.clone(),
        };
        let left = proved.as_ref().and_then(|proved| proved.left);
        let lifetime = left.map_or(grant.max_lifetime, |left| left.min(grant.max_lifetime));
        Ok(Granted {
            sub: match &proved {
                Some(proved) => proved.name.clone(),
                // `choose` has found the client among those of the grant.
                None => request.client.clone().unwrap_or_default(),
            },
            is_client: owner.is_none(),
            audience: if request.audience.is_empty() {
                grant.audience.clone()
            } else {
                request.audience.clone()
            },
            workspaces: narrowed(&request.workspaces, workspaces)?,
            lifetime: requested_lifetime(request, lifetime)?,
        })
    }

    /// Returns the projects that a user is in.
    pub(crate) fn projects_of(&self, owner: &Owner) -> Vec<String> {
        let projects = self.config().projects.list.iter().filter(|project| project.has(owner));
        projects.map(|project| project.name.clone()).collect()
    }

    /// Returns these workspaces without the projects that a user is not in.
    fn admitted(&self, workspaces: &[String], owner: &Owner) -> Vec<String> {
        let projects = &self.config().projects.list;
        let is_admitted = |workspace: &&String| {
            let project = projects.iter().find(|project| project.name == **workspace);
            project.is_none_or(|project| project.has(owner))
        };
        workspaces.iter().filter(is_admitted).cloned().collect()
    }

    /// Returns the user who encoded a MUNGE credential for a purpose. The payload of the credential names the purpose.
    pub(crate) async fn munge_user(&self, purpose: &str, credential: &SecretText) -> Result<Proved, Refusal> {
        let (munge, credential) = (self.munge.clone(), credential.clone());
        let received = spawn_blocking(move || munge.receive(&credential.0));
        let received = timeout(self.config().timeout.min(LIMIT), received).await;
        let (payload, uid) = match received {
            Ok(Ok(Ok(received))) => received,
            Ok(Ok(Err(e))) if e.is_retryable() => return Err(Refusal::Unknown(e.to_string())),
            Ok(Ok(Err(e))) => return Err(denied(DenialCode::InvalidGrant, e.to_string()).into()),
            Ok(Err(_)) => return Err(Refusal::Unknown("an internal error".to_owned())),
            Err(_) => return Err(Refusal::Unknown("munged does not answer".to_owned())),
        };
        if *payload != *purpose.as_bytes() {
            let why = "the MUNGE credential was made for another purpose, or another issuer";
            return Err(denied(DenialCode::InvalidGrant, why).into());
        }
        self.proved(uid, None).await
    }

    /// Verifies an identity token. Returns the index of its issuer, and the user whom it names.
    async fn identified(
        &self,
        token: &SecretText,
        grants: &[ServiceGrant],
        request: &MintRequest,
    ) -> Result<(usize, Proved), Refusal> {
        let refused = |why: String| Refusal::Denied(denied(DenialCode::InvalidGrant, why));
        let issuer = Token::inspect(&token.0).ok().and_then(|token| {
            let issuer = token.claims().as_map().get("iss")?;
            issuer.as_str().map(str::to_owned)
        });
        let trusts = &self.config().trusts;
        let trust = trusts.iter().position(|trust| Some(&trust.issuer) == issuer.as_ref());
        let trust = trust.ok_or_else(|| refused("the issuer of the token is not trusted".to_owned()))?;
        let grant = grants
            .iter()
            .find(|grant| is_for(grant, EvidenceKind::Trust(trust), request));
        let grant =
            grant.ok_or_else(|| refused("no grant allows this client to exchange tokens of this issuer".to_owned()))?;
        let (verifier, token) = (Arc::clone(&self.verifiers[trust]), token.clone());
        let verified = spawn_blocking(move || verifier.verify(&token.0, SystemTime::now()).0);
        let claims = match timeout(self.config().timeout.min(LIMIT), verified).await {
            Ok(Ok(Ok(claims))) => claims,
            Ok(Ok(Err(Unverified::Refused(e)))) => return Err(refused(crate::identity::summary(&e).to_owned())),
            Ok(Ok(Err(Unverified::NoKeys(e)))) => return Err(Refusal::Unknown(e.to_string())),
            Ok(Err(_)) => return Err(Refusal::Unknown("an internal error".to_owned())),
            Err(_) => {
                return Err(Refusal::Unknown(
                    "the keys of the issuer could not be fetched before the timeout".to_owned(),
                ));
            }
        };
        let name = claims.get(&grant.user_claim);
        let name = name
            .as_ref()
            .and_then(|name| name.as_str())
            .unwrap_or_default()
            .to_owned();
        let uid = self.uid_of(&name).await?;
        let left = claims.exp().seconds() - now();
        let left = Duration::try_from_secs_f64(left).unwrap_or_default();
        Ok((trust, self.proved(uid, Some(left)).await?))
    }

    /// Returns the uid of the user whom an identity token names.
    pub(crate) async fn uid_of(&self, name: &str) -> Result<u32, Refusal> {
        let none = || {
            Refusal::Denied(denied(
                DenialCode::InvalidGrant,
                "the token names no user of this cluster",
            ))
        };
        if name.is_empty() || name.len() > config::MAX_NAME || name.contains('\0') {
            return Err(none());
        }
        let name = name.to_owned();
        // A hung look-up delays only look-ups of the same name.
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let looked_up = self
            .shared
            .lookups
            .run(hasher.finish() as u32, self.config().timeout, move || {
                User::from_name(&name).map_err(|e| e.to_string())
            });
        match looked_up.await.map_err(Refusal::Unknown)? {
            Ok(Some(user)) => Ok(user.uid.as_raw()),
            Ok(None) => Err(none()),
            Err(e) => Err(Refusal::Unknown(e)),
        }
    }

    pub(crate) async fn proved(&self, uid: u32, left: Option<Duration>) -> Result<Proved, Refusal> {
        let owner = self.look_up(uid).await.map_err(Refusal::Unknown)?;
        let name = owner.name.clone();
        let name = name.ok_or_else(|| denied(DenialCode::InvalidGrant, format!("uid {uid} has no user name")))?;
        Ok(Proved { owner, name, left })
    }
}

/// Returns whether a grant accepts this kind of evidence and this client, for any user.
fn is_for(grant: &ServiceGrant, kind: EvidenceKind, request: &MintRequest) -> bool {
    let is_client = |client: &String| grant.clients.contains(client);
    grant.evidence.contains(&kind) && (grant.clients.is_empty() || request.client.as_ref().is_some_and(is_client))
}

fn no_grant() -> Denial {
    denied(
        DenialCode::UnauthorizedClient,
        "no grant allows this client or kind of proof",
    )
}

/// Returns the first grant that covers a request.
fn choose<'a>(
    grants: &'a [ServiceGrant],
    kind: EvidenceKind,
    request: &MintRequest,
    owner: Option<&Owner>,
) -> Result<&'a ServiceGrant, Denial> {
    let mut of_kind = grants.iter().filter(|grant| is_for(grant, kind, request)).peekable();
    if of_kind.peek().is_none() {
        return Err(no_grant());
    }
    let mut of_user = of_kind
        .filter(|grant| owner.is_none_or(|owner| grant.admits(owner)))
        .peekable();
    if of_user.peek().is_none() {
        return Err(denied(DenialCode::InvalidGrant, "no grant is for this user"));
    }
    let has_all = |grant: &&ServiceGrant| {
        request
            .audience
            .iter()
            .all(|audience| grant.audience.contains(audience))
    };
    of_user
        .find(has_all)
        .ok_or_else(|| denied(DenialCode::InvalidTarget, "no grant is for this audience"))
}

/// Returns the requested workspaces, or all allowed ones if none is requested.
///
/// # Errors
/// A requested workspace is not allowed, or there are none.
pub fn narrowed(requested: &[String], allowed: Vec<String>) -> Result<Vec<String>, Denial> {
    if (1..requested.len()).any(|i| requested[..i].contains(&requested[i])) {
        return Err(denied(DenialCode::InvalidScope, "a project is repeated"));
    }
    if let Some(other) = requested.iter().find(|requested| !allowed.contains(requested)) {
        let text = format!("the project {} is not among those of the subject", other.escape_debug());
        return Err(denied(DenialCode::InvalidScope, text));
    }
    match (requested.is_empty(), allowed.is_empty()) {
        (false, _) => Ok(requested.to_vec()),
        (true, false) => Ok(allowed),
        (true, true) => Err(denied(DenialCode::InvalidScope, "the subject is in no project")),
    }
}

/// Returns the requested lifetime, at most `longest`.
///
/// # Errors
/// Less than one second is left.
pub fn requested_lifetime(request: &MintRequest, longest: Duration) -> Result<Duration, Denial> {
    let wanted = request.lifetime_secs.map_or(longest, Duration::from_secs).min(longest);
    // Lifetimes are whole seconds.
    match wanted.as_secs() {
        0 => Err(denied(DenialCode::InvalidGrant, "the lifetime is less than one second")),
        seconds => Ok(Duration::from_secs(seconds)),
    }
}

fn now() -> f64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.as_ref().map_or(0.0, Duration::as_secs_f64)
}
