// SPDX-License-Identifier: MIT OR Apache-2.0

//! The table `[workflow-token]` of a file or of the running instance.

use std::path::{Path, PathBuf};

use config::{Config, TABLE};
use nix::unistd::{Group, User};
use serde_json::Value;

use super::finding::{Finding, fail, ok, skip, warn};
use super::instance::Instance;
use crate::flux;

const CHECK: &str = "config";

/// Returns the configuration if it is valid, and the finding.
pub(super) fn check(instance: &Instance, path: Option<&Path>) -> (Option<Config>, Finding) {
    let (conf, origin) = match path {
        Some(path) => match config::read_files(path) {
            Ok(files) => (files.conf, path.display().to_string()),
            Err(e) => {
                return (
                    None,
                    fail(CHECK, e.to_string(), "correct the file, or name another one"),
                );
            }
        },
        None => match read_instance(instance) {
            Ok(conf) => (conf, "the instance's configuration".to_owned()),
            Err(finding) => return (None, finding),
        },
    };
    match Config::from_json(&conf) {
        Err(e) => {
            let what = format!("{origin}: {e}");
            (
                None,
                fail(
                    CHECK,
                    what,
                    "correct the key; flux-config-workflow-token(5) names its page",
                ),
            )
        }
        Ok(config) => {
            let finding = judge(&config, conf.get(TABLE).is_some(), &origin, "run flux config reload");
            (Some(config), finding)
        }
    }
}

/// Reports arrays that occur in more than one file. Flux merges tables, but replaces arrays without a message.
pub(super) fn replaced(path: Option<&Path>) -> Vec<Finding> {
    let path = match path {
        Some(path) => Some(path.to_owned()),
        None => flux::run(&["getattr", "config.path"]).ok().map(PathBuf::from),
    };
    // Another finding reports unreadable files.
    let files = path.and_then(|path| config::read_files(&path).ok());
    let replaced = files.into_iter().flat_map(|files| files.replaced);
    let finding = |replaced: config::Replaced| {
        let todo = format!("write all of {} in one file", replaced.key);
        warn(CHECK, replaced.to_string(), todo)
    };
    replaced.map(finding).collect()
}

fn read_instance(instance: &Instance) -> Result<Value, Finding> {
    if let Some(mut absence) = instance.absence(CHECK) {
        absence.todo = "name a file or directory with --config to check it".to_owned();
        return Err(absence);
    }
    let text = flux::run(&["config", "get"]).map_err(|e| {
        if e.is_denied() {
            skip(CHECK, e.to_string(), "run this as the instance owner")
        } else {
            fail(CHECK, e.to_string(), "check the broker of the instance (flux uptime)")
        }
    })?;
    serde_json::from_str(&text).map_err(|e| {
        fail(
            CHECK,
            format!("the output of flux config get cannot be parsed: {e}"),
            "check that flux on PATH is the real one, and that no table is nested 127 levels deep",
        )
    })
}

/// Reports obsolete keys, which have no effect.
pub(super) fn obsolete(config: &Config) -> impl Iterator<Item = Finding> {
    config.obsolete.iter().map(|line| {
        let (what, todo) = line.rsplit_once(": ").unwrap_or((line, "remove the key"));
        warn(CHECK, what, todo)
    })
}

/// Reports names that consist of digits and belong to nobody: the operator probably meant an id.
pub(super) fn digit_names(config: &Config) -> impl Iterator<Item = Finding> {
    let nobody = |kind, name: &str| match kind {
        "user" => User::from_name(name).is_ok_and(|user| user.is_none()),
        _ => Group::from_name(name).is_ok_and(|group| group.is_none()),
    };
    let wrong = config
        .digit_names()
        .into_iter()
        .filter(move |(_, kind, name)| nobody(kind, name));
    wrong.map(|(key, kind, name)| {
        fail(
            CHECK,
            format!("{key}: no {kind} has the name \"{name}\""),
            format!("write {name} without quotes if it is the id of the {kind}"),
        )
    })
}

/// Returns the finding about a valid configuration. `then` follows after a correction.
pub(super) fn judge(config: &Config, is_there: bool, origin: &str, then: &str) -> Finding {
    match config.rules.len() {
        0 if !is_there => warn(
            CHECK,
            format!("{origin} contains no table [{TABLE}], so no job gets a token"),
            format!("add the table (see flux-config-workflow-token(5)), and {then}"),
        ),
        0 => warn(
            CHECK,
            format!("{origin}: [{TABLE}] contains no rule, so no job gets a token"),
            format!("add a table [[{TABLE}.rule]], and {then}"),
        ),
        1 => ok(CHECK, format!("{origin}: valid, 1 rule")),
        n => ok(CHECK, format!("{origin}: valid, {n} rules")),
    }
}
