// SPDX-License-Identifier: MIT OR Apache-2.0

//! The parameters of a token request.

use protocol::{Evidence, MintRequest};
use serde::{Deserialize, Serialize};

use crate::{error::OAuthError, form::Form, session::Session, settings::Settings};

/// The parameters that may be repeated (RFC 8693 section 2.1).
pub const REPEATABLE: [&str; 2] = ["audience", "resource"];

/// The maximum number of words, such as projects, of a parameter.
const MAX_WORDS: usize = 64;

/// The maximum total length of the words, in bytes.
const MAX_LENGTH: usize = 4096;

/// Scopes of OpenID Connect, which are ignored, since tokens of this issuer do not depend on them.
const OPENID: [&str; 6] = ["openid", "profile", "email", "groups", "offline_access", "offline"];

/// A request for a token.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The audiences, or none for all that are allowed.
    pub audience: Vec<String>,
    /// The scope, or `None` for the allowed one.
    pub scope: Option<String>,
    /// The projects, or none for all that are allowed.
    pub projects: Vec<String>,
    /// The lifetime in seconds, or `None` for the longest.
    pub lifetime: Option<u64>,
}

impl Wanted {
    /// Reads the parameters of a request: `audience`, `resource`, `scope`, `project` and `lifetime`. An audience is a
    /// name, and a resource is the URL of a protected service (RFC 8707).
    ///
    /// # Errors
    /// [`OAuthError::InvalidRequest`], [`OAuthError::InvalidTarget`].
    pub fn read(settings: &Settings, form: &Form) -> Result<Self, OAuthError> {
        let mut audience: Vec<String> = form.all("audience").map(str::to_owned).collect();
        for url in form.all("resource") {
            let known = settings.resources.iter().find(|resource| resource.url == url);
            let known = known.ok_or_else(|| OAuthError::InvalidTarget("the resource is unknown".to_owned()))?;
            audience.push(known.name.clone());
        }
        let scope = words(form.get("scope"))?;
        let scope: Vec<String> = scope
            .into_iter()
            .filter(|word| !OPENID.contains(&word.as_str()))
            .collect();
        let lifetime = form.get("lifetime").map(str::parse).transpose();
        let wanted = Self {
            audience,
            scope: (!scope.is_empty()).then(|| scope.join(" ")),
            projects: words(form.get("project"))?,
            lifetime: lifetime.map_err(|_| OAuthError::InvalidRequest("the lifetime must be a number of seconds"))?,
        };
        let all = wanted.audience.iter().chain(&wanted.projects).chain(&wanted.scope);
        let length: usize = all.map(String::len).sum();
        match length > MAX_LENGTH {
            true => Err(OAuthError::InvalidRequest("audiences, scope and projects are too long")),
            false => Ok(wanted),
        }
    }

    /// Returns the intersection with a later request for the same grant.
    ///
    /// # Errors
    /// [`OAuthError::InvalidTarget`] and [`OAuthError::InvalidScope`] if the later request exceeds the grant.
    pub fn narrowed(self, later: Self) -> Result<Self, OAuthError> {
        let is_within = |allowed: &[String], wanted: &[String]| {
            allowed.is_empty() || wanted.iter().all(|wanted| allowed.contains(wanted))
        };
        if !is_within(&self.audience, &later.audience) {
            return Err(OAuthError::InvalidTarget(
                "it was not granted for this audience".to_owned(),
            ));
        }
        let is_same_scope = later.scope.is_none() || self.scope.is_none() || later.scope == self.scope;
        if !is_same_scope || !is_within(&self.projects, &later.projects) {
            return Err(OAuthError::InvalidScope(
                "it was not granted for this scope or project".to_owned(),
            ));
        }
        let or = |later: Vec<String>, former| if later.is_empty() { former } else { later };
        Ok(Self {
            audience: or(later.audience, self.audience),
            scope: later.scope.or(self.scope),
            projects: or(later.projects, self.projects),
            lifetime: match (self.lifetime, later.lifetime) {
                (Some(former), Some(later)) => Some(former.min(later)),
                (former, later) => later.or(former),
            },
        })
    }

    /// Returns the projects of a token for this user.
    pub fn projects_of(&self, session: &Session) -> Vec<String> {
        match self.projects.is_empty() {
            true => session.projects.clone(),
            false => self.projects.clone(),
        }
    }

    /// Returns the request to the agent.
    pub fn request(self, evidence: Evidence, client: Option<String>) -> MintRequest {
        MintRequest {
            evidence,
            client,
            audience: self.audience,
            scope: self.scope,
            workspaces: self.projects,
            lifetime_secs: self.lifetime,
        }
    }
}

fn words(text: Option<&str>) -> Result<Vec<String>, OAuthError> {
    let words = text.unwrap_or_default().split(' ').filter(|word| !word.is_empty());
    let words: Vec<String> = words.map(str::to_owned).collect();
    match words.len() > MAX_WORDS {
        true => Err(OAuthError::InvalidRequest("a parameter has more than 64 words")),
        false => Ok(words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(audience: &[&str], projects: &[&str], lifetime: Option<u64>) -> Wanted {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        Wanted {
            audience: owned(audience),
            scope: None,
            projects: owned(projects),
            lifetime,
        }
    }

    #[test]
    fn a_later_request_wants_no_more() {
        let granted = || wanted(&["a", "b"], &["p"], Some(60));
        assert_eq!(granted().narrowed(Wanted::default()).unwrap(), granted());
        let narrowed = granted().narrowed(wanted(&["b"], &[], Some(3600))).unwrap();
        assert_eq!(narrowed, wanted(&["b"], &["p"], Some(60)));
        assert!(granted().narrowed(wanted(&["c"], &[], None)).is_err());
        assert!(granted().narrowed(wanted(&[], &["q"], None)).is_err());
        let of_all = Wanted::default().narrowed(wanted(&["c"], &["q"], None)).unwrap();
        assert_eq!(of_all, wanted(&["c"], &["q"], None));
    }
}
