// SPDX-License-Identifier: MIT OR Apache-2.0

//! Exchanges a token of this issuer for a narrower one, never for one with a wider scope, audience, workspace or
//! lifetime.

use std::time::{Duration, SystemTime};

use delivery::{denied, narrowed, requested_lifetime};
use protocol::{Denial, DenialCode, MintRequest};
use token::{Claims, ClaimsToIssue, Grant, Job, JobScheduler, Name, Scope};

/// Returns the claims of a narrower token. `now` must precede the check that the token is not revoked, so that a later
/// revocation also applies to the new one.
///
/// # Errors
/// The request exceeds the token, or less than one second is left.
pub fn narrow(issuer: &str, claims: &Claims, request: &MintRequest, now: SystemTime) -> Result<ClaimsToIssue, Denial> {
    let audience: Vec<String> = claims.aud().map(str::to_owned).collect();
    if let Some(other) = request.audience.iter().find(|wanted| !audience.contains(wanted)) {
        let text = format!("the token is not for the audience {}", other.escape_debug());
        return Err(denied(DenialCode::InvalidTarget, text));
    }
    let elapsed = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let left = Duration::try_from_secs_f64(claims.exp().seconds() - elapsed.as_secs_f64()).unwrap_or_default();
    let grant = grant(claims, request)?;
    check_scope(request, &grant)?;
    Ok(ClaimsToIssue {
        iss: issuer.to_owned(),
        sub: claims.sub().unwrap_or_default().to_owned(),
        aud: if request.audience.is_empty() {
            audience
        } else {
            request.audience.clone()
        },
        iat: now,
        lifetime: requested_lifetime(request, left)?,
        grant,
        // Status lists contain only the tokens that jobs get at their start.
        status: None,
    })
}

/// Rejects a request for another scope than that of the grant.
///
/// # Errors
/// The requested scope differs.
pub fn check_scope(request: &MintRequest, grant: &Grant) -> Result<(), Denial> {
    let scope = grant.scope();
    match &request.scope {
        Some(wanted) if wanted != scope.as_str() => Err(denied(
            DenialCode::InvalidScope,
            format!("the scope of this token can only be {scope}"),
        )),
        _ => Ok(()),
    }
}

fn grant(claims: &Claims, request: &MintRequest) -> Result<Grant, Denial> {
    let allowed: Vec<String> = claims.workspaces().map(str::to_owned).collect();
    let names = |workspaces: Vec<String>| -> Result<Vec<Name>, Denial> {
        let names = workspaces.iter().map(|workspace| workspace.parse());
        names
            .collect::<Result<_, _>>()
            .map_err(|e: token::NameError| denied(DenialCode::InvalidScope, e.to_string()))
    };
    match claims.scope() {
        Some(Scope::Cluster) if request.workspaces.is_empty() => Ok(Grant::Cluster),
        Some(Scope::Cluster) => names(request.workspaces.clone()).map(Grant::Workspaces),
        Some(Scope::Workspace) => names(narrowed(&request.workspaces, allowed)?).map(Grant::Workspaces),
        Some(Scope::System) => names(narrowed(&request.workspaces, allowed)?).map(Grant::System),
        Some(Scope::Session) => {
            let workspaces = names(narrowed(&request.workspaces, allowed)?)?;
            let (Some(workspace), Some(job)) = (workspaces.into_iter().next(), job(claims)) else {
                return Err(denied(DenialCode::InvalidGrant, "the token belongs to no job"));
            };
            Ok(Grant::Session { workspace, job })
        }
        None => Err(denied(
            DenialCode::InvalidGrant,
            "the token has no scope of this issuer",
        )),
    }
}

fn job(claims: &Claims) -> Option<Job> {
    let job = claims.job()?;
    let number = |claim: &serde_json::Value, name| claim.get(name)?.as_u64()?.try_into().ok();
    let scheduler = match claims.get("slurm") {
        Some(slurm) => JobScheduler::Slurm {
            array: number(&slurm, "array-jobid").zip(number(&slurm, "array-task")),
            restarts: number(&slurm, "restarts").unwrap_or(0),
        },
        None => JobScheduler::Flux,
    };
    Some(Job {
        id: job.id.parse().ok()?,
        uid: job.uid,
        instance: job.instance.to_owned(),
        scheduler,
    })
}
