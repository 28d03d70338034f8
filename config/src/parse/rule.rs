// SPDX-License-Identifier: MIT OR Apache-2.0

//! Rules and the table `dws`. Their source determines their additional keys.

use std::time::Duration;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{Error, field, issuer, login::LoginSourceTable, oauth2::OAuth2Table, project, read, wrong, wrong_at};
use crate::{
    Allowed, AttributePath, Check, Conditions, Dws, Issuer, Kubernetes, Login, Munge, OnShortfall, Principal, Projects,
    Property, Renewal, Rule, Scheduler, Source, TABLE, Template, Trust, kubernetes::check_object, oauth2::check_scope,
};

/// Values outside of rules that rules use.
pub(super) struct Defaults<'a> {
    pub scheduler: Scheduler,
    pub variable: &'a str,
    pub timeout: Duration,
    pub issuer: Option<&'a Issuer>,
    pub trusts: &'a [Trust],
    pub projects: &'a Projects,
    pub login: Option<&'a Login>,
    pub munge: &'a Munge,
}

/// The keys that all rules share, and the remaining ones.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", expecting = "a table")]
pub(super) struct RuleTable {
    attribute: Option<AttributePath>,
    #[serde(default, deserialize_with = "field::name")]
    project: Option<String>,
    #[serde(default, deserialize_with = "field::principal")]
    user: Option<Principal>,
    #[serde(default, deserialize_with = "field::principal")]
    group: Option<Principal>,
    source: SourceName,
    #[serde(default, deserialize_with = "field::duration")]
    timeout: Option<Duration>,
    check: Option<CheckName>,
    trust: Option<String>,
    #[serde(default, deserialize_with = "field::variable")]
    variable: Option<String>,
    #[serde(default, deserialize_with = "field::label")]
    name: Option<String>,
    #[serde(default, deserialize_with = "field::renew")]
    renew: Option<field::RenewAfter>,
    #[serde(default, deserialize_with = "field::signal")]
    renew_signal: Option<i32>,
    on_expiry: Option<seal::OnExpiry>,
    #[serde(default, deserialize_with = "field::flag")]
    bearer_token_file: bool,
    #[serde(default)]
    on_shortfall: OnShortfall,
    #[serde(default, deserialize_with = "field::strings")]
    audiences: Vec<String>,
    #[serde(default, deserialize_with = "field::strings")]
    scopes: Vec<String>,
    #[serde(flatten)]
    own: Map<String, Value>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum SourceName {
    File,
    Command,
    Kubernetes,
    Issuer,
    OAuth2,
    Login,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum CheckName {
    Shape,
    Verify,
    None,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileTable {
    #[serde(deserialize_with = "field::absolute_template")]
    path: Template,
    #[serde(default, deserialize_with = "field::duration")]
    wait: Option<Duration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandTable {
    #[serde(deserialize_with = "field::argv")]
    command: Vec<Template>,
    #[serde(default, rename = "log-stderr", deserialize_with = "field::flag")]
    log_stderr: bool,
}

/// The keys of the table `dws` for any source, and the remaining ones.
#[derive(Deserialize)]
#[serde(expecting = "a table")]
pub(super) struct DwsTable {
    source: Option<DwsSourceName>,
    #[serde(default, deserialize_with = "field::duration")]
    timeout: Option<Duration>,
    #[serde(flatten)]
    own: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum DwsSourceName {
    Kubernetes,
}

pub(super) fn rules(tables: Vec<RuleTable>, defaults: &Defaults<'_>) -> Result<Vec<Rule>, Error> {
    let mut rules: Vec<Rule> = Vec::with_capacity(tables.len());
    for (index, table) in tables.into_iter().enumerate() {
        let at = format!("{TABLE}.rule[{index}]");
        let rule = table.rule(&at, defaults)?;
        project::check_rule(&at, &rule, defaults.projects)?;
        let mut same = rules.iter().filter(|former| former.name == rule.name);
        if same.any(|former| former.conditions.is_empty()) {
            let why = "is never reached: an earlier rule has no conditions and matches every job";
            return Err(wrong(at, why));
        }
        let mut others = rules.iter().filter(|former| former.name != rule.name);
        if others.any(|other| other.variable == rule.variable) {
            let what = "is also used by a rule with another name: give each token its own variable";
            return Err(wrong_at(&at, "variable", what));
        }
        rules.push(rule);
    }
    Ok(rules)
}

impl RuleTable {
    fn rule(mut self, at: &str, defaults: &Defaults<'_>) -> Result<Rule, Error> {
        let mut own = std::mem::take(&mut self.own);
        let properties = properties(at, &mut own, defaults.scheduler)?;
        if self.attribute.is_some() && defaults.scheduler == Scheduler::Slurm {
            let what = "Slurm has no jobspec: use comment";
            return Err(wrong_at(at, "attribute", what));
        }
        // A fetch is a part of its delivery, so it has at most the timeout of the delivery.
        let timeout = self.timeout.unwrap_or(defaults.timeout).min(defaults.timeout);
        let source = match self.source {
            SourceName::File => {
                let FileTable { path, wait } = of_source(at, own)?;
                if wait.is_some_and(|wait| wait >= timeout) {
                    let what = "must be shorter than the timeout of its rule and of the table";
                    return Err(wrong_at(at, "wait", what));
                }
                Source::File { path, wait }
            }
            SourceName::Command => {
                let table: CommandTable = of_source(at, own)?;
                Source::Command {
                    argv: table.command,
                    log_stderr: table.log_stderr,
                }
            }
            SourceName::Kubernetes => Source::Kubernetes(kubernetes(at, own)?),
            SourceName::Issuer => {
                Source::Issuer(of_source::<issuer::MintedTable>(at, own)?.issuer(at, defaults.issuer)?)
            }
            SourceName::OAuth2 => Source::OAuth2(Box::new(of_source::<OAuth2Table>(at, own)?.oauth2(at)?)),
            SourceName::Login => {
                let table: LoginSourceTable = of_source(at, own)?;
                Source::OAuth2(Box::new(table.oauth2(at, defaults.login, defaults.munge)?))
            }
        };
        Ok(Rule {
            check: self.check(at, defaults.trusts)?,
            renewal: self.renewal(at)?,
            on_shortfall: self.on_shortfall,
            allowed: self.allowed(at)?,
            conditions: Conditions {
                attribute: self.attribute,
                properties,
                project: self.project,
                user: self.user,
                group: self.group,
            },
            name: self.name,
            variable: self.variable.unwrap_or_else(|| defaults.variable.to_owned()),
            source,
            timeout,
        })
    }

    fn allowed(&self, at: &str) -> Result<Allowed, Error> {
        let takes_audience = !matches!(
            self.source,
            SourceName::File | SourceName::Command | SourceName::Kubernetes
        );
        if !self.audiences.is_empty() && !takes_audience {
            return Err(wrong_at(
                at,
                "audiences",
                "needs source = \"issuer\", \"login\" or \"oauth2\"",
            ));
        }
        if !self.scopes.is_empty() && !matches!(self.source, SourceName::OAuth2 | SourceName::Login) {
            return Err(wrong_at(at, "scopes", "needs source = \"login\" or \"oauth2\""));
        }
        if self
            .scopes
            .iter()
            .any(|scope| check_scope(scope).is_err() || scope.contains(' '))
        {
            return Err(wrong_at(
                at,
                "scopes",
                "must be an array of single words of a scope (RFC 6749 section 3.3)",
            ));
        }
        Ok(Allowed {
            audiences: self.audiences.clone(),
            scopes: self.scopes.clone(),
        })
    }

    fn renewal(&self, at: &str) -> Result<Renewal, Error> {
        let default = Renewal::default();
        let after = self.renew.as_ref().map_or(default.after, |renew| renew.0);
        let unused = [
            ("renew-signal", self.renew_signal.is_some()),
            ("on-expiry", self.on_expiry.is_some()),
        ];
        if let Some((key, _)) = unused.iter().find(|(_, is_set)| *is_set && after.is_none()) {
            return Err(wrong_at(at, key, "has no effect with renew = false"));
        }
        Ok(Renewal {
            after,
            signal: self.renew_signal,
            on_expiry: self.on_expiry.unwrap_or_default(),
            bearer_token_file: self.bearer_token_file,
        })
    }

    fn check(&self, at: &str, trusts: &[Trust]) -> Result<Check, Error> {
        match (self.check.unwrap_or(CheckName::Shape), &self.trust) {
            (CheckName::Verify, Some(name)) => issuer::trust_of(at, name, trusts).map(Check::Verify),
            (CheckName::Verify, None) => Err(wrong_at(at, "trust", "is missing")),
            (_, Some(_)) => Err(wrong_at(at, "trust", "requires check = \"verify\"")),
            (CheckName::Shape, None) => Ok(Check::Shape),
            (CheckName::None, None) => Ok(Check::None),
        }
    }
}

impl DwsTable {
    pub fn dws(self, defaults: &Defaults<'_>) -> Result<Dws, Error> {
        let at = &format!("{TABLE}.dws");
        let kubernetes = match self.source {
            Some(DwsSourceName::Kubernetes) => Some(kubernetes(at, self.own)?),
            None => match self.own.keys().next() {
                Some(key) => {
                    return Err(wrong_at(
                        at,
                        &key.escape_debug().to_string(),
                        "needs source = \"kubernetes\"",
                    ));
                }
                None => None,
            },
        };
        let object = kubernetes.as_ref().map(|settings| &settings.object);
        if defaults.projects.is_empty() && object.is_some_and(Template::needs_project) {
            return Err(wrong_at(at, "object", project::OPEN));
        }
        Ok(Dws {
            kubernetes,
            timeout: self.timeout.unwrap_or(defaults.timeout).min(defaults.timeout),
        })
    }
}

/// Removes the conditions on properties from the keys of a rule and returns them.
fn properties(at: &str, own: &mut Map<String, Value>, scheduler: Scheduler) -> Result<Vec<(Property, String)>, Error> {
    let mut properties = Vec::new();
    for property in Property::ALL {
        let key = property.key();
        let Some(value) = own.remove(key) else { continue };
        if property.scheduler() != scheduler {
            let what = format!("{scheduler} has no {key}: {}", property.equivalent());
            return Err(wrong_at(at, key, what));
        }
        let value = field::name(value).map_err(|e: serde_json::Error| wrong_at(at, key, e))?;
        properties.push((property, value));
    }
    Ok(properties)
}

fn kubernetes(at: &str, own: Map<String, Value>) -> Result<Kubernetes, Error> {
    let kubernetes: Kubernetes = of_source(at, own)?;
    check_object(&kubernetes.object).map_err(|e| wrong_at(at, "object", e))?;
    if kubernetes.context.is_some() && kubernetes.kubeconfig.is_none() {
        return Err(wrong_at(
            at,
            "context",
            "needs a kubeconfig file: set the key kubeconfig, too",
        ));
    }
    Ok(kubernetes)
}

/// Parses the keys of a table that depend on its source.
fn of_source<T: DeserializeOwned>(at: &str, own: Map<String, Value>) -> Result<T, Error> {
    read(at, own).map_err(|mut e| {
        if e.wrong.starts_with("unknown field") {
            e.wrong += " with this source, or a key that every source allows";
        }
        e
    })
}
