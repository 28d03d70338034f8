//! The two shared objects: the job manager has loaded its one, and the job shell finds its one.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{Finding, Instance, fail, files, ok, skip, warn};
use crate::{flux, people};

/// Both have this name.
const OBJECT: &str = "workflow-token.so";

/// Asks the job manager for the plugin's state.
pub(super) fn job_manager(instance: &Instance) -> Finding {
    const CHECK: &str = "plugin";

    if let Some(absence) = instance.absence(CHECK) {
        return absence;
    }
    let answer = match flux::run(&["jobtap", "query", OBJECT]) {
        Ok(answer) => answer,
        Err(e) if e.says("not found") => {
            return fail(
                CHECK,
                format!("{OBJECT} is not loaded in the job manager, so no job gets a token"),
                format!(
                    "load it with `flux jobtap load {OBJECT}`, and at every start by plugins = [{{ load = \
                     \"{OBJECT}\" }}] in the table [job-manager]"
                ),
            );
        }
        Err(e) if e.is_denied() => {
            return skip(
                CHECK,
                "only the instance owner can ask the job manager",
                "run this as the instance owner",
            );
        }
        Err(e) => {
            return fail(
                CHECK,
                e.to_string(),
                "see whether the job manager is well (flux module list)",
            );
        }
    };
    match serde_json::from_str::<Value>(&answer) {
        Ok(answer) => {
            let path = answer
                .get("path")
                .and_then(Value::as_str)
                .unwrap_or("a path that it does not tell");
            let mut counters = Vec::new();
            numbers("", &answer, &mut counters);
            let counters = if counters.is_empty() {
                "no counters".to_owned()
            } else {
                counters.join(" ")
            };
            ok(CHECK, format!("loaded from {path}: {counters}"))
        }
        Err(_) => fail(
            CHECK,
            "flux jobtap query printed no JSON",
            "see that flux on PATH is the real one",
        ),
    }
}

/// All numbers in a JSON value, as `name.name=number`.
fn numbers(name: &str, value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Number(number) => found.push(format!("{name}={number}")),
        Value::Object(object) => {
            for (key, value) in object {
                let name = if name.is_empty() {
                    key.clone()
                } else {
                    format!("{name}.{key}")
                };
                numbers(&name, value, found);
            }
        }
        _ => (),
    }
}

/// Looks where the job shell looks for plugins.
pub(super) fn shell(instance: &Instance) -> Finding {
    const CHECK: &str = "shell";

    // The instance may say otherwise than what flux was built with.
    let asked = match instance {
        Instance::Here { .. } => flux::run(&["getattr", "conf.shell_pluginpath"]),
        Instance::None(_) | Instance::Broken(_) => flux::run(&["config", "builtin", "shell_pluginpath"]),
    };
    let dirs = match asked {
        Ok(dirs) => dirs,
        Err(flux::Error::NotFound) => {
            return skip(
                CHECK,
                "there is no flux on PATH",
                "add the directory that holds flux to PATH",
            );
        }
        Err(e) => return fail(CHECK, e.to_string(), "see that flux on PATH is the real one"),
    };
    let dirs: Vec<_> = dirs.split(':').filter(|dir| !dir.is_empty()).collect();
    let Some(found) = dirs
        .iter()
        .map(|dir| Path::new(dir).join(OBJECT))
        .find(|path| path.exists())
    else {
        return fail(
            CHECK,
            format!(
                "{OBJECT} is in no directory of conf.shell_pluginpath ({})",
                dirs.join(":")
            ),
            "install it there, on every node: without it a job starts without its token",
        );
    };
    let name = found.display();
    match fs::metadata(&found).map(|meta| files::writers(&meta, people::me())) {
        Ok(None) => ok(CHECK, format!("{name} is there")),
        Ok(Some(who)) => fail(
            CHECK,
            format!("{name} can be changed by {who}, and runs in the shell of every job"),
            format!("chown root {name} && chmod 0755 {name}"),
        ),
        Err(e) => warn(CHECK, format!("{name}: {e}"), "see that every user can read it"),
    }
}
