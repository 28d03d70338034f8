// SPDX-License-Identifier: MIT OR Apache-2.0

//! The metadata of an issuer (RFC 8414 and OpenID Connect Discovery 1.0).

use std::time::Duration;

use serde_json::{Map, Value};

use super::Remote;
use crate::http::{HttpReply, Retry, SourceError, quote};

/// The longest metadata, in bytes.
const MAX_BODY: usize = 256 << 10;

/// The used parts of the metadata of an issuer.
#[derive(Debug, Clone)]
pub(crate) struct Metadata {
    /// The needed address: that of the keys, or the token endpoint.
    pub address: String,
    /// The authentication methods of clients; the default is `client_secret_basic` (RFC 8414 section 2).
    pub authentications: Option<Vec<String>>,
    /// The supported grants.
    pub grants: Option<Vec<String>>,
    /// The authorization endpoint, at which users log in.
    pub authorization: Option<String>,
    /// The end session endpoint, at which users log out (OpenID Connect RP-Initiated Logout 1.0 section 2.1).
    pub end_session: Option<String>,
}

/// The member that a caller needs. Not all metadata contain it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Keys,
    Tokens,
}

impl Need {
    fn member(self) -> &'static str {
        match self {
            Self::Keys => "jwks_uri",
            Self::Tokens => "token_endpoint",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::Keys => "check the server's configuration, or set the key keys to a file with its keys",
            Self::Tokens => "set the key token-endpoint instead of issuer, if the server has one",
        }
    }
}

impl Remote {
    /// Fetches the metadata of an issuer from the first URL that returns the needed member. `limit` is the timeout of
    /// one request.
    ///
    /// # Errors
    /// Names each URL with its answer.
    pub async fn discover(&self, issuer: &str, need: Need, limit: Duration) -> Result<Metadata, SourceError> {
        let mut failures = Vec::new();
        for url in locations(issuer) {
            let answer = self.get(&url, MAX_BODY, limit).await;
            match answer.and_then(|answer| self.read(issuer, need, &answer)) {
                Ok(metadata) => return Ok(metadata),
                // The other URLs would fail in the same way.
                Err(error) if error.unconnected || error.summary == self.peer().credential => return Err(error),
                Err(error) => failures.push((url, error)),
            }
        }
        Err(self.nowhere(&failures))
    }

    fn read(&self, issuer: &str, need: Need, answer: &HttpReply) -> Result<Metadata, SourceError> {
        let wrong = |cause: &str, remedy| SourceError::permanent(self.peer().unwell, cause, remedy);
        if matches!(answer.status.as_u16(), 404 | 410) {
            let cause = format!("it has no metadata there (status {})", answer.status_text());
            return Err(wrong(&cause, NOT_THERE));
        }
        if !answer.status.is_success() {
            return Err(self.unusable(answer));
        }
        let members: Map<String, Value> = serde_json::from_slice(answer.json())
            .map_err(|_| wrong("its answer is not metadata in JSON", NOT_THERE))?;
        metadata(issuer, need, &members).map_err(|(cause, remedy)| wrong(&cause, remedy))
    }

    fn nowhere(&self, failures: &[(String, SourceError)]) -> SourceError {
        let mut causes: Vec<(Vec<&str>, &str)> = Vec::new();
        for (url, error) in failures {
            match causes.last_mut() {
                Some((urls, cause)) if *cause == error.cause() => urls.push(url),
                _ => causes.push((vec![url], error.cause())),
            }
        }
        let causes: Vec<_> = causes
            .iter()
            .map(|(urls, cause)| format!("{}: {cause}", urls.join(", ")))
            .collect();
        // A busy server may answer the next attempt, after the longest of the requested pauses.
        let retry = failures
            .iter()
            .map(|(_, error)| error.retry)
            .max()
            .unwrap_or(Retry::Never);
        let errors = || failures.iter().map(|(_, error)| error);
        let specific = errors().find(|error| error.remedy() != NOT_THERE);
        let summary = errors().map(|error| error.summary).next().unwrap_or(self.peer().unwell);
        SourceError::new(
            retry,
            summary,
            causes.join("; "),
            specific.map_or(NOT_THERE, SourceError::remedy),
        )
    }
}

const NOT_THERE: &str =
    "check that the key issuer is exactly the issuer of the tokens, or set the needed address without discovery";

/// Returns the URLs at which metadata may be. RFC 8414 section 3.1 puts the well-known part before the path of the
/// issuer, OpenID Connect Discovery section 4 after it, and RFC 8414 section 5 describes the transition.
fn locations(issuer: &str) -> Vec<String> {
    let issuer = issuer.strip_suffix('/').unwrap_or(issuer);
    // The configuration parser has checked it.
    let authority = issuer.find("://").map_or(0, |at| at + 3);
    let path = issuer[authority..].find('/').map_or(issuer.len(), |at| authority + at);
    let (host, path) = issuer.split_at(path);
    let mut all = vec![
        format!("{host}/.well-known/oauth-authorization-server{path}"),
        format!("{host}{path}/.well-known/openid-configuration"),
    ];
    if !path.is_empty() {
        all.push(format!("{host}/.well-known/openid-configuration{path}"));
    }
    all
}

fn metadata(issuer: &str, need: Need, members: &Map<String, Value>) -> Result<Metadata, (String, &'static str)> {
    // RFC 8414 section 3.3: metadata must not be used unless the issuer is identical.
    match member(members, "issuer")?.and_then(Value::as_str) {
        Some(found) if found == issuer => {}
        Some(found) => {
            let what = format!("it is the metadata of another issuer (`{}`)", quote(found, &[]));
            let remedy = match found.contains('{') {
                // The metadata of `common` and `organizations` at Microsoft Entra contain `{tenantid}`.
                true => "it is a template for many tenants: set the key issuer to the URL of the right tenant",
                false => "if that is the right issuer, set the key issuer to exactly this value",
            };
            return Err((what, remedy));
        }
        None => {
            return Err((
                "its metadata names no issuer".to_owned(),
                "check the server's configuration",
            ));
        }
    }
    let words = |name: &str| {
        let array = member(members, name)?.and_then(Value::as_array);
        let words = |array: &Vec<Value>| array.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        Ok(array.map(words))
    };
    Ok(Metadata {
        address: address(issuer, need, members)?,
        authentications: words("token_endpoint_auth_methods_supported")?,
        grants: words("grant_types_supported")?,
        authorization: optional(issuer, "authorization_endpoint", members)?,
        end_session: optional(issuer, "end_session_endpoint", members)?,
    })
}

/// Returns the needed address.
fn address(issuer: &str, need: Need, members: &Map<String, Value>) -> Result<String, (String, &'static str)> {
    let name = need.member();
    let missing = || (format!("its metadata names no {name}"), need.remedy());
    optional(issuer, name, members)?.ok_or_else(missing)
}

/// Returns an optional address.
fn optional(issuer: &str, name: &str, members: &Map<String, Value>) -> Result<Option<String>, (String, &'static str)> {
    // Some servers send null for missing members.
    let Some(value) = member(members, name)?.filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let wrong = |why: &str| (format!("its {name} {why}"), "check the server's configuration");
    let text = value.as_str().ok_or_else(|| wrong("is not a string"))?;
    config::check_url(text).map_err(wrong)?;
    // A process on this node must not be able to stand in for a remote server.
    if config::is_plain_url(text) && !config::is_plain_url(issuer) {
        return Err(wrong("is not https, but the issuer is"));
    }
    Ok(Some(text.to_owned()))
}

/// Returns a member by its registered name (`jwks_uri`) or by the same name in camel case (`jwksUri`), which some
/// servers use.
fn member<'a>(members: &'a Map<String, Value>, name: &str) -> Result<Option<&'a Value>, (String, &'static str)> {
    let camel = camel_case(name);
    match (members.get(name), members.get(&camel)) {
        (Some(one), Some(other)) if camel != name && one != other => Err((
            format!("its metadata has both {name} and {camel}, but they differ"),
            "check the server's configuration",
        )),
        (one, other) => Ok(one.or(other)),
    }
}

fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |mut all, word| {
        let mut chars = word.chars();
        all.extend(chars.next().map(|c| c.to_ascii_uppercase()));
        all.push_str(chars.as_str());
        all
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn metadata_is_looked_for_where_it_may_be() {
        let root = [
            "https://a.example.org:8443/.well-known/oauth-authorization-server",
            "https://a.example.org:8443/.well-known/openid-configuration",
        ];
        assert_eq!(locations("https://a.example.org:8443"), root);
        assert_eq!(locations("https://a.example.org:8443/"), root);
        // RFC 8414 section 3.1, and OpenID Connect Discovery section 4.1.
        let tenant = [
            "https://example.com/.well-known/oauth-authorization-server/issuer1/x",
            "https://example.com/issuer1/x/.well-known/openid-configuration",
            "https://example.com/.well-known/openid-configuration/issuer1/x",
        ];
        assert_eq!(locations("https://example.com/issuer1/x"), tenant);
        assert_eq!(locations("https://example.com/issuer1/x/"), tenant);
    }

    fn read(issuer: &str, need: Need, value: &Value) -> Result<Metadata, String> {
        metadata(issuer, need, value.as_object().unwrap()).map_err(|(what, remedy)| format!("{what}: {remedy}"))
    }

    #[test]
    fn members_are_understood_in_both_spellings() {
        let snake = json!({
            "issuer": "https://i", "jwks_uri": "https://i/jwks", "token_endpoint": "https://i/token",
            "token_endpoint_auth_methods_supported": ["client_secret_post"], "grant_types_supported": ["implicit"],
        });
        let camel = json!({
            "issuer": "https://i", "jwksUri": "https://i/jwks", "tokenEndpoint": "https://i/token",
            "tokenEndpointAuthMethodsSupported": ["client_secret_post"], "grantTypesSupported": ["implicit"],
        });
        for value in [snake, camel] {
            assert_eq!(read("https://i", Need::Keys, &value).unwrap().address, "https://i/jwks");
            let found = read("https://i", Need::Tokens, &value).unwrap();
            assert_eq!(found.address, "https://i/token", "{value}");
            assert_eq!(found.authentications.unwrap(), ["client_secret_post"], "{value}");
            assert_eq!(found.grants.unwrap(), ["implicit"], "{value}");
        }
        let both = json!({"issuer": "https://i", "jwks_uri": "https://i/1", "jwksUri": "https://i/2"});
        let error = read("https://i", Need::Keys, &both).unwrap_err();
        assert!(error.contains("they differ"), "{error}");
    }

    #[test]
    fn what_is_of_another_issuer_or_not_safe_is_not_used() {
        use Need::{Keys, Tokens};
        for (need, value, says) in [
            (Keys, json!({}), "names no issuer"),
            (Keys, json!({"issuer": 1}), "names no issuer"),
            (Keys, json!({"issuer": "https://i/"}), "another issuer (`https://i/`)"),
            (Keys, json!({"issuer": "https://evil"}), "another issuer"),
            (
                Keys,
                json!({"issuer": "https://login/{tenantid}/v2.0"}),
                "the right tenant",
            ),
            (Keys, json!({"issuer": "https://i"}), "names no jwks_uri"),
            (
                Keys,
                json!({"issuer": "https://i", "jwks_uri": null}),
                "names no jwks_uri",
            ),
            (
                Tokens,
                json!({"issuer": "https://i", "jwks_uri": "https://i/jwks"}),
                "names no token_endpoint",
            ),
            (Keys, json!({"issuer": "https://i", "jwks_uri": 1}), "is not a string"),
            (
                Keys,
                json!({"issuer": "https://i", "jwks_uri": "/jwks"}),
                "its jwks_uri",
            ),
            (
                Keys,
                json!({"issuer": "https://i", "jwks_uri": "http://i/jwks"}),
                "must be https",
            ),
            (
                Keys,
                json!({"issuer": "https://i", "jwks_uri": "http://127.0.0.1/jwks"}),
                "is not https",
            ),
            (
                Keys,
                json!({"issuer": "https://i", "jwks_uri": "HTTP://127.0.0.1/jwks"}),
                "is not https",
            ),
            (
                Tokens,
                json!({"issuer": "https://i", "token_endpoint": "Http://localhost/token"}),
                "is not https",
            ),
            (
                Tokens,
                json!({"issuer": "https://i", "tokenEndpoint": "file:///etc/passwd"}),
                "its token_endpoint",
            ),
        ] {
            let error = read("https://i", need, &value).unwrap_err();
            assert!(error.contains(says), "{value}: {error}");
        }
        let local = json!({"issuer": "http://127.0.0.1:1", "jwks_uri": "http://127.0.0.1:1/jwks"});
        read("http://127.0.0.1:1", Keys, &local).unwrap();
        let local = json!({"issuer": "HTTP://127.0.0.1:1", "jwks_uri": "http://127.0.0.1:1/jwks"});
        read("HTTP://127.0.0.1:1", Keys, &local).unwrap();
    }
}
