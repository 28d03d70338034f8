// SPDX-License-Identifier: MIT OR Apache-2.0

//! The demand of a proxy: the query of its forward-auth request names what a token must be for.

use crate::form::{Form, FormError};

/// The maximum number of characters of an unknown parameter in a message.
const MAX_SHOWN: usize = 64;

/// A demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// At least one audience, of which the claim `aud` must contain one.
    pub audience: Vec<String>,
    /// Words that the claim `scope` must contain.
    pub scope: Vec<String>,
    /// The workspace that the token must be for. A token for all workspaces qualifies, too.
    pub project: Option<String>,
}

/// The reason why a demand was rejected. The operator of the proxy must correct it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DemandError {
    /// The audience is missing. Without it, a token for any service would be accepted.
    #[error("the parameter aud is missing: name the service that the proxy protects")]
    NoAudience,
    /// A parameter is empty, for example because a variable of the proxy is.
    #[error("the parameter {0} has no value")]
    Empty(&'static str),
    /// A parameter is unknown.
    #[error("the parameter {0} is unknown: use aud, scope and project")]
    Unknown(String),
    /// The parameters are malformed.
    #[error("{0}")]
    Malformed(#[from] FormError),
}

impl Demand {
    /// Parses a query. `aud` and `scope` may contain several words, separated by spaces.
    ///
    /// # Errors
    /// [`DemandError`].
    pub fn parse(query: &str) -> Result<Self, DemandError> {
        let form = Form::parse(query.as_bytes())?;
        for name in form.names() {
            let Some(known) = ["aud", "scope", "project"].into_iter().find(|known| *known == name) else {
                let start: String = name.chars().take(MAX_SHOWN).collect();
                return Err(DemandError::Unknown(start.escape_debug().to_string()));
            };
            if form.get(name).is_none() {
                return Err(DemandError::Empty(known));
            }
        }
        let words = |name| -> Vec<String> {
            let words = form.get(name).unwrap_or_default().split(' ');
            words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
        };
        let demand = Self {
            audience: words("aud"),
            scope: words("scope"),
            project: form.get("project").map(str::to_owned),
        };
        match demand.audience.is_empty() {
            true => Err(DemandError::NoAudience),
            false => Ok(demand),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demand_names_an_audience_and_nothing_unknown() {
        let demand = Demand::parse("aud=a+b&scope=session&project=hydro").unwrap();
        assert_eq!(
            (demand.audience, demand.scope),
            (vec!["a".to_owned(), "b".to_owned()], vec!["session".to_owned()])
        );
        assert_eq!(demand.project.as_deref(), Some("hydro"));
        let error = |query| Demand::parse(query).unwrap_err();
        for (query, name) in [("aud=", "aud"), ("aud=a&scope=", "scope"), ("aud=a&project", "project")] {
            assert_eq!(error(query), DemandError::Empty(name), "{query}");
        }
        for query in ["", "scope=session", "aud=+"] {
            assert_eq!(error(query), DemandError::NoAudience, "{query}");
        }
        assert_eq!(error("aud=a&audience=b"), DemandError::Unknown("audience".to_owned()));
        assert_eq!(error("aud=a&aud=b"), DemandError::Malformed(FormError::Repeated));
        assert_eq!(error("aud=%ff"), DemandError::Malformed(FormError::NotUtf8));
    }
}
