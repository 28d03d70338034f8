//! The tables `project` and `identity`.

use super::{Error, issuer::trust_of, wrong, wrong_at};
use crate::{Identity, Project, Projects, Rule, Source, TABLE, Trust};

/// Why there is to be no `{project}` where there are no projects.
pub(super) const OPEN: &str =
    "has {project}, which any user could name: say who is in it by [[workflow-token.project]]";

pub(super) fn projects(list: Vec<Project>, identity: Option<Identity>, trusts: &[Trust]) -> Result<Projects, Error> {
    if let Some(Identity { token, trust, .. }) = &identity {
        let at = format!("{TABLE}.identity");
        if !token.is_of_user() {
            let what = "must name the user, and nothing of a job: use {user} or {uid}";
            return Err(wrong_at(&at, "token", what));
        }
        trust_of(&at, trust, trusts)?;
    }
    for (index, project) in list.iter().enumerate() {
        let (at, former) = (&format!("{TABLE}.project[{index}]"), &list[..index]);
        if project.users.is_empty() && project.groups.is_empty() && project.claims.is_empty() {
            return Err(wrong(
                at,
                "has nobody in it: set one of the keys users, groups and claims",
            ));
        }
        if let Some(index) = project.claims.iter().position(String::is_empty) {
            return Err(wrong(format!("{at}.claims[{index}]"), "must not be empty"));
        }
        if former.iter().any(|former| former.name == project.name) {
            return Err(wrong_at(at, "name", "is that of a project before it"));
        }
        if project.default && former.iter().any(|former| former.default) {
            let what = "is true for a project before it: one can be the default";
            return Err(wrong_at(at, "default", what));
        }
        if !project.claims.is_empty() && identity.is_none() {
            let what = "needs the table workflow-token.identity, which says where the claims of a user are";
            return Err(wrong_at(at, "claims", what));
        }
    }
    Ok(Projects { list, identity })
}

/// Refuses a rule that is for projects that there are not, or would let users name any project.
pub(super) fn check_rule(at: &str, rule: &Rule, projects: &Projects) -> Result<(), Error> {
    if !projects.is_empty() {
        return match &rule.conditions.project {
            Some(name) if !projects.list.iter().any(|project| project.name == *name) => {
                let what = format!("`{}` is none of the projects", name.escape_debug());
                Err(wrong_at(at, "project", what))
            }
            _ => Ok(()),
        };
    }
    if matches!(&rule.source, Source::Issuer(issuer) if issuer.workspace.is_none()) {
        let what = "is missing, and there are no projects: say which workspace its tokens are for, or who is in which \
                    project by [[workflow-token.project]]";
        return Err(wrong_at(at, "workspace", what));
    }
    match rule.source.needs_project() {
        true => Err(wrong(at, OPEN)),
        false => Ok(()),
    }
}
