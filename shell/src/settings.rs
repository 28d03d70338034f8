// SPDX-License-Identifier: MIT OR Apache-2.0

//! The configuration of a plugin in the shell's initrc.

use std::{ffi::CStr, path::PathBuf};

use config::Config;
use ffi::{Shell, ShellLogLevel};
use nix::unistd::User;
use seal::MungeUser;
use serde::Deserialize;
use serde_json::Value;

/// The settings of this shell.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Settings for MUNGE.
    pub munge: config::Munge,
    /// Set if the settings are for this instance.
    pub applies: bool,
    /// The copy of the configuration on this node: none if it is missing, or an error if it is invalid.
    pub config: Result<Option<Config>, config::Error>,
}

/// The keys of `conf` in `plugin.load { file = …, conf = { … } }`.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct Conf {
    config: Option<PathBuf>,
    munge_socket: Option<PathBuf>,
    munge_user: Option<Owner>,
    instance_owner: Option<Owner>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "must be a name or a uid")]
enum Owner {
    Uid(u32),
    Name(String),
}

impl Settings {
    /// Reads `conf` of the initrc. The caller has removed keys that only one plugin accepts.
    ///
    /// # Errors
    /// Names the invalid key.
    pub fn read(conf: Value, instance_owner: u32) -> Result<Self, String> {
        let conf = match conf {
            Value::Null => Conf::default(),
            // An empty Lua table is an empty array.
            Value::Array(list) if list.is_empty() => Conf::default(),
            Value::Object(_) => {
                let read = serde_path_to_error::deserialize(conf);
                read.map_err(|e| format!("conf in the initrc: {e}"))?
            }
            _ => return Err("conf in the initrc must be a table".to_owned()),
        };
        let read = |path: PathBuf| config::read_files(&path).and_then(|files| Config::from_json(&files.conf));
        let config = conf.config.map(read).transpose();
        let mut munge = match &config {
            Ok(Some(config)) => config.munge.clone(),
            Ok(None) | Err(_) => config::Munge::default(),
        };
        if conf.munge_socket.is_some() {
            munge.socket = conf.munge_socket;
        }
        if let Some(user) = conf.munge_user {
            munge.user = match user {
                Owner::Uid(uid) => MungeUser::Uid(uid),
                Owner::Name(name) => MungeUser::Name(name),
            };
        }
        let applies = conf.instance_owner.map_or(Ok(true), |owner| owner.is(instance_owner))?;
        Ok(Self { munge, applies, config })
    }

    /// Logs an invalid copy of the configuration on behalf of `plugin`; `without` states the consequence.
    pub fn warn(&self, plugin: &CStr, shell: &Shell<'_>, without: &str) {
        if let Err(e) = &self.config {
            shell.log(plugin, ShellLogLevel::Warn, &format!("{without}: {e}"));
        }
    }
}

impl Owner {
    fn is(&self, instance_owner: u32) -> Result<bool, String> {
        let name = match self {
            Owner::Uid(uid) => return Ok(*uid == instance_owner),
            Owner::Name(name) => name,
        };
        match User::from_name(name) {
            Ok(Some(user)) => Ok(user.uid.as_raw() == instance_owner),
            // A number in a Lua table may arrive as a string.
            Ok(None) => Ok(name.parse() == Ok(instance_owner)),
            Err(e) => Err(format!(
                "conf in the initrc: instance-owner: {} could not be looked up: {e}",
                name.escape_debug()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_conf_is_an_empty_one() {
        for conf in [json!(null), json!({}), json!([])] {
            let settings = Settings::read(conf, 0).unwrap();
            assert!(settings.applies && matches!(settings.config, Ok(None)) && settings.munge.socket.is_none());
        }
    }

    #[test]
    fn mistakes_name_the_key() {
        for (conf, key) in [
            (json!({"confg": "/x"}), "confg"),
            (json!({"config": 1}), "config"),
            (json!({"munge-socket": true}), "munge-socket"),
            (json!({"instance-owner": []}), "instance-owner"),
            // Valid for rabbit jobs only.
            (json!({"legacy": false}), "legacy"),
        ] {
            let Err(error) = Settings::read(conf.clone(), 0) else {
                panic!("{conf} was accepted")
            };
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn it_applies_to_the_instance_of_its_owner_only() {
        let of = |conf, owner| Settings::read(conf, owner).unwrap().applies;
        assert!(of(json!({"instance-owner": "root"}), 0));
        assert!(!of(json!({"instance-owner": "root"}), 1000));
        assert!(!of(json!({"instance-owner": 999}), 0));
    }

    #[test]
    fn a_copy_of_the_rules_that_cannot_be_read_is_an_error() {
        let settings = Settings::read(json!({"config": "/nonexistent/flux.toml"}), 0).unwrap();
        let error = settings.config.unwrap_err().to_string();
        assert!(error.contains("/nonexistent/flux.toml"), "{error}");
    }
}
