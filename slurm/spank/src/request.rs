// SPDX-License-Identifier: MIT OR Apache-2.0

//! The option `--token`, with which a user requests a token other than the default.
//!
//! srun, sbatch and salloc check the requests against their copy of the rules, if they can read it, and pass them to
//! PrologSlurmctld. The agent checks them again, because users can set the variable themselves.

use std::{
    env,
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::unistd::getuid;
use protocol::slurm::REQUESTS;
use serde_json::{Map, Value};
use slurm::Site;
use spank::{Context, Spank, SpankOption};

use crate::expectation;

static TOKEN: SpankOption = SpankOption {
    name: c"token",
    argument: c"NAME.KEY=VALUE",
    usage:
        c"request a workflow token: KEY is audience, scope or lifetime, and NAME is default or the name of the token; \
             may be repeated",
    callback: crate::option,
};

/// The arguments of the option, in order. The last argument for a key takes effect.
static GIVEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The variable in which Slurm keeps the last argument. In the environment of a batch script, its name has the prefix
/// `SLURM_SPANK_`, and Slurm treats it as an occurrence of the option.
const LAST: &str = "_SLURM_SPANK_OPTION_workflow_token_token";

/// Registers the option, for `slurm_spank_init`. Inner jobs and steps do not inherit the requests of the surrounding job.
pub fn register(spank: &Spank<'_>) {
    let context = spank::context();
    if context.is_client() {
        spank::remove_own_env(&format!("SLURM_SPANK_{LAST}"));
    } else if context != Context::Remote {
        return;
    }
    if let Err(e) = spank.register_option(&TOKEN) {
        spank::log_error(&format!(
            "workflow-token: the option --token could not be registered: {e}"
        ));
    }
}

/// Adds an occurrence of the option.
pub fn add(argument: String) {
    given().push(argument);
}

/// Handles `slurm_spank_init_post_opt` in srun, sbatch and salloc: passes the requests to the prolog of the job. If the
/// rules do not allow them, the program exits here: Slurm would report more lines, less clearly.
pub fn submit(spank: &Spank<'_>, arguments: &[String]) {
    let given = std::mem::take(&mut *given());
    // sbatch and salloc would pass both variables on to the next component of a heterogeneous job.
    spank.remove_job_control_env(LAST);
    if given.is_empty() {
        spank.remove_job_control_env(REQUESTS);
        return;
    }
    if let Err(why) = checked(&given, arguments).and_then(|text| {
        let set = spank.set_job_control_env(REQUESTS, &text);
        set.map_err(|e| format!("--token cannot be passed to the prolog of the job: {e}"))
    }) {
        spank::print(&format!("workflow-token: {why}"));
        spank::exit_now(1);
    }
}

fn given() -> MutexGuard<'static, Vec<String>> {
    GIVEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the requests as JSON.
fn checked(given: &[String], arguments: &[String]) -> Result<String, String> {
    if spank::context() == Context::Local && env::var_os("SLURM_JOB_ID").is_some() {
        return Err(
            "--token: a step has the token of its job: request it for the job, with sbatch or salloc".to_owned(),
        );
    }
    let text = to_json(given)?;
    let requests = config::parse_requests(&text)?;
    // Only the agent checks the requests of root, who submits jobs for others, and of clients that cannot read the
    // rules.
    let uid = getuid();
    if !uid.is_root()
        && let Ok(site) = Site::read(&slurm::config_of(arguments))
    {
        let candidates = expectation::candidates(&site, uid.as_raw());
        site.config.check_requests(&candidates, &requests)?;
    }
    Ok(text)
}

/// Converts arguments such as `default.audience=archive` into requests in JSON.
fn to_json(given: &[String]) -> Result<String, String> {
    let mut requests = Map::new();
    for argument in given {
        let parts = argument.split_once('=').and_then(|(key, value)| {
            let (name, key) = key.split_once('.')?;
            Some((name, key, value))
        });
        let (name, key, value) = parts.ok_or_else(|| {
            let start: String = argument.chars().take(64).collect();
            format!(
                "--token={}: must be NAME.KEY=VALUE, as in default.lifetime=10m",
                start.escape_debug()
            )
        })?;
        let of_name = requests.entry(name).or_insert_with(|| Value::Object(Map::new()));
        of_name[key] = Value::from(value);
    }
    Ok(Value::Object(requests).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json_of(given: &[&str]) -> Result<String, String> {
        to_json(&given.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn arguments_are_requests_and_the_last_one_counts() {
        let text = json_of(&[
            "default.audience=https://a?b=c",
            "default.lifetime=10m",
            "cloud.scope=read write",
            "default.lifetime=5m",
        ]);
        let requests = config::parse_requests(&text.unwrap()).unwrap();
        assert_eq!(requests["default"].audience.as_deref(), Some("https://a?b=c"));
        assert_eq!(requests["default"].lifetime.unwrap().as_secs(), 300);
        assert_eq!(requests["cloud"].scope.as_deref(), Some("read write"));
    }

    #[test]
    fn malformed_arguments_are_named() {
        for bad in ["", "x", "default.audience", "audience=x", "=", &"x".repeat(5000)] {
            let error = json_of(&[bad]).unwrap_err();
            assert!(error.contains("NAME.KEY=VALUE") && error.len() < 200, "{error}");
        }
        for bad in ["default.audienc=x", "default.a.b=x", ".audience=x", "default.audience="] {
            let error = json_of(&[bad])
                .and_then(|text| config::parse_requests(&text))
                .unwrap_err();
            assert!(error.starts_with("token.") && error.len() < 200, "{error}");
        }
    }
}
