// SPDX-License-Identifier: MIT OR Apache-2.0

//! The table `service` and its tables `grant`.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use super::{Error, field, issuer::trust_of, login::LoginTable, wrong_at};
use crate::{EvidenceKind, Login, Principal, Projects, Service, ServiceGrant, TABLE, Trust, check_label};

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct ServiceTable {
    #[serde(deserialize_with = "field::socket")]
    socket: Option<PathBuf>,
    #[serde(deserialize_with = "field::principal")]
    user: Option<Principal>,
    grant: Vec<GrantTable>,
    pub login: Option<LoginTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", expecting = "a table")]
struct GrantTable {
    #[serde(deserialize_with = "field::strings")]
    from: Vec<String>,
    #[serde(deserialize_with = "field::strings")]
    audience: Vec<String>,
    #[serde(default)]
    clients: Vec<String>,
    #[serde(default, deserialize_with = "field::principals")]
    users: Vec<Principal>,
    #[serde(default, deserialize_with = "field::principals")]
    groups: Vec<Principal>,
    #[serde(default)]
    workspaces: Vec<String>,
    #[serde(default, deserialize_with = "field::text")]
    user_claim: Option<String>,
    #[serde(default, deserialize_with = "field::duration")]
    max_lifetime: Option<Duration>,
}

/// The default of `max-lifetime`.
const LIFETIME: Duration = Duration::from_secs(3600);

impl ServiceTable {
    pub fn service(
        self,
        trusts: &[Trust],
        projects: &Projects,
        has_issuer: bool,
        login: Option<Login>,
    ) -> Result<Service, Error> {
        let user = || Principal::Name("workflow-tokend".to_owned());
        let grants = self.grant.into_iter().enumerate().map(|(i, table)| {
            let at = format!("{TABLE}.service.grant[{i}]");
            match has_issuer {
                true => table.grant(&at, trusts, projects),
                false => Err(wrong_at(
                    &at,
                    "from",
                    "needs the table [workflow-token.issuer], which mints the tokens",
                )),
            }
        });
        let grants = grants.collect::<Result<Vec<_>, _>>()?;
        check_user_claims(&grants)?;
        if login.is_some() && !has_issuer {
            let what = "needs the table [workflow-token.issuer], which mints the tokens";
            return Err(wrong_at(&format!("{TABLE}.service"), "login", what));
        }
        Ok(Service {
            socket: self.socket.unwrap_or_else(|| "/run/workflow-token/service".into()),
            user: self.user.unwrap_or_else(user),
            grants,
            login,
        })
    }
}

/// Checks that all grants for one issuer use the same claim for the user: an identity token is verified before a grant
/// is chosen, and names one user.
fn check_user_claims(grants: &[ServiceGrant]) -> Result<(), Error> {
    for (i, grant) in grants.iter().enumerate() {
        let is_trust = |kind: &&EvidenceKind| matches!(kind, EvidenceKind::Trust(_)) && grant.evidence.contains(kind);
        let differs = |other: &&ServiceGrant| {
            other.evidence.iter().any(|kind| is_trust(&kind)) && other.user_claim != grant.user_claim
        };
        if grants[..i].iter().any(|other| differs(&other)) {
            let what = "differs from that of another grant for the same issuer";
            return Err(wrong_at(&format!("{TABLE}.service.grant[{i}]"), "user-claim", what));
        }
    }
    Ok(())
}

impl GrantTable {
    fn grant(self, at: &str, trusts: &[Trust], projects: &Projects) -> Result<ServiceGrant, Error> {
        let evidence = self.from.iter().map(|from| match from.as_str() {
            "munge" => Ok(EvidenceKind::Munge),
            "client" => Ok(EvidenceKind::Client),
            name => trust_of(at, name, trusts).map(EvidenceKind::Trust).map_err(|_| {
                let what = format!(
                    "must be \"munge\", \"client\" or the name of a trust table, but there is no [{TABLE}.trust.{}]",
                    name.escape_debug()
                );
                wrong_at(at, "from", what)
            }),
        });
        let evidence = evidence.collect::<Result<Vec<_>, _>>()?;
        if evidence.contains(&EvidenceKind::Client) {
            if evidence.len() > 1 {
                return Err(wrong_at(
                    at,
                    "from",
                    "must be \"client\" alone: its tokens have no user",
                ));
            }
            if self.clients.is_empty() {
                return Err(wrong_at(at, "clients", "is missing: name the clients that get tokens"));
            }
            let restriction = [("users", &self.users), ("groups", &self.groups)];
            if let Some((key, _)) = restriction.into_iter().find(|(_, names)| !names.is_empty()) {
                return Err(wrong_at(
                    at,
                    key,
                    "restricts tokens of users, but these tokens are for the client itself: remove it",
                ));
            }
        }
        for workspace in &self.workspaces {
            check_label(workspace).map_err(|e| wrong_at(at, "workspaces", e))?;
        }
        if self.workspaces.is_empty() && (projects.is_empty() || evidence.contains(&EvidenceKind::Client)) {
            let what =
                "is missing: name the workspaces of the tokens, because there are no user projects to use instead";
            return Err(wrong_at(at, "workspaces", what));
        }
        let max_lifetime = self.max_lifetime.unwrap_or(LIFETIME);
        if max_lifetime < Duration::from_secs(1) {
            return Err(wrong_at(at, "max-lifetime", "must be at least 1s"));
        }
        Ok(ServiceGrant {
            evidence,
            clients: self.clients,
            users: self.users,
            groups: self.groups,
            audience: self.audience,
            workspaces: self.workspaces,
            user_claim: self.user_claim.unwrap_or_else(|| "sub".to_owned()),
            max_lifetime,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{Config, Principal};

    #[test]
    fn a_table_has_defaults_and_mistakes_name_the_key() {
        let issuer = json!({"keys": "/k", "name": "https://a", "audience": "a"});
        let read = |service| Config::from_json(&json!({"workflow-token": {"issuer": issuer, "service": service}}));
        let grant = |grant| json!({"grant": [grant]});
        let service = read(json!({})).unwrap().agent.service.unwrap();
        assert_eq!(service.user, Principal::Name("workflow-tokend".to_owned()));
        assert_eq!(service.socket.to_str(), Some("/run/workflow-token/service"));
        let service = read(json!({"socket": "/run/s", "user": 998}))
            .unwrap()
            .agent
            .service
            .unwrap();
        assert_eq!(
            (service.socket.to_str(), service.user),
            (Some("/run/s"), Principal::Id(998))
        );
        for (table, says) in [
            (
                json!({"socket": "s"}),
                "workflow-token.service.socket: must be an absolute path",
            ),
            (json!({"user": ""}), "workflow-token.service.user: must be 1 to"),
            (json!({"port": 1}), "workflow-token.service.port"),
            (json!("x"), "a table"),
            (grant(json!({"from": "munge"})), "service.grant[0].audience: is missing"),
            (
                grant(json!({"from": "other", "audience": "a"})),
                "service.grant[0].from: must be \"munge\"",
            ),
            (
                grant(json!({"from": "munge", "audience": "a"})),
                "service.grant[0].workspaces: is missing",
            ),
            (
                grant(json!({"from": "munge", "audience": "a", "workspaces": ["A b"]})),
                "service.grant[0].workspaces",
            ),
            (
                grant(json!({"from": "client", "audience": "a", "workspaces": ["w"]})),
                "service.grant[0].clients: is missing",
            ),
            (
                grant(json!({"from": ["client", "munge"], "audience": "a", "workspaces": ["w"]})),
                "service.grant[0].from: must be \"client\" alone",
            ),
            (
                grant(
                    json!({"from": "client", "clients": ["c"], "groups": ["g"], "audience": "a", "workspaces": ["w"]}),
                ),
                "service.grant[0].groups: restricts tokens of users",
            ),
            (
                grant(json!({"from": "munge", "audience": "a", "workspaces": ["w"], "max-lifetime": "500ms"})),
                "service.grant[0].max-lifetime: must be at least 1s",
            ),
        ] {
            let error = read(table.clone()).unwrap_err().to_string();
            assert!(error.contains(says), "{table}: {error}");
        }
        let trust = json!({"site": {"issuer": "https://b.example.org", "keys": "/k", "audience": "a"}});
        let of_site = |claim: &str| json!({"from": "site", "audience": "a", "workspaces": ["w"], "user-claim": claim});
        let both = |first, second| {
            let service = json!({"grant": [of_site(first), of_site(second)]});
            Config::from_json(&json!({"workflow-token": {"issuer": issuer, "trust": trust, "service": service}}))
        };
        assert!(both("uid", "uid").is_ok());
        let error = both("uid", "sub").unwrap_err().to_string();
        assert!(error.contains("service.grant[1].user-claim: differs"), "{error}");
        let alone = json!({"workflow-token": {"service": grant(json!({"from": "munge", "audience": "a"}))}});
        let error = Config::from_json(&alone).unwrap_err().to_string();
        assert!(
            error.contains("service.grant[0].from: needs the table [workflow-token.issuer]"),
            "{error}"
        );
    }
}
