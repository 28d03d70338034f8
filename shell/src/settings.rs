//! What the shell is told: the configuration in its initrc, and the shell option `-o workflow-token`.
//!
//! The rules are the job manager's. A shell does not see them: the jobspec that it gets is the one that the user signed,
//! without the updates since, and to ask for the configuration of the instance is no cheaper than to ask for the record.
//! So, by default, a shell asks for the record of every job. Where the initrc names a copy of the configuration file on
//! the node, a job that no rule can match is told apart without asking, and for a job that a rule must match a missing
//! record is fatal.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use config::{AttributePath, Config, Facts, Principal, Selection};
use ffi::{Shell, ShellLogLevel};
use nix::unistd::{Group, User, getegid, geteuid, getgroups};
use serde_json::Value;

use crate::record::Kind;

/// The settings of this shell.
pub(crate) struct Settings {
    pub munge: config::Munge,
    /// Whether this is the instance that the settings are for.
    applies: bool,
    rules: Option<Config>,
    /// Whether rabbit jobs without a record are looked for in their eventlogs.
    pub legacy: bool,
    /// What is to be logged.
    pub warnings: Vec<String>,
}

/// Whether a record is to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expectation {
    /// No rule can match: there is nothing to ask for.
    No,
    /// It cannot be told: one that is missing means that no rule matched.
    Maybe,
    /// One that is missing is an error.
    Yes,
}

impl Settings {
    /// Reads `conf` of `plugin.load { file = …, conf = { … } }`.
    ///
    /// # Errors
    /// The key that is wrong.
    pub fn of(kind: &Kind, conf: &Value, instance_owner: u32) -> Result<Self, String> {
        let mut settings = Self {
            munge: config::Munge::default(),
            applies: true,
            rules: None,
            legacy: true,
            warnings: Vec::new(),
        };
        let empty = serde_json::Map::new();
        let table = match conf {
            Value::Null => &empty,
            Value::Object(table) => table,
            // An empty Lua table is an empty array.
            Value::Array(list) if list.is_empty() => &empty,
            _ => return Err("its conf in the initrc must be a table".to_owned()),
        };
        for (key, value) in table {
            if !kind.keys.contains(&key.as_str()) {
                let (last, rest) = kind.keys.split_last().unwrap_or((&"", &[]));
                return Err(format!(
                    "its conf in the initrc: {} is not known: use {} or {last}",
                    key.escape_debug(),
                    rest.join(", ")
                ));
            }
            match (key.as_str(), value) {
                ("config", Value::String(path)) => settings.read_rules(kind, Path::new(path)),
                ("munge-socket", Value::String(_)) => {}
                ("instance-owner", Value::String(owner)) => settings.applies = is_owner(owner, instance_owner)?,
                ("instance-owner", Value::Number(n)) => settings.applies = n.as_u64() == Some(instance_owner.into()),
                ("legacy", Value::Bool(legacy)) => settings.legacy = *legacy,
                ("legacy", _) => return Err("its conf in the initrc: legacy must be true or false".to_owned()),
                _ => return Err(format!("its conf in the initrc: {key} must be a string")),
            }
        }
        if let Some(Value::String(path)) = table.get("munge-socket") {
            settings.munge.socket = Some(PathBuf::from(path));
        }
        Ok(settings)
    }

    /// Logs what is to be logged.
    pub fn warn(&self, kind: &Kind, shell: &Shell<'_>) {
        for warning in &self.warnings {
            shell.log(kind.name, ShellLogLevel::Warn, warning);
        }
    }

    /// Whether this is the instance that the settings are for.
    pub fn applies(&self) -> bool {
        self.applies
    }

    fn read_rules(&mut self, kind: &Kind, path: &Path) {
        match config::read_files(path).and_then(|all| Config::from_json(&all)) {
            Ok(config) => {
                self.munge = config.munge.clone();
                self.rules = Some(config);
            }
            // The job manager's rules count, not this copy of them: without it, the record is asked for.
            Err(e) => self.warnings.push(format!("{}: {e}", kind.without_config)),
        }
    }

    /// Whether the job of this shell has a record.
    pub fn expectation(&self, shell: &Shell<'_>) -> Expectation {
        match shell.option(c"workflow-token") {
            Some(Value::Bool(false)) => return Expectation::No,
            Some(Value::Number(n)) if n.as_i64() == Some(0) => return Expectation::No,
            Some(_) => return Expectation::Yes,
            None => {}
        }
        if !self.applies {
            return Expectation::No;
        }
        match self.rules.as_ref().map(|config| config.select(&ShellFacts { shell })) {
            Some(Selection::None) => Expectation::No,
            Some(Selection::Rule(_)) => Expectation::Yes,
            Some(Selection::Unknown) | None => Expectation::Maybe,
        }
    }
}

fn is_owner(owner: &str, instance_owner: u32) -> Result<bool, String> {
    if let Ok(uid) = u32::from_str(owner) {
        return Ok(uid == instance_owner);
    }
    match User::from_name(owner) {
        Ok(user) => Ok(user.is_some_and(|user| user.uid.as_raw() == instance_owner)),
        Err(e) => Err(format!(
            "its conf in the initrc: instance-owner: {owner} could not be looked up: {e}"
        )),
    }
}

/// A job as its shell sees it, which runs as the job owner. Queue, bank and project may have been changed since the
/// jobspec was signed, so they are not known here.
struct ShellFacts<'a> {
    shell: &'a Shell<'a>,
}

impl Facts for ShellFacts<'_> {
    fn has_attribute(&self, path: &AttributePath) -> Option<bool> {
        Some(self.shell.has_attribute(path.components()))
    }

    fn system_is(&self, _: &str, _: &str) -> Option<bool> {
        None
    }

    fn project_is(&self, _: &str) -> Option<bool> {
        None
    }

    fn owner_is(&self, user: &Principal) -> Option<bool> {
        match user {
            Principal::Id(uid) => Some(*uid == geteuid().as_raw()),
            Principal::Name(name) => Some(User::from_uid(geteuid()).ok()??.name == *name),
        }
    }

    fn owner_in(&self, group: &Principal) -> Option<bool> {
        let gid = match group {
            Principal::Id(gid) => *gid,
            Principal::Name(name) => Group::from_name(name).ok()??.gid.as_raw(),
        };
        let groups = getgroups().ok()?;
        Some(getegid().as_raw() == gid || groups.iter().any(|group| group.as_raw() == gid))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{dws, token};

    fn of(conf: Value, instance_owner: u32) -> Result<Settings, String> {
        Settings::of(&token::KIND, &conf, instance_owner)
    }

    #[test]
    fn no_conf_is_an_empty_one() {
        for conf in [json!(null), json!({}), json!([])] {
            let settings = of(conf, 0).unwrap();
            assert!(settings.applies && settings.rules.is_none() && settings.munge.socket.is_none());
        }
    }

    #[test]
    fn mistakes_name_the_key() {
        for (conf, key) in [
            (json!({"confg": "/x"}), "confg"),
            (json!({"config": 1}), "config"),
            (json!({"munge-socket": true}), "munge-socket"),
            (json!({"instance-owner": []}), "instance-owner"),
            // For rabbit jobs only.
            (json!({"legacy": false}), "legacy"),
        ] {
            let Err(error) = of(conf.clone(), 0) else {
                panic!("{conf} was accepted")
            };
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn it_applies_to_the_instance_of_its_owner_only() {
        assert!(of(json!({"instance-owner": "root"}), 0).unwrap().applies);
        assert!(!of(json!({"instance-owner": "root"}), 1000).unwrap().applies);
        assert!(!of(json!({"instance-owner": 999}), 0).unwrap().applies);
    }

    #[test]
    fn a_copy_of_the_rules_that_cannot_be_read_is_said_and_every_job_is_asked_for() {
        let settings = of(json!({"config": "/nonexistent/flux.toml"}), 0).unwrap();
        assert!(settings.rules.is_none());
        assert!(
            settings.warnings[0].contains("/nonexistent/flux.toml"),
            "{:?}",
            settings.warnings
        );
    }

    #[test]
    fn eventlogs_are_looked_at_unless_that_is_switched_off() {
        let legacy = |conf: Value| Settings::of(&dws::KIND, &conf, 0).map(|settings| settings.legacy);
        assert_eq!(legacy(json!({})), Ok(true));
        assert_eq!(legacy(json!({"legacy": false})), Ok(false));
        for bad in [json!({"legacy": "false"}), json!({"Legacy": false})] {
            assert!(legacy(bad.clone()).unwrap_err().contains("egacy"), "{bad}");
        }
    }
}
