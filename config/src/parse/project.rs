//! The tables `project` and `identity`.

use serde_json::Value;

use super::{Error, Reader, parsed, wrong};
use crate::{Identity, Principal, Project, Projects, Rule, Source, Trust, kubernetes};

const PROJECT_KEYS: &[&str] = &["name", "users", "groups", "claims", "default"];
const IDENTITY_KEYS: &[&str] = &["token", "trust", "claim", "user"];

/// Why there is to be no `{project}` where there are no projects.
pub(super) const OPEN: &str =
    "has {project}, which any user could name: say who is in it by [[workflow-token.project]]";

impl Reader<'_> {
    pub(super) fn projects(&self, trusts: &[Trust]) -> Result<Projects, Error> {
        let identity = self.identity(trusts)?;
        let tables = match self.table.get("project").map(parsed) {
            None => Vec::new(),
            Some(Value::Array(tables)) => tables,
            Some(_) => {
                return Err(self.wrong(
                    "project",
                    "must be an array of tables: write [[workflow-token.project]]",
                ));
            }
        };
        let mut list: Vec<Project> = Vec::with_capacity(tables.len());
        for (index, table) in tables.iter().enumerate() {
            let prefix = format!("{}.project[{index}]", self.prefix);
            let Value::Object(table) = table else {
                return Err(wrong(prefix, "must be a table"));
            };
            let reader = Reader { prefix, table };
            let project = reader.project()?;
            if list.iter().any(|former| former.name == project.name) {
                return Err(reader.wrong("name", "is that of a project before it"));
            }
            if project.default && list.iter().any(|former| former.default) {
                return Err(reader.wrong("default", "is true for a project before it: one can be the default"));
            }
            if !project.claims.is_empty() && identity.is_none() {
                let why = "needs the table workflow-token.identity, which says where the claims of a user are";
                return Err(reader.wrong("claims", why));
            }
            list.push(project);
        }
        Ok(Projects { list, identity })
    }

    fn project(&self) -> Result<Project, Error> {
        self.known(PROJECT_KEYS)?;
        let Some(name) = self.string("name")? else {
            return Err(self.wrong("name", "is missing"));
        };
        kubernetes::check_label(name).map_err(|e| self.wrong("name", e))?;
        let claims = self.list("claims", |value| match value {
            Value::String(text) if !text.is_empty() => Ok(text.clone()),
            _ => Err("must be an array of strings that are not empty".to_owned()),
        })?;
        let project = Project {
            name: name.to_owned(),
            users: self.list("users", principal)?,
            groups: self.list("groups", principal)?,
            claims,
            default: match self.table.get("default").map(parsed) {
                None => false,
                Some(Value::Bool(default)) => default,
                Some(_) => return Err(self.wrong("default", "must be true or false")),
            },
        };
        if project.users.is_empty() && project.groups.is_empty() && project.claims.is_empty() {
            let why = "has nobody in it: set one of the keys users, groups and claims";
            return Err(wrong(&self.prefix, why));
        }
        Ok(project)
    }

    fn identity(&self, trusts: &[Trust]) -> Result<Option<Identity>, Error> {
        let table = match self.table.get("identity").map(parsed) {
            None => return Ok(None),
            Some(Value::Object(table)) => table,
            Some(_) => return Err(self.wrong("identity", "must be a table: write [workflow-token.identity]")),
        };
        let reader = Reader {
            prefix: format!("{}.identity", self.prefix),
            table: &table,
        };
        reader.known(IDENTITY_KEYS)?;
        let missing = |key| reader.wrong(key, "is missing");
        let token = reader.string("token")?.ok_or_else(|| missing("token"))?;
        let token = reader.template("token", token)?;
        if !token.starts_with("/") {
            return Err(reader.wrong("token", "must be absolute"));
        }
        if !token.is_of_user() {
            let why = "must name the user, and nothing of a job: use {user} or {uid}";
            return Err(reader.wrong("token", why));
        }
        let trust = reader.nonempty("trust")?.ok_or_else(|| missing("trust"))?;
        if !trusts.iter().any(|known| known.name == trust) {
            let why = format!("there is no table [workflow-token.trust.{}]", trust.escape_debug());
            return Err(reader.wrong("trust", why));
        }
        Ok(Some(Identity {
            token,
            trust,
            claim: reader.nonempty("claim")?.ok_or_else(|| missing("claim"))?,
            user: reader.nonempty("user")?.unwrap_or_else(|| "sub".to_owned()),
        }))
    }

    /// Refuses a rule that is for projects that there are not, or would let users name any project.
    pub(super) fn rule_of_projects(&self, rule: &Rule, projects: &Projects) -> Result<(), Error> {
        if projects.is_empty() {
            if let Source::Issuer(issuer) = &rule.source
                && issuer.workspace.is_none()
            {
                return Err(self.wrong(
                    "workspace",
                    "is missing, and there are no projects: say which workspace its tokens are for, or who is in which \
                     project by [[workflow-token.project]]",
                ));
            }
            if rule.source.needs_project() {
                return Err(wrong(&self.prefix, OPEN));
            }
            return Ok(());
        }
        match &rule.conditions.project {
            Some(name) if !projects.list.iter().any(|project| project.name == *name) => {
                let why = format!("`{}` is none of the projects", name.escape_debug());
                Err(self.wrong("project", why))
            }
            _ => Ok(()),
        }
    }

    fn list<T>(&self, key: &str, item: impl Fn(&Value) -> Result<T, String>) -> Result<Vec<T>, Error> {
        match self.table.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => {
                let items = items.iter().enumerate();
                items
                    .map(|(index, value)| item(value).map_err(|e| self.wrong(&format!("{key}[{index}]"), e)))
                    .collect()
            }
            Some(_) => Err(self.wrong(key, "must be an array")),
        }
    }
}

/// A user or a group, by name or number.
pub(super) fn principal(value: &Value) -> Result<Principal, String> {
    let number = |n: Option<u64>| {
        let id = n.and_then(|n| u32::try_from(n).ok()).filter(|n| *n != u32::MAX);
        id.map(Principal::Id).ok_or_else(|| "is out of range".to_owned())
    };
    match value {
        Value::String(name) if name.is_empty() => Err("must not be empty".to_owned()),
        Value::String(name) => match name.parse::<u64>() {
            Ok(n) => number(Some(n)),
            Err(_) => Ok(Principal::Name(name.clone())),
        },
        Value::Number(n) => number(n.as_u64()),
        _ => Err("must be a name or a number".to_owned()),
    }
}
