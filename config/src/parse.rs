// SPDX-License-Identifier: MIT OR Apache-2.0

//! Parses the configuration of Flux, a JSON object, into a [`Config`].
//!
//! The type of a key or a function of `field` reads the key. Keys that depend on each other are checked when the table
//! is converted into a [`Config`].

pub(crate) mod field;
mod files;
mod issuer;
mod login;
mod oauth2;
mod project;
mod rule;
mod service;
mod slurm;

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use serde_path_to_error::Segment;

pub use files::{Files, Replaced, read_files};

use crate::{Agent, Config, Issuer, Munge, Principal, Project, Scheduler, TABLE, VARIABLE};

/// The default timeout of a delivery.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The reason why a table is invalid: the key, and the mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    key: String,
    wrong: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.wrong)
    }
}

impl std::error::Error for Error {}

impl Config {
    /// Parses the table in the whole configuration of Flux. Without the table there are no rules, and no job gets a
    /// token.
    ///
    /// # Errors
    /// The first invalid key.
    pub fn from_json(conf: &Value) -> Result<Self, Error> {
        Self::with_overrides(conf, &Value::Null)
    }

    /// Parses the table like [`Config::from_json`]. Keys that were passed when the plugin was loaded override those of
    /// the table.
    ///
    /// # Errors
    /// The first invalid key.
    pub fn with_overrides(conf: &Value, overrides: &Value) -> Result<Self, Error> {
        let Value::Object(conf) = conf else {
            return Err(wrong("configuration", "must be an object of tables"));
        };
        let mut table = match conf.get(TABLE) {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(table)) => table.clone(),
            Some(_) => return Err(wrong(TABLE, "must be a table")),
        };
        match overrides {
            Value::Null => {}
            Value::Object(keys) => table.extend(keys.clone()),
            _ => return Err(wrong(TABLE, "the plugin's own configuration must be a table")),
        }
        read::<Table>(TABLE, table)?.config()
    }
}

impl Config {
    /// Returns the configuration, if it is for Flux.
    ///
    /// # Errors
    /// The configuration contains the table `slurm`.
    pub fn of_flux(self) -> Result<Self, Error> {
        match self.slurm {
            None => Ok(self),
            Some(_) => Err(wrong_at(
                TABLE,
                "slurm",
                "makes this the configuration of a Slurm cluster: move it to a separate file",
            )),
        }
    }
}

/// The table `workflow-token`.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct Table {
    #[serde(deserialize_with = "field::variable")]
    variable: Option<String>,
    #[serde(deserialize_with = "field::duration")]
    timeout: Option<Duration>,
    #[serde(deserialize_with = "field::flag")]
    unlink: Option<bool>,
    #[serde(deserialize_with = "field::parallel")]
    max_parallel: Option<usize>,
    #[serde(deserialize_with = "field::absolute")]
    helper: Option<PathBuf>,
    #[serde(deserialize_with = "field::socket")]
    agent: Option<PathBuf>,
    #[serde(deserialize_with = "field::absolute")]
    revocations: Option<PathBuf>,
    #[serde(deserialize_with = "field::absolute")]
    agent_program: Option<PathBuf>,
    #[serde(deserialize_with = "field::socket")]
    munge_socket: Option<PathBuf>,
    #[serde(deserialize_with = "field::principal")]
    munge_user: Option<Principal>,
    #[serde(deserialize_with = "field::parsed")]
    munge_cipher: Option<seal::Cipher>,
    #[serde(deserialize_with = "field::parsed")]
    munge_mac: Option<seal::Mac>,
    #[serde(deserialize_with = "field::duration")]
    munge_ttl: Option<Duration>,
    dws: Option<rule::DwsTable>,
    #[serde(rename = "inner-jobs")]
    _inner_jobs: Option<InnerJobs>,
    issuer: Option<Issuer>,
    trust: BTreeMap<String, issuer::TrustTable>,
    project: Vec<Project>,
    identity: Option<project::IdentityTable>,
    rule: Vec<rule::RuleTable>,
    slurm: Option<slurm::SlurmTable>,
    service: Option<service::ServiceTable>,
}

/// The consequence of a jobspec that contains a token of the enclosing job. `plugin/cli/workflow_token.py` applies it.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum InnerJobs {
    Warn,
    Reject,
}

impl Table {
    fn config(self) -> Result<Config, Error> {
        let user = self.munge_user.map(|user| match user {
            Principal::Name(name) => seal::MungeUser::Name(name),
            Principal::Id(uid) => seal::MungeUser::Uid(uid),
        });
        let munge = Munge {
            socket: self.munge_socket,
            user: user.unwrap_or_default(),
            cipher: self.munge_cipher.unwrap_or_default(),
            mac: self.munge_mac.unwrap_or_default(),
            ttl: self.munge_ttl.map_or(Ok(seal::Ttl::Default), ttl_of)?,
        };
        let trusts = self.trust.into_iter().map(|(name, table)| table.trust(name));
        let trusts = trusts.collect::<Result<Vec<_>, _>>()?;
        let mut service = self.service;
        let login = service.as_mut().and_then(|service| service.login.take());
        let login = login.map(|table| table.login(&trusts)).transpose()?;
        let projects = project::projects(self.project, self.identity, &trusts, login.as_ref(), &munge)?;
        if let Some(issuer) = &self.issuer {
            issuer::check_issuer(issuer)?;
        }
        let variable = self.variable.unwrap_or_else(|| VARIABLE.to_owned());
        let timeout = self.timeout.unwrap_or(TIMEOUT);
        let has_issuer = self.issuer.is_some();
        let service = service
            .map(|table| table.service(&trusts, &projects, has_issuer, login))
            .transpose()?;
        let slurm = self.slurm.map(slurm::SlurmTable::slurm).transpose()?;
        if slurm.is_some() && self.issuer.as_ref().is_some_and(|issuer| issuer.instance.is_some()) {
            let what = "is for Flux: on Slurm, tokens name the key cluster of the table slurm: remove it";
            return Err(wrong_at(&format!("{TABLE}.issuer"), "instance", what));
        }
        let defaults = rule::Defaults {
            scheduler: match slurm {
                Some(_) => Scheduler::Slurm,
                None => Scheduler::Flux,
            },
            variable: &variable,
            timeout,
            issuer: self.issuer.as_ref(),
            trusts: &trusts,
            projects: &projects,
            login: service.as_ref().and_then(|service| service.login.as_ref()),
            munge: &munge,
        };
        let rules = rule::rules(self.rule, &defaults)?;
        let dws = self.dws.map(|table| table.dws(&defaults)).transpose()?;
        let unused = "is obsolete, because the agent runs all commands: remove it";
        let obsolete = self
            .helper
            .iter()
            .map(|_| wrong_at(TABLE, "helper", unused).to_string());
        Ok(Config {
            timeout,
            unlink: self.unlink.unwrap_or(true),
            max_parallel: self.max_parallel.unwrap_or(32),
            obsolete: obsolete.collect(),
            agent: Agent {
                socket: self.agent,
                program: self.agent_program,
                revocations: self.revocations,
                service,
            },
            munge,
            dws,
            issuer: self.issuer,
            projects,
            trusts,
            rules,
            slurm,
            variable,
        })
    }
}

fn ttl_of(ttl: Duration) -> Result<seal::Ttl, Error> {
    match u32::try_from(ttl.as_secs()) {
        Ok(seconds @ ..=3600) if ttl.subsec_nanos() == 0 => Ok(seal::Ttl::Seconds(seconds)),
        _ => Err(wrong_at(
            TABLE,
            "munge-ttl",
            "must be a whole number of seconds, at most 1h",
        )),
    }
}

/// Parses a table. `at` is its name in messages.
fn read<T: DeserializeOwned>(at: &str, table: Map<String, Value>) -> Result<T, Error> {
    serde_path_to_error::deserialize(Value::Object(table)).map_err(|e| {
        let mut key = at.to_owned();
        for segment in e.path() {
            match segment {
                Segment::Seq { index } => key += &format!("[{index}]"),
                Segment::Map { key: name } => key += &format!(".{}", name.escape_debug()),
                // Keys contain no other segments.
                Segment::Enum { .. } | Segment::Unknown => {}
            }
        }
        let what = e.inner().to_string().replace(char::is_control, "?");
        // Only serde's message contains the name of a missing key.
        let missing = what
            .strip_prefix("missing field `")
            .and_then(|rest| rest.strip_suffix('`'));
        match missing {
            Some(name) => wrong_at(&key, name, "is missing"),
            None => wrong(key, what),
        }
    })
}

fn wrong(key: impl fmt::Display, wrong: impl fmt::Display) -> Error {
    Error {
        key: key.to_string(),
        wrong: wrong.to_string(),
    }
}

/// Returns the error of a key of the table `at`.
fn wrong_at(at: &str, key: &str, what: impl fmt::Display) -> Error {
    wrong(format!("{at}.{key}"), what)
}

#[cfg(test)]
mod tests;
