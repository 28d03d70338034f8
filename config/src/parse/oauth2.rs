//! The keys of rules with `source = "oauth2"`, and of how servers are reached.

use serde_json::Value;

use super::{Error, Reader, parsed};
use crate::{
    AuthorizationServer, ClientAuthentication, Discovery, Grant, OAuth2, check_issuer_url, check_proxy_url, check_url,
    issuer::REFRESH,
    oauth2::{check_client_id, check_scope, token_type},
};

impl Reader<'_> {
    pub(super) fn oauth2(&self) -> Result<OAuth2, Error> {
        let server = match (self.string("issuer")?, self.string("token-endpoint")?) {
            (Some(_), Some(_)) => {
                return Err(self.wrong("token-endpoint", "is found by the key issuer: give one of them"));
            }
            (Some(issuer), None) => {
                check_issuer_url(issuer).map_err(|e| self.wrong("issuer", e))?;
                AuthorizationServer::Issuer(issuer.to_owned())
            }
            (None, Some(endpoint)) => {
                check_url(endpoint).map_err(|e| self.wrong("token-endpoint", e))?;
                AuthorizationServer::TokenEndpoint(endpoint.to_owned())
            }
            (None, None) => {
                return Err(self.wrong(
                    "issuer",
                    "is missing: source = \"oauth2\" needs the URL of the authorization server, or token-endpoint",
                ));
            }
        };
        let client_id = self.needed("client-id", self.string("client-id")?)?;
        check_client_id(client_id).map_err(|e| self.wrong("client-id", e))?;
        let audience = self.audience()?.unwrap_or_default();
        let resource = self.strings("resource")?.unwrap_or_default();
        // RFC 8693 section 2.1 and RFC 8707 section 2: an absolute URI, without a fragment.
        if resource.iter().any(|uri| !uri.contains(':') || uri.contains('#')) {
            return Err(self.wrong(
                "resource",
                "must be an absolute URI without a fragment; for names, use audience",
            ));
        }
        if let Some(scope) = self.string("scope")? {
            check_scope(scope).map_err(|e| self.wrong("scope", e))?;
        }
        Ok(OAuth2 {
            server,
            client_id: client_id.to_owned(),
            authentication: self.client_authentication()?,
            grant: self.grant()?,
            scope: self.string("scope")?.map(str::to_owned),
            audience,
            resource,
            network: self.network()?,
        })
    }

    fn client_authentication(&self) -> Result<ClientAuthentication, Error> {
        let how = match self.string("client-authentication")? {
            Some(how @ ("basic" | "post" | "private-key-jwt")) => how,
            Some(other) => {
                return Err(self.wrong(
                    "client-authentication",
                    format!("`{}` is none: use basic, post or private-key-jwt", other.escape_debug()),
                ));
            }
            None if self.table.contains_key("client-key") => "private-key-jwt",
            None => "basic",
        };
        if how == "private-key-jwt" {
            self.unused(
                "client-secret",
                "is not for client-authentication = \"private-key-jwt\"",
            )?;
            let path = self.needed("client-key", self.key_path("client-key")?)?;
            return Ok(ClientAuthentication::PrivateKeyJwt(path));
        }
        self.unused("client-key", "is for client-authentication = \"private-key-jwt\"")?;
        let path = self.key_path("client-secret")?.ok_or_else(|| {
            self.wrong(
                "client-secret",
                "is missing: give the path of a file with it, which only the instance owner can read",
            )
        })?;
        Ok(match how {
            "post" => ClientAuthentication::SecretPost(path),
            _ => ClientAuthentication::SecretBasic(path),
        })
    }

    fn grant(&self) -> Result<Grant, Error> {
        let share = match self.table.get("share").map(parsed) {
            None => false,
            Some(Value::Bool(share)) => share,
            Some(_) => return Err(self.wrong("share", "must be true or false")),
        };
        match self.string("grant")? {
            None | Some("client-credentials") => {
                for key in ["subject-token", "subject-token-type"] {
                    self.unused(key, "is for grant = \"token-exchange\"")?;
                }
                Ok(Grant::ClientCredentials { share })
            }
            Some("token-exchange") => {
                self.unused(
                    "share",
                    "is for grant = \"client-credentials\": what is exchanged is of one user",
                )?;
                let text = self.needed("subject-token", self.string("subject-token")?)?;
                let subject_token = self.template("subject-token", text)?;
                if !subject_token.starts_with("/") {
                    return Err(self.wrong("subject-token", "must be an absolute path"));
                }
                if subject_token.is_constant() {
                    return Err(self.wrong(
                        "subject-token",
                        "must be another file for each user or job: use {uid}, {user} or {jobid}",
                    ));
                }
                let kind = self.string("subject-token-type")?.unwrap_or("access_token");
                let subject_token_type = token_type(kind).map_err(|e| self.wrong("subject-token-type", e))?;
                Ok(Grant::TokenExchange {
                    subject_token,
                    subject_token_type,
                })
            }
            Some(other) => Err(self.wrong(
                "grant",
                format!(
                    "`{}` is not supported: use client-credentials or token-exchange",
                    other.escape_debug()
                ),
            )),
        }
    }

    /// How a server is reached.
    pub(super) fn network(&self) -> Result<Discovery, Error> {
        let proxy = self.string("proxy")?;
        if let Some(proxy) = proxy {
            check_proxy_url(proxy).map_err(|e| self.wrong("proxy", e))?;
        }
        Ok(Discovery {
            proxy: proxy.map(str::to_owned),
            ca_file: self.absolute("ca-file")?,
            refresh: self.duration("refresh")?.unwrap_or(REFRESH),
        })
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
    fn little_has_to_be_said() {
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
    fn all_of_it_can_be_said() {
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
    }

    #[test]
    fn every_mistake_is_refused_and_names_its_key() {
        let exchange = "grant = \"token-exchange\"\n";
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
            assert!(!error.contains("hunter2"), "what may be a secret is told: {error}");
        }
    }
}
