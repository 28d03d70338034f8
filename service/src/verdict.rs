// SPDX-License-Identifier: MIT OR Apache-2.0

//! Decides whether a token satisfies a demand.

use protocol::Validity;
use token::{Claims, Scope, VerifyError};

use crate::{demand::Demand, keys::Unverified, refused::Refused, service::Service};

/// Returns the claims of a valid token, for any demand.
///
/// # Errors
/// [`Refused`].
pub async fn valid(service: &Service, token: &str) -> Result<Claims, Refused> {
    let claims = match service.keys.verify(token).await {
        Ok(claims) => claims,
        Err(Unverified::NoKeys) => return Err(Refused::Unknown("the keys of the issuer are unknown".to_owned())),
        Err(Unverified::Refused(error)) => return Err(Refused::Invalid(for_bearer(&error))),
    };
    match service.validities.of(&claims).await {
        Validity::Active => Ok(claims),
        Validity::Ended(_) => Err(Refused::Invalid("its job has ended".to_owned())),
        Validity::Revoked => Err(Refused::Invalid("it was revoked".to_owned())),
        Validity::Unknown(why) => Err(Refused::Unknown(why)),
    }
}

/// Returns the claims of a token that satisfies a demand.
///
/// # Errors
/// [`Refused`].
pub async fn satisfying(service: &Service, token: &str, demand: &Demand) -> Result<Claims, Refused> {
    let claims = valid(service, token).await?;
    if !claims
        .aud()
        .any(|aud| demand.audience.iter().any(|demanded| demanded == aud))
    {
        return Err(Refused::OtherAudience);
    }
    if !demand.scope.is_empty() {
        let scope = claims.get("scope");
        let words: Vec<&str> = scope
            .as_ref()
            .and_then(|scope| scope.as_str())
            .unwrap_or_default()
            .split(' ')
            .collect();
        if !demand.scope.iter().all(|demanded| words.contains(&demanded.as_str())) {
            return Err(Refused::Scope(demand.scope.join(" ")));
        }
    }
    if let Some(project) = &demand.project {
        let is_for =
            claims.scope() == Some(Scope::Cluster) || claims.workspaces().any(|workspace| workspace == project);
        if !is_for {
            return Err(Refused::OtherProject);
        }
    }
    Ok(claims)
}

/// Returns the description of an error for the bearer: only its class, and no text from the token, which a stranger may
/// have written.
fn for_bearer(error: &VerifyError) -> String {
    match error {
        VerifyError::Expired { .. } => "it has expired".to_owned(),
        VerifyError::NotYet { .. } => "it is not valid yet".to_owned(),
        _ => "it is not a token of this issuer".to_owned(),
    }
}
