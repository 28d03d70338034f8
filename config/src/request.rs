// SPDX-License-Identifier: MIT OR Apache-2.0

//! User requests for tokens that differ from the default, within the limits of a rule.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Config, Rule, Source, parse::field};

/// The name of the token of rules without a name.
pub const DEFAULT_NAME: &str = "default";

/// The maximum number of tokens that one job requests.
const MOST: usize = 16;

/// The longest audience or scope in a request, in bytes.
const LONGEST: usize = 1024;

/// The longest JSON of a job's requests, in bytes.
pub const LONGEST_REQUESTS: usize = 64 << 10;

/// The shortest lifetime that can be requested. Shorter lifetimes would cause too many renewals.
const SHORTEST_LIFETIME: Duration = Duration::from_secs(60);

/// A request for one token, such as `attributes.system.token.NAME` of a jobspec.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRequest {
    /// The service that the token is for (claim `aud`).
    pub audience: Option<String>,
    /// The scope, words separated by single spaces (RFC 6749 section 3.3).
    pub scope: Option<String>,
    /// The lifetime of the token.
    pub lifetime: Option<Duration>,
}

/// The JSON form of a [`TokenRequest`].
#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct RequestTable {
    audience: Option<String>,
    scope: Option<String>,
    #[serde(deserialize_with = "field::duration")]
    lifetime: Option<Duration>,
}

impl From<RequestTable> for TokenRequest {
    fn from(table: RequestTable) -> Self {
        let RequestTable {
            audience,
            scope,
            lifetime,
        } = table;
        Self {
            audience,
            scope,
            lifetime,
        }
    }
}

/// The requests of a job, by the names of its tokens.
pub type TokenRequests = BTreeMap<String, TokenRequest>;

/// The audiences and scopes that users of a rule may request besides its defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Audiences.
    pub audiences: Vec<String>,
    /// Words of a scope.
    pub scopes: Vec<String>,
}

/// Parses the requests of a job: a JSON object with one table for each name.
///
/// # Errors
/// For the user: the key, and the error.
pub fn parse_requests(text: &str) -> Result<TokenRequests, String> {
    let value: Option<Value> = match text.len() {
        ..=LONGEST_REQUESTS => serde_json::from_str(text).ok(),
        _ => None,
    };
    let value = value.ok_or("token: the requests are not valid JSON, or are too long")?;
    let tables: BTreeMap<String, RequestTable> = serde_path_to_error::deserialize(value).map_err(|e| {
        format!(
            "token.{}: {}",
            e.path().to_string().escape_debug(),
            e.inner().to_string().escape_debug()
        )
    })?;
    let requests = tables.into_iter().map(|(name, table)| (name, table.into()));
    let requests: TokenRequests = requests.collect();
    if requests.len() > MOST {
        return Err(format!("token: a job can request at most {MOST} tokens"));
    }
    for (name, request) in &requests {
        let texts = [Some(name), request.audience.as_ref(), request.scope.as_ref()];
        if texts
            .into_iter()
            .flatten()
            .any(|text| text.is_empty() || text.len() > LONGEST)
        {
            return Err(format!(
                "token.{}: names, audiences and scopes must be 1 to {LONGEST} bytes long",
                name.chars().take(64).collect::<String>().escape_debug()
            ));
        }
    }
    Ok(requests)
}

impl Config {
    /// Checks the requests of a job against the rules that it may match. At least one of them must admit each request.
    /// The delivery, which knows the job owner, repeats the check with the rule that matches.
    ///
    /// # Errors
    /// For the user: the key, and the allowed values.
    pub fn check_requests(&self, candidates: &[usize], requests: &TokenRequests) -> Result<(), String> {
        let rules: Vec<&Rule> = candidates.iter().filter_map(|index| self.rules.get(*index)).collect();
        for (name, request) in requests {
            let named = rules.iter().filter(|rule| rule.token_name() == name);
            let (admitted, refused): (Vec<_>, Vec<_>) = named.map(|rule| rule.admit(request)).partition(Result::is_ok);
            if admitted.is_empty() {
                let first = refused.into_iter().next();
                return first.unwrap_or_else(|| Err(no_such_token(name, &rules)));
            }
        }
        Ok(())
    }
}

impl Rule {
    /// Returns the name of the token in requests.
    pub fn token_name(&self) -> &str {
        self.name.as_deref().unwrap_or(DEFAULT_NAME)
    }

    /// Returns whether users can request anything but the default of its source.
    pub fn takes_requests(&self) -> bool {
        matches!(self.source, Source::Issuer(_) | Source::OAuth2(_))
    }

    /// Checks a request for the token of this rule.
    ///
    /// # Errors
    /// For the user: the key, and the allowed values.
    pub fn admit(&self, request: &TokenRequest) -> Result<(), String> {
        let (audiences, scope, longest) = match &self.source {
            Source::Issuer(issuer) => (&issuer.audience, None, Some(issuer.max_lifetime)),
            Source::OAuth2(settings) => (&settings.audience, settings.scope.as_deref(), None),
            _ => (&Vec::new(), None, None),
        };
        let at = |key: &str, what: String| Err(format!("token.{}.{key}: {what}", self.token_name()));
        if let Some(audience) = &request.audience {
            let allowed: Vec<&str> = audiences
                .iter()
                .chain(&self.allowed.audiences)
                .map(String::as_str)
                .collect();
            if !allowed.contains(&audience.as_str()) {
                return at("audience", not_allowed(audience, &allowed));
            }
        }
        if let Some(scope_wanted) = &request.scope {
            let allowed = scope.unwrap_or_default().split(' ').filter(|word| !word.is_empty());
            let allowed: Vec<&str> = allowed.chain(self.allowed.scopes.iter().map(String::as_str)).collect();
            if let Some(word) = scope_wanted.split(' ').find(|word| !allowed.contains(word)) {
                return at("scope", not_allowed(word, &allowed));
            }
        }
        match (request.lifetime, longest) {
            (Some(lifetime), Some(_)) if lifetime < SHORTEST_LIFETIME => at(
                "lifetime",
                format!("must be at least {} s", SHORTEST_LIFETIME.as_secs()),
            ),
            (Some(lifetime), Some(longest)) if lifetime > longest => {
                at("lifetime", format!("must be at most {} s", longest.as_secs()))
            }
            (Some(_), None) => at("lifetime", "cannot be chosen for this token".to_owned()),
            _ => Ok(()),
        }
    }
}

fn no_such_token(name: &str, rules: &[&Rule]) -> String {
    let names: BTreeSet<&str> = rules.iter().map(|rule| rule.token_name()).collect();
    let name = name.escape_debug();
    match Vec::from_iter(names)[..] {
        [] => "token: this job gets no token".to_owned(),
        ref names => format!("token.{name}: this job gets no such token, only {}", names.join(", ")),
    }
}

fn not_allowed(wanted: &str, allowed: &[&str]) -> String {
    let wanted = wanted.escape_debug();
    match allowed {
        [] => format!("`{wanted}` is not allowed: no value can be chosen for this token"),
        allowed => format!("`{wanted}` is not allowed: choose from {}", allowed.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Config;

    fn rules() -> Vec<Rule> {
        let table = json!({"workflow-token": {
            "issuer": {"keys": "/k", "name": "https://i", "audience": "a"},
            "rule": [
                {"source": "issuer", "workspace": "w", "audiences": ["b", "c"], "max-lifetime": "1h"},
                {"name": "cloud", "variable": "CLOUD", "source": "oauth2", "issuer": "https://i", "client-id": "c",
                 "client-secret": "/s", "scope": "read list", "scopes": ["write"]},
                {"name": "file", "variable": "FILE", "source": "file", "path": "/t"},
            ],
        }});
        Config::from_json(&table).unwrap().rules
    }

    #[test]
    fn a_user_may_request_what_the_rule_allows_and_nothing_else() {
        let rules = rules();
        let admit = |rule: usize, request: Value| {
            let requests = parse_requests(&json!({rules[rule].token_name(): request}).to_string()).unwrap();
            rules[rule].admit(&requests[rules[rule].token_name()])
        };
        for (rule, request) in [
            (0, json!({"audience": "a"})),
            (0, json!({"audience": "c", "lifetime": "10m"})),
            (0, json!({"lifetime": 3600})),
            (0, json!({})),
            (1, json!({"scope": "write list"})),
            (2, json!({})),
        ] {
            assert_eq!(admit(rule, request.clone()), Ok(()), "{request}");
        }
        for (rule, request, says) in [
            (
                0,
                json!({"audience": "d"}),
                "token.default.audience: `d` is not allowed: choose from a, b, c",
            ),
            (
                0,
                json!({"lifetime": "2h"}),
                "token.default.lifetime: must be at most 3600 s",
            ),
            (
                0,
                json!({"lifetime": "59s"}),
                "token.default.lifetime: must be at least 60 s",
            ),
            (0, json!({"scope": "x"}), "token.default.scope"),
            (
                1,
                json!({"scope": "read admin"}),
                "token.cloud.scope: `admin` is not allowed: choose from read, list, write",
            ),
            (1, json!({"audience": "a"}), "no value can be chosen"),
            (1, json!({"lifetime": "1m"}), "cannot be chosen"),
            (2, json!({"audience": "a"}), "token.file.audience"),
        ] {
            let error = admit(rule, request).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn one_rule_that_may_be_for_the_job_must_admit_each_request() {
        let table = json!({"workflow-token": {
            "issuer": {"keys": "/k", "name": "https://i", "audience": "a"},
            "rule": [
                {"group": "one", "source": "issuer", "workspace": "w", "audiences": "b"},
                {"source": "issuer", "workspace": "w", "audiences": "c"},
                {"name": "cloud", "variable": "CLOUD", "source": "issuer", "workspace": "w"},
            ],
        }});
        let config = Config::from_json(&table).unwrap();
        let check = |rules: &[usize], requests: Value| {
            config.check_requests(rules, &parse_requests(&requests.to_string()).unwrap())
        };
        for request in [
            json!({}),
            json!({"default": {"audience": "c"}, "cloud": {"lifetime": "1h"}}),
        ] {
            assert_eq!(check(&[0, 1, 2], request.clone()), Ok(()), "{request}");
        }
        for (rules, request, says) in [
            (&[0, 2][..], json!({"default": {"audience": "c"}}), "choose from a, b"),
            (
                &[0, 1, 2],
                json!({"default": {}, "cloud": {"audience": "b"}}),
                "token.cloud.audience",
            ),
            (
                &[0, 1],
                json!({"cloud": {}}),
                "token.cloud: this job gets no such token, only default",
            ),
            (&[0, 1, 2], json!({"x": {}}), "no such token, only cloud, default"),
            (&[], json!({"default": {}}), "token: this job gets no token"),
        ] {
            let error = check(rules, request).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn malformed_requests_name_the_key() {
        for (bad, says) in [
            (json!("x"), "token."),
            (json!({"a": 1}), "token.a"),
            (json!({"a": {"audienc": "x"}}), "audienc"),
            (json!({"a": {"audience": ""}}), "token.a"),
            (json!({"a": {"audience": ["x"]}}), "token.a.audience"),
            (json!({"a": {"lifetime": "soon"}}), "token.a.lifetime"),
            (json!({"a": {"scope": "x".repeat(2000)}}), "token.a"),
        ] {
            let error = parse_requests(&bad.to_string()).unwrap_err();
            assert!(error.contains(says) && error.len() < 300, "{bad}: {error}");
        }
        let many: serde_json::Map<String, Value> = (0..17).map(|n| (n.to_string(), json!({}))).collect();
        assert!(parse_requests(&Value::Object(many).to_string()).is_err());
        for bad in ["", "{", &format!("{{}}{}", " ".repeat(70_000))] {
            assert_eq!(
                parse_requests(bad).unwrap_err(),
                "token: the requests are not valid JSON, or are too long"
            );
        }
    }
}
