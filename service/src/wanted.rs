//! What a request for a token wants.

use protocol::{Evidence, MintRequest};
use serde::{Deserialize, Serialize};

use crate::{error::OAuthError, form::Form, session::Session, settings::Settings};

/// The parameters that may be there more than once (RFC 8693 section 2.1).
pub const REPEATABLE: [&str; 2] = ["audience", "resource"];

/// The most projects of a request.
const MAX_WORDS: usize = 64;

/// The longest words that are kept, in bytes.
const MAX_LENGTH: usize = 4096;

/// The words of OpenID Connect in a scope: they ask for nothing that a token of this issuer has.
const OPENID: [&str; 6] = ["openid", "profile", "email", "groups", "offline_access", "offline"];

/// What a request wants.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The audiences; none for all that are allowed.
    pub audience: Vec<String>,
    /// The scope; none for that which is allowed.
    pub scope: Option<String>,
    /// The projects; none for all that are allowed.
    pub projects: Vec<String>,
    /// The lifetime in seconds; none for the longest.
    pub lifetime: Option<u64>,
}

impl Wanted {
    /// Reads the parameters of a request: `audience` by name, `resource` by the URL of a protected service (RFC 8707), `scope`,
    /// `project` and `lifetime`.
    ///
    /// # Errors
    /// [`OAuthError::InvalidRequest`], [`OAuthError::InvalidTarget`].
    pub fn read(settings: &Settings, form: &Form) -> Result<Self, OAuthError> {
        let mut audience: Vec<String> = form.all("audience").map(str::to_owned).collect();
        for url in form.all("resource") {
            let known = settings.resources.iter().find(|resource| resource.url == url);
            let known = known.ok_or_else(|| OAuthError::InvalidTarget("the resource is not known".to_owned()))?;
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

    /// Returns the narrower of this and what a later request for the same grant wants.
    ///
    /// # Errors
    /// [`OAuthError::InvalidTarget`], [`OAuthError::InvalidScope`]: it wants more.
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

    /// Returns the projects that a token of this user has.
    pub fn projects_of(&self, session: &Session) -> Vec<String> {
        match self.projects.is_empty() {
            true => session.projects.clone(),
            false => self.projects.clone(),
        }
    }

    /// Returns the request for the agent.
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
