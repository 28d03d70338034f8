//! The table `[workflow-token]`: of a file, or of the running instance.

use std::path::Path;

use config::{Config, TABLE};
use serde_json::Value;

use super::{Finding, Instance, fail, ok, skip, warn};
use crate::flux;

const CHECK: &str = "config";

/// The configuration, where there is a valid one, and what was found.
pub(super) fn check(instance: &Instance, path: Option<&Path>) -> (Option<Config>, Finding) {
    let (conf, origin) = match path {
        Some(path) => match config::read_files(path) {
            Ok(conf) => (conf, path.display().to_string()),
            Err(e) => {
                return (
                    None,
                    fail(CHECK, e.to_string(), "correct the file, or name another one"),
                );
            }
        },
        None => match of_instance(instance) {
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
                    "correct the key; flux-config-workflow-token(5) describes it",
                ),
            )
        }
        Ok(config) => {
            let finding = judge(&config, conf.get(TABLE).is_some(), &origin);
            (Some(config), finding)
        }
    }
}

fn of_instance(instance: &Instance) -> Result<Value, Finding> {
    if let Some(mut absence) = instance.absence(CHECK) {
        absence.todo = "name a file or directory with --config to check that one".to_owned();
        return Err(absence);
    }
    let text = flux::run(&["config", "get"]).map_err(|e| {
        if e.is_denied() {
            skip(CHECK, e.to_string(), "run this as the instance owner")
        } else {
            fail(
                CHECK,
                e.to_string(),
                "see that the instance's broker is well (flux uptime)",
            )
        }
    })?;
    serde_json::from_str(&text).map_err(|_| {
        fail(
            CHECK,
            "flux config get printed no JSON",
            "see that flux on PATH is the real one",
        )
    })
}

fn judge(config: &Config, is_there: bool, origin: &str) -> Finding {
    match config.rules.len() {
        0 if !is_there => warn(
            CHECK,
            format!("{origin} has no table [{TABLE}], so no job gets a token"),
            "add the table as flux-config-workflow-token(5) shows, and run flux config reload",
        ),
        0 => warn(
            CHECK,
            format!("{origin}: [{TABLE}] has no rule, so no job gets a token"),
            format!("add a table [[{TABLE}.rule]], and run flux config reload"),
        ),
        1 => ok(CHECK, format!("{origin}: valid, 1 rule")),
        n => ok(CHECK, format!("{origin}: valid, {n} rules")),
    }
}
