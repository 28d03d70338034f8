// SPDX-License-Identifier: MIT OR Apache-2.0

//! The table `service.login`.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use super::{
    Error, field,
    issuer::trust_of,
    oauth2::{Method, authentication},
    wrong_at,
};
use crate::{
    AuthorizationServer, Discovery, Grant, KeyPath, Login, Munge, OAuth2, TABLE, Trust, TrustedKeys, UserTemplate,
    check_issuer_url,
    issuer::REFRESH,
    oauth2::{check_client_id, check_scope},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", expecting = "a table")]
pub(super) struct LoginTable {
    #[serde(deserialize_with = "field::text")]
    from: String,
    #[serde(deserialize_with = "field::text")]
    client_id: String,
    client_secret: Option<KeyPath>,
    client_key: Option<KeyPath>,
    client_authentication: Option<Method>,
    #[serde(default, deserialize_with = "field::text")]
    scope: Option<String>,
    #[serde(default, deserialize_with = "field::text")]
    user_claim: Option<String>,
    #[serde(default, deserialize_with = "field::text")]
    user_template: Option<String>,
    #[serde(default, deserialize_with = "field::duration")]
    max_session: Option<Duration>,
    #[serde(default, deserialize_with = "field::absolute")]
    store: Option<PathBuf>,
}

/// The default of `max-session`.
const SESSION: Duration = Duration::from_secs(8 * 3600);

/// The bounds of `max-session`.
const SESSIONS: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(90 * 86_400));

/// The default of `scope`.
const SCOPE: &str = "openid profile";

impl LoginTable {
    pub fn login(self, trusts: &[Trust]) -> Result<Login, Error> {
        let at = &format!("{TABLE}.service.login");
        let wrong = |key: &str, what: &str| wrong_at(at, key, what);
        let trust = trust_of(at, &self.from, trusts).map_err(|_| {
            let name = self.from.escape_debug();
            wrong(
                "from",
                &format!("must name the trust table of the provider, but there is no [{TABLE}.trust.{name}]"),
            )
        })?;
        let provider = &trusts[trust];
        check_issuer_url(&provider.issuer).map_err(|e| {
            wrong(
                "from",
                &format!("the issuer of that table is the URL of the provider, and it {e}"),
            )
        })?;
        check_client_id(&self.client_id).map_err(|e| wrong("client-id", e))?;
        if !provider.audience.contains(&self.client_id) {
            // OpenID Connect Core section 3.1.3.7: the client is in the audience of identity tokens.
            let name = &provider.name;
            return Err(wrong(
                "client-id",
                &format!("must be in the audience of [{TABLE}.trust.{name}]: identity tokens are for this client"),
            ));
        }
        let scope = self.scope.unwrap_or_else(|| SCOPE.to_owned());
        check_scope(&scope).map_err(|e| wrong("scope", e))?;
        if !scope.split(' ').any(|word| word == "openid") {
            return Err(wrong(
                "scope",
                "must contain the word openid, without which providers issue no identity token",
            ));
        }
        let template = self.user_template.as_deref().map(UserTemplate::parse).transpose();
        let max_session = self.max_session.unwrap_or(SESSION);
        if max_session < SESSIONS.0 || max_session > SESSIONS.1 {
            return Err(wrong("max-session", "must be from 1m to 90d"));
        }
        let network = match &provider.keys {
            TrustedKeys::Discovered(discovery) => discovery.clone(),
            TrustedKeys::Path(_) | TrustedKeys::Secret(_) => Discovery {
                proxy: None,
                ca_file: None,
                refresh: REFRESH,
            },
        };
        Ok(Login {
            trust,
            client: OAuth2 {
                server: AuthorizationServer::Issuer(provider.issuer.clone()),
                client_id: self.client_id,
                authentication: authentication(at, self.client_authentication, self.client_secret, self.client_key)?,
                grant: Grant::AuthorizationCode,
                scope: Some(scope),
                audience: Vec::new(),
                resource: Vec::new(),
                network,
            },
            user_claim: self.user_claim.unwrap_or_else(|| "preferred_username".to_owned()),
            user_template: template.map_err(|e| wrong("user-template", &e))?.unwrap_or_default(),
            max_session,
            store: self.store,
        })
    }
}

/// The keys of a rule with `source = "login"`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LoginSourceTable {
    #[serde(default, deserialize_with = "field::text")]
    scope: Option<String>,
    #[serde(default, deserialize_with = "field::strings")]
    audience: Option<Vec<String>>,
}

impl LoginSourceTable {
    pub fn oauth2(self, at: &str, login: Option<&Login>, munge: &Munge) -> Result<OAuth2, Error> {
        if let Some(scope) = &self.scope {
            check_scope(scope).map_err(|e| wrong_at(at, "scope", e))?;
        }
        Ok(OAuth2 {
            scope: self.scope,
            audience: self.audience.unwrap_or_default(),
            ..of_login_store(at, "source", login, munge)?
        })
    }
}

/// Returns the client of the provider that uses the refresh tokens of logins.
pub(super) fn of_login_store(at: &str, key: &str, login: Option<&Login>, munge: &Munge) -> Result<OAuth2, Error> {
    let store = login.and_then(|login| Some((login, login.store.clone()?)));
    let (login, store) = store.ok_or_else(|| {
        let what = format!("`login` needs the key store in the table [{TABLE}.service.login]");
        wrong_at(at, key, what)
    })?;
    let munge = munge.clone();
    Ok(OAuth2 {
        grant: Grant::Login { store, munge },
        scope: None,
        ..login.client.clone()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{Config, Grant, Login, Source};

    fn read(trust: &Value, login: &Value) -> Result<Login, String> {
        let table = json!({"workflow-token": {
            "issuer": {"keys": "/k", "name": "https://a.example.org", "audience": "a"},
            "trust": {"site": trust},
            "service": {"login": login},
        }});
        let config = Config::from_json(&table).map_err(|e| e.to_string())?;
        Ok(config.agent.service.unwrap().login.unwrap())
    }

    #[test]
    fn a_table_has_defaults_and_mistakes_name_the_key() {
        let trust = json!({"issuer": "https://b.example.org", "audience": "us"});
        let login = |more: Value| {
            let mut login = json!({"from": "site", "client-id": "us", "client-secret": "/s"});
            login.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            login
        };
        let found = read(&trust, &login(json!({}))).unwrap();
        assert_eq!(
            (found.trust, &*found.user_claim, found.max_session.as_secs()),
            (0, "preferred_username", 28800)
        );
        assert_eq!(found.client.scope.as_deref(), Some("openid profile"));
        for (more, says) in [
            (json!({"from": "other"}), "login.from: must name the trust table"),
            (json!({"client-id": "them"}), "login.client-id: must be in the audience"),
            (json!({"client-secret": null}), "login.client-secret"),
            (json!({"scope": "profile"}), "login.scope: must contain the word openid"),
            (
                json!({"user-template": "x"}),
                "login.user-template: must contain {user} once",
            ),
            (json!({"max-session": "1s"}), "login.max-session: must be from 1m"),
            (json!({"max-session": "100d"}), "login.max-session: must be from 1m"),
            (json!({"store": "logins"}), "login.store: must be an absolute path"),
            (json!({"port": 1}), "login.port"),
        ] {
            let error = read(&trust, &login(more.clone())).unwrap_err();
            assert!(error.contains(says), "{more}: {error}");
        }
        let with = |store: Value| {
            let config = json!({"workflow-token": {
                "issuer": {"keys": "/k", "name": "https://a.example.org", "audience": "a"},
                "trust": {"site": trust},
                "service": {"login": login(store)},
                "rule": [{"source": "login", "scope": "jobs"}],
            }});
            Config::from_json(&config).map_err(|e| e.to_string())
        };
        let config = with(json!({"store": "/var/lib/logins"})).unwrap();
        assert!(matches!(&config.rules[0].source, Source::OAuth2(client)
            if client.scope.as_deref() == Some("jobs") && matches!(client.grant, Grant::Login { .. })));
        let error = with(json!({})).unwrap_err();
        assert!(error.contains("rule[0].source: `login` needs the key store"), "{error}");
        let named = json!({"issuer": "site", "keys": "/k", "audience": "us"});
        let error = read(&named, &login(json!({}))).unwrap_err();
        assert!(error.contains("login.from: the issuer of that table"), "{error}");
    }
}
