// SPDX-License-Identifier: MIT OR Apache-2.0

//! The tables `project` and `identity`.

use serde::Deserialize;

use super::{Error, field, issuer::trust_of, login::of_login_store, wrong, wrong_at};
use crate::{
    Identity, IdentityToken, Login, Munge, Project, Projects, Rule, Source, TABLE, Template, Trust, UserTemplate,
};

/// The error of a template that contains `{project}` if no projects are configured.
pub(super) const OPEN: &str =
    "uses {project}, but any user could name any project: define the members by [[workflow-token.project]]";

/// The table `identity`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct IdentityTable {
    #[serde(default, deserialize_with = "field::absolute_template")]
    token: Option<Template>,
    from: Option<IdentityFrom>,
    #[serde(default, deserialize_with = "field::text")]
    trust: Option<String>,
    #[serde(deserialize_with = "field::text")]
    claim: String,
    #[serde(default, deserialize_with = "field::text")]
    user: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum IdentityFrom {
    Login,
}

impl IdentityTable {
    fn identity(self, trusts: &[Trust], login: Option<&Login>, munge: &Munge) -> Result<Identity, Error> {
        let at = &format!("{TABLE}.identity");
        match (self.token, self.from) {
            (Some(token), None) => {
                if !token.is_of_user() {
                    let what = "must depend on the user and not on a job: use {user} or {uid}";
                    return Err(wrong_at(at, "token", what));
                }
                let trust = self.trust.ok_or_else(|| wrong_at(at, "trust", "is missing"))?;
                trust_of(at, &trust, trusts)?;
                Ok(Identity {
                    token: IdentityToken::File(token),
                    trust,
                    claim: self.claim,
                    user: self.user.unwrap_or_else(|| "sub".to_owned()),
                    user_template: UserTemplate::default(),
                })
            }
            (None, Some(IdentityFrom::Login)) => {
                let of_login = [("trust", self.trust.is_some()), ("user", self.user.is_some())];
                if let Some((key, _)) = of_login.iter().find(|(_, is_set)| *is_set) {
                    let what = format!("comes from [{TABLE}.service.login] with from = \"login\": remove it");
                    return Err(wrong_at(at, key, what));
                }
                let client = of_login_store(at, "from", login, munge)?;
                // `of_login_store` has checked that there is one.
                let login = login.ok_or_else(|| wrong_at(at, "from", "needs logins"))?;
                Ok(Identity {
                    token: IdentityToken::Login(Box::new(client)),
                    trust: trusts[login.trust].name.clone(),
                    claim: self.claim,
                    user: login.user_claim.clone(),
                    user_template: login.user_template.clone(),
                })
            }
            (None, None) => Err(wrong_at(at, "token", "is missing: set it, or set from = \"login\"")),
            (Some(_), Some(_)) => Err(wrong_at(at, "from", "set either token or from")),
        }
    }
}

pub(super) fn projects(
    list: Vec<Project>,
    identity: Option<IdentityTable>,
    trusts: &[Trust],
    login: Option<&Login>,
    munge: &Munge,
) -> Result<Projects, Error> {
    let identity = identity.map(|table| table.identity(trusts, login, munge)).transpose()?;
    for (index, project) in list.iter().enumerate() {
        let (at, former) = (&format!("{TABLE}.project[{index}]"), &list[..index]);
        if project.users.is_empty() && project.groups.is_empty() && project.claims.is_empty() {
            return Err(wrong(
                at,
                "has no members: set one of the keys users, groups and claims",
            ));
        }
        if let Some(index) = project.claims.iter().position(String::is_empty) {
            return Err(wrong(format!("{at}.claims[{index}]"), "must not be empty"));
        }
        if former.iter().any(|former| former.name == project.name) {
            return Err(wrong_at(at, "name", "is also the name of an earlier project"));
        }
        if project.default && former.iter().any(|former| former.default) {
            let what = "is already true for an earlier project: only one can be the default";
            return Err(wrong_at(at, "default", what));
        }
        if !project.claims.is_empty() && identity.is_none() {
            let what = "needs the table [workflow-token.identity], which locates the claims of a user";
            return Err(wrong_at(at, "claims", what));
        }
    }
    Ok(Projects { list, identity })
}

/// Rejects a rule for an unknown project, and a rule that lets users name any project.
pub(super) fn check_rule(at: &str, rule: &Rule, projects: &Projects) -> Result<(), Error> {
    if !projects.is_empty() {
        return match &rule.conditions.project {
            Some(name) if !projects.list.iter().any(|project| project.name == *name) => {
                let what = format!("there is no project `{}`", name.escape_debug());
                Err(wrong_at(at, "project", what))
            }
            _ => Ok(()),
        };
    }
    if matches!(&rule.source, Source::Issuer(issuer) if issuer.workspace.is_none()) {
        let what = "is missing, and there are no projects: set the workspace of the tokens, or define projects by \
                    [[workflow-token.project]]";
        return Err(wrong_at(at, "workspace", what));
    }
    match rule.source.needs_project() {
        true => Err(wrong(at, OPEN)),
        false => Ok(()),
    }
}
