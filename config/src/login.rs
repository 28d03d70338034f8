// SPDX-License-Identifier: MIT OR Apache-2.0

//! User logins at an OpenID provider: the table `service.login`.

use std::{path::PathBuf, time::Duration};

use crate::OAuth2;

/// The table `service.login`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The provider: an index into [`Config::trusts`](crate::Config::trusts).
    pub trust: usize,
    /// The settings of this client of the provider.
    pub client: OAuth2,
    /// The claim of identity tokens that names the user.
    pub user_claim: String,
    /// The form of that claim.
    pub user_template: UserTemplate,
    /// The longest time that a login is used.
    pub max_session: Duration,
    /// The directory in which the agent stores the refresh tokens of logins for jobs, if any.
    pub store: Option<PathBuf>,
}

/// The form of a claim that names a user of the cluster: text that contains `{user}` once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserTemplate {
    before: String,
    after: String,
}

/// The placeholder for the user name.
const PLACEHOLDER: &str = "{user}";

impl UserTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// Returns a description of valid templates.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(PLACEHOLDER) {
            Some((before, after)) if !before.contains(['{', '}']) && !after.contains(['{', '}']) => Ok(Self {
                before: before.to_owned(),
                after: after.to_owned(),
            }),
            _ => Err("must contain {user} once, as in \"{user}@example.org\", and no other braces".to_owned()),
        }
    }

    /// Returns the user that a claim names; none if the claim does not have this form.
    #[must_use]
    pub fn user<'a>(&self, claim: &'a str) -> Option<&'a str> {
        let user = claim.strip_prefix(&*self.before)?.strip_suffix(&*self.after)?;
        (!user.is_empty()).then_some(user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_names_a_user_in_one_form() {
        let user = |template, claim| UserTemplate::parse(template).unwrap().user(claim).map(str::to_owned);
        assert_eq!(user("{user}", "alice"), Some("alice".to_owned()));
        assert_eq!(
            user("{user}@example.org", "alice@example.org"),
            Some("alice".to_owned())
        );
        assert_eq!(user("hpc-{user}", "hpc-alice"), Some("alice".to_owned()));
        for (template, claim) in [
            ("{user}@example.org", "alice@example.org.evil.org"),
            ("{user}@example.org", "@example.org"),
            ("{user}@example.org", "alice"),
            ("hpc-{user}-x", "hpc-x"),
            ("{user}", ""),
        ] {
            assert_eq!(user(template, claim), None, "{template} {claim}");
        }
        for wrong in ["", "user", "{user}{user}", "{name}", "{user}}", "{{user}"] {
            assert!(UserTemplate::parse(wrong).is_err(), "{wrong}");
        }
    }
}
