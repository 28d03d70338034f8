// SPDX-License-Identifier: MIT OR Apache-2.0

//! Verifies the identity tokens of users.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use config::Config;
use protocol::{Code, Failure};
use source::verify::{TokenVerifier, Unverified};
use token::VerifyError;

use crate::owners::{Verified, Verify};

/// Returns the verifier of identity tokens; none if the configuration has no table `identity`. `verifiers` belong to
/// the tables `trust` of the configuration.
///
/// # Errors
/// Returns the key of the configuration that names a missing table.
pub(crate) fn verify(config: &Config, verifiers: &[Arc<TokenVerifier>]) -> Result<Option<Verify>, String> {
    let Some(identity) = config.projects.identity() else {
        return Ok(None);
    };
    let mut trusts = config.trusts.iter().zip(verifiers);
    let Some((trust, verifier)) = trusts.find(|(trust, _)| trust.name == identity.trust) else {
        return Err(format!(
            "workflow-token.identity.trust: there is no table [workflow-token.trust.{}]",
            identity.trust.escape_debug()
        ));
    };
    let (verifier, leeway) = (Arc::clone(verifier), trust.leeway);
    Ok(Some(Box::new(move |token| {
        // The tokens of jobs log notes about keys.
        let (verified, _) = verifier.verify(token, SystemTime::now());
        let claims = verified.map_err(|e| match e {
            Unverified::Refused(e) => Failure::new(Code::TokenRefused, summary(&e), e.to_string()),
            Unverified::NoKeys(e) => Failure::new(Code::TokenUnverified, e.summary(), e.to_string()),
        })?;
        let until = Duration::try_from_secs_f64(claims.exp().seconds()).ok();
        Ok(Verified {
            claims: serde_json::from_str(claims.as_json()).unwrap_or_default(),
            until: until.and_then(|until| UNIX_EPOCH.checked_add(until.saturating_add(leeway))),
        })
    })))
}

/// Returns why a token is refused, in a few words: they are part of a submission error, which Flux cuts after 159
/// bytes.
pub(crate) fn summary(e: &VerifyError) -> &'static str {
    match e {
        VerifyError::Expired { .. } => "it has expired",
        VerifyError::NotYet { .. } => "it is not valid yet",
        VerifyError::WrongAudience(_) => "it is for another service",
        VerifyError::WrongIssuer(_) => "it is of another issuer",
        VerifyError::WrongInstance(_) => "it is of a job of another instance",
        VerifyError::BadSignature => "its signature is wrong",
        VerifyError::UnknownKid(_) => "its key is not known",
        _ => "it was refused",
    }
}
