// SPDX-License-Identifier: MIT OR Apache-2.0

//! The keys of rules with `source = "oauth2"`.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Error, field, wrong_at};
use crate::{
    AuthorizationServer, ClientAuthentication, Discovery, Grant, KeyPath, OAuth2, Template,
    issuer::REFRESH,
    oauth2::{check_client_id, check_scope, token_type},
};

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct OAuth2Table {
    #[serde(deserialize_with = "field::issuer_url")]
    issuer: Option<String>,
    #[serde(deserialize_with = "field::url")]
    token_endpoint: Option<String>,
    client_id: Option<String>,
    client_secret: Option<KeyPath>,
    client_key: Option<KeyPath>,
    client_authentication: Option<Method>,
    grant: Option<GrantKind>,
    #[serde(deserialize_with = "field::flag")]
    share: Option<bool>,
    #[serde(deserialize_with = "field::absolute_template")]
    subject_token: Option<Template>,
    subject_token_type: Option<String>,
    #[serde(deserialize_with = "field::absolute_template")]
    refresh_token: Option<Template>,
    scope: Option<String>,
    #[serde(deserialize_with = "field::strings")]
    audience: Vec<String>,
    #[serde(deserialize_with = "field::strings")]
    resource: Vec<String>,
    #[serde(deserialize_with = "field::proxy")]
    proxy: Option<String>,
    #[serde(deserialize_with = "field::absolute")]
    ca_file: Option<PathBuf>,
}

/// The authentication method of a client.
#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Method {
    Basic,
    Post,
    PrivateKeyJwt,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum GrantKind {
    ClientCredentials,
    TokenExchange,
    RefreshToken,
}

impl OAuth2Table {
    pub fn oauth2(mut self, at: &str) -> Result<OAuth2, Error> {
        let server = match (self.issuer.take(), self.token_endpoint.take()) {
            (Some(_), Some(_)) => {
                let what = "conflicts with issuer, whose metadata name the token endpoint: set only one of them";
                return Err(wrong_at(at, "token-endpoint", what));
            }
            (Some(url), None) => AuthorizationServer::Issuer(url),
            (None, Some(url)) => AuthorizationServer::TokenEndpoint(url),
            (None, None) => {
                let what = "is missing: set it to the URL of the authorization server, or set token-endpoint";
                return Err(wrong_at(at, "issuer", what));
            }
        };
        let client_id = self
            .client_id
            .take()
            .ok_or_else(|| wrong_at(at, "client-id", "is missing"))?;
        check_client_id(&client_id).map_err(|e| wrong_at(at, "client-id", e))?;
        // RFC 8693 section 2.1 and RFC 8707 section 2: an absolute URI, without a fragment.
        if self.resource.iter().any(|uri| !uri.contains(':') || uri.contains('#')) {
            let what = "must be an absolute URI without a fragment: use audience for names";
            return Err(wrong_at(at, "resource", what));
        }
        if let Some(scope) = &self.scope {
            check_scope(scope).map_err(|e| wrong_at(at, "scope", e))?;
        }
        Ok(OAuth2 {
            server,
            client_id,
            authentication: authentication(
                at,
                self.client_authentication,
                self.client_secret.take(),
                self.client_key.take(),
            )?,
            grant: self.grant(at)?,
            scope: self.scope,
            audience: self.audience,
            resource: self.resource,
            network: Discovery {
                proxy: self.proxy,
                ca_file: self.ca_file,
                refresh: REFRESH,
            },
        })
    }

    fn grant(&mut self, at: &str) -> Result<Grant, Error> {
        use GrantKind::{ClientCredentials, RefreshToken, TokenExchange};

        let grant = self.grant.unwrap_or(ClientCredentials);
        let (token, kind, refresh) = (
            self.subject_token.take(),
            self.subject_token_type.take(),
            self.refresh_token.take(),
        );
        for (key, is_set, grant_of_key) in [
            ("share", self.share.is_some(), ClientCredentials),
            ("subject-token", token.is_some(), TokenExchange),
            ("subject-token-type", kind.is_some(), TokenExchange),
            ("refresh-token", refresh.is_some(), RefreshToken),
        ] {
            if is_set && grant != grant_of_key {
                let what = format!("requires grant = \"{}\"", grant_of_key.name());
                return Err(wrong_at(at, key, what));
            }
        }
        match grant {
            ClientCredentials => Ok(Grant::ClientCredentials {
                share: self.share.unwrap_or_default(),
            }),
            TokenExchange => {
                let subject_token = token.ok_or_else(|| wrong_at(at, "subject-token", "is missing"))?;
                if subject_token.is_constant() {
                    let what = "must be a different file for each user or job: use {uid}, {user} or {jobid}";
                    return Err(wrong_at(at, "subject-token", what));
                }
                let kind = kind.as_deref().unwrap_or("access_token");
                let subject_token_type = token_type(kind).map_err(|e| wrong_at(at, "subject-token-type", e))?;
                Ok(Grant::TokenExchange {
                    subject_token,
                    subject_token_type,
                })
            }
            RefreshToken => {
                let refresh_token = refresh.ok_or_else(|| wrong_at(at, "refresh-token", "is missing"))?;
                Ok(Grant::RefreshToken { refresh_token })
            }
        }
    }
}

/// Returns the authentication of a client.
pub(super) fn authentication(
    at: &str,
    method: Option<Method>,
    secret: Option<KeyPath>,
    key: Option<KeyPath>,
) -> Result<ClientAuthentication, Error> {
    let by_default = match key {
        Some(_) => Method::PrivateKeyJwt,
        None => Method::Basic,
    };
    match (method.unwrap_or(by_default), secret, key) {
        (Method::PrivateKeyJwt, None, Some(path)) => Ok(ClientAuthentication::PrivateKeyJwt(path)),
        (Method::Basic, Some(path), None) => Ok(ClientAuthentication::SecretBasic(path)),
        (Method::Post, Some(path), None) => Ok(ClientAuthentication::SecretPost(path)),
        (Method::PrivateKeyJwt, Some(_), _) => {
            let what = "cannot be used with client-authentication = \"private-key-jwt\"";
            Err(wrong_at(at, "client-secret", what))
        }
        (Method::PrivateKeyJwt, None, None) => Err(wrong_at(at, "client-key", "is missing")),
        (_, _, Some(_)) => {
            let what = "requires client-authentication = \"private-key-jwt\"";
            Err(wrong_at(at, "client-key", what))
        }
        (_, None, None) => {
            let what = "is missing: set the path of a file with the secret that only the instance owner can read";
            Err(wrong_at(at, "client-secret", what))
        }
    }
}

impl GrantKind {
    fn name(self) -> &'static str {
        match self {
            Self::ClientCredentials => "client-credentials",
            Self::TokenExchange => "token-exchange",
            Self::RefreshToken => "refresh-token",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, Source};

    fn rule(lines: &str) -> Result<OAuth2, String> {
        let text = format!("[[workflow-token.rule]]\nsource = \"oauth2\"\n{lines}");
        let config = Config::from_json(&toml::from_str(&text).unwrap()).map_err(|e| e.to_string())?;
        match &config.rules[0].source {
            Source::OAuth2(settings) => Ok((**settings).clone()),
            other => panic!("{other:?}"),
        }
    }

    const CLIENT: &str = "issuer = \"https://login.example.org\"\nclient-id = \"flux\"\nclient-secret = \"~/secret\"\n";

    #[test]
    fn defaults() {
        let settings = rule(CLIENT).unwrap();
        assert_eq!(
            settings.server,
            AuthorizationServer::Issuer("https://login.example.org".to_owned())
        );
        assert_eq!(settings.authentication.name(), "client_secret_basic");
        assert_eq!(settings.authentication.path().as_str(), "~/secret");
        assert_eq!(settings.grant, Grant::ClientCredentials { share: false });
        assert_eq!(
            (settings.scope, settings.audience.len(), settings.resource.len()),
            (None, 0, 0)
        );
    }

    #[test]
    fn all_keys() {
        let settings = rule(
            r#"
            token-endpoint = "https://login.example.org/token"
            client-id = "flux"
            client-key = "$KEYS/client.pem"
            grant = "token-exchange"
            subject-token = "/run/user/{uid}/identity.jwt"
            subject-token-type = "jwt"
            scope = "data:read data:write"
            audience = "copy-offload"
            resource = ["https://a.example.org", "urn:b"]
            proxy = "http://proxy:3128"
            ca-file = "/etc/ssl/site.pem"
            "#,
        )
        .unwrap();
        assert_eq!(
            settings.server,
            AuthorizationServer::TokenEndpoint("https://login.example.org/token".to_owned())
        );
        assert_eq!(settings.authentication.name(), "private_key_jwt");
        let Grant::TokenExchange {
            subject_token,
            subject_token_type,
        } = settings.grant
        else {
            panic!("{:?}", settings.grant);
        };
        assert_eq!(subject_token.to_string(), "/run/user/{uid}/identity.jwt");
        assert_eq!(subject_token_type, "urn:ietf:params:oauth:token-type:jwt");
        assert_eq!(settings.scope.as_deref(), Some("data:read data:write"));
        assert_eq!(settings.audience, ["copy-offload"]);
        assert_eq!(settings.resource, ["https://a.example.org", "urn:b"]);
        assert_eq!(settings.network.proxy.as_deref(), Some("http://proxy:3128"));
        assert_eq!(settings.network.ca_file, Some("/etc/ssl/site.pem".into()));
        let post = rule(&format!("{CLIENT}client-authentication = \"post\"\nshare = true")).unwrap();
        assert_eq!(post.authentication.name(), "client_secret_post");
        assert_eq!(post.grant, Grant::ClientCredentials { share: true });
        let refresh = rule(&format!(
            "{CLIENT}grant = \"refresh-token\"\nrefresh-token = \"/t/{{user}}\""
        ))
        .unwrap();
        assert_eq!(refresh.grant.token_file().unwrap().to_string(), "/t/{user}");
    }

    #[test]
    fn every_mistake_is_refused_and_names_its_key() {
        let exchange = "grant = \"token-exchange\"\n";
        let refresh = "grant = \"refresh-token\"\nrefresh-token = \"/t\"\n";
        let own = format!("{exchange}subject-token = \"/t/{{uid}}\"\n");
        for (lines, key) in [
            ("client-id = \"c\"".to_owned(), "issuer"),
            ("issuer = \"http://login.example.org\"".to_owned(), "issuer"),
            ("issuer = \"https://login.example.org/?x\"".to_owned(), "issuer"),
            (format!("{CLIENT}token-endpoint = \"https://x/t\""), "token-endpoint"),
            ("token-endpoint = \"login/token\"".to_owned(), "token-endpoint"),
            ("issuer = \"https://x\"".to_owned(), "client-id"),
            ("issuer = \"https://x\"\nclient-id = \"\"".to_owned(), "client-id"),
            ("issuer = \"https://x\"\nclient-id = \"c\"".to_owned(), "client-secret"),
            (
                "issuer = \"https://x\"\nclient-id = \"c\"\nclient-secret = \"hunter2\"".to_owned(),
                "client-secret",
            ),
            (format!("{CLIENT}client-key = \"/k\""), "client-secret"),
            (
                format!("{CLIENT}client-authentication = \"none\""),
                "client-authentication",
            ),
            (
                "issuer = \"https://x\"\nclient-id = \"c\"\nclient-authentication = \"private-key-jwt\"".to_owned(),
                "client-key",
            ),
            (format!("{CLIENT}grant = \"password\""), "grant"),
            (format!("{CLIENT}subject-token = \"/t\""), "subject-token"),
            (format!("{CLIENT}{exchange}"), "subject-token"),
            (
                format!("{CLIENT}{exchange}subject-token = \"t/{{uid}}\""),
                "subject-token",
            ),
            (format!("{CLIENT}{exchange}subject-token = \"/t\""), "subject-token"),
            (format!("{CLIENT}{own}subject-token-type = \"x\""), "subject-token-type"),
            (format!("{CLIENT}{own}share = true"), "share"),
            (format!("{CLIENT}share = 1"), "share"),
            (format!("{CLIENT}refresh-token = \"/t\""), "refresh-token"),
            (format!("{CLIENT}grant = \"refresh-token\""), "refresh-token"),
            (format!("{CLIENT}{refresh}share = true"), "share"),
            (format!("{CLIENT}{refresh}subject-token = \"/t\""), "subject-token"),
            (format!("{CLIENT}scope = \"a  b\""), "scope"),
            (format!("{CLIENT}resource = \"copy-offload\""), "resource"),
            (format!("{CLIENT}audience = []"), "audience"),
            (format!("{CLIENT}proxy = \"proxy:3128\""), "proxy"),
            (format!("{CLIENT}ca-file = \"ca.pem\""), "ca-file"),
            (format!("{CLIENT}path = \"/t\""), "path"),
            (format!("{CLIENT}workspace = \"w\""), "workspace"),
        ] {
            let error = rule(&lines).unwrap_err();
            let start = format!("workflow-token.rule[0].{key}: ");
            assert!(error.starts_with(&start), "{lines}\ngave: {error}");
            assert!(!error.contains("hunter2"), "the message contains a secret: {error}");
        }
    }
}
