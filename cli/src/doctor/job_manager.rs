// SPDX-License-Identifier: MIT OR Apache-2.0

//! The loaded plugins of the job manager: those of this project, or those of flux-coral2 with the same names.

use config::Config;
use serde_json::Value;

use super::finding::{Finding, fail, ok, skip, warn};
use super::instance::Instance;
use crate::flux;

const CHECK: &str = "plugin";

const WORKFLOW_TOKEN: &str = "workflow-token.so";
const DWS: &str = "dws-jobtap.so";
const CRAY_PMI: &str = "cray-pmi-bootstrap.so";

/// The loaded plugins of this project.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Loaded {
    pub workflow_token: bool,
    pub dws: bool,
    pub cray_pmi: bool,
}

/// Queries the state of each plugin from the job manager.
pub(super) fn check(instance: &Instance, config: Option<&Config>) -> (Loaded, Vec<Finding>) {
    if let Some(absence) = instance.absence(CHECK) {
        return (Loaded::default(), vec![absence]);
    }
    let answers = [WORKFLOW_TOKEN, DWS, CRAY_PMI].map(QueryReply::of);
    let loaded = Loaded {
        workflow_token: matches!(answers[0], QueryReply::Ours { .. }),
        dws: matches!(answers[1], QueryReply::Ours { .. }),
        cray_pmi: matches!(answers[2], QueryReply::Ours { .. }),
    };
    let [workflow_token, dws, cray_pmi] = answers;
    let mut findings = vec![judge_workflow_token(workflow_token, loaded, config)];
    let is_configured = config.is_some_and(|config| config.dws.is_some());
    let what = "the variables of rabbit jobs, their tokens among them";
    findings.extend(judge_replacing(DWS, dws, what).or_else(|| {
        (is_configured && !loaded.dws).then(|| {
            fail(
                CHECK,
                format!("{DWS} is not loaded in the job manager, and the configuration contains [workflow-token.dws]"),
                how_to_load(DWS),
            )
        })
    }));
    findings.extend(judge_replacing(CRAY_PMI, cray_pmi, "the secret for Cray PMI"));
    (loaded, findings)
}

/// The job manager's reply about a plugin.
enum QueryReply {
    NotLoaded,
    Ours {
        path: String,
        counters: String,
    },
    /// The plugin is loaded, and reports nothing that a plugin of this project reports.
    Theirs {
        path: String,
    },
    /// The job manager answers only the instance owner.
    Denied,
    NoJson,
    Failed(flux::Error),
}

impl QueryReply {
    fn of(object: &str) -> Self {
        let answer = match flux::run(&["jobtap", "query", object]) {
            Ok(answer) => answer,
            Err(e) if e.says("not found") => return Self::NotLoaded,
            Err(e) if e.is_denied() => return Self::Denied,
            Err(e) => return Self::Failed(e),
        };
        let Ok(answer) = serde_json::from_str::<Value>(&answer) else {
            return Self::NoJson;
        };
        let path = answer["path"].as_str().unwrap_or("an unknown path").to_owned();
        let mut counters = Vec::new();
        numbers("", &answer, &mut counters);
        if counters.is_empty() {
            return Self::Theirs { path };
        }
        let counters = counters.join(" ");
        Self::Ours { path, counters }
    }
}

fn judge_workflow_token(answer: QueryReply, loaded: Loaded, config: Option<&Config>) -> Finding {
    let has_no_rule = config.is_some_and(|config| config.rules.is_empty());
    match answer {
        QueryReply::NotLoaded if has_no_rule && (loaded.dws || loaded.cray_pmi) => {
            ok(CHECK, format!("{WORKFLOW_TOKEN} is not loaded, and no rule needs it"))
        }
        QueryReply::NotLoaded => fail(
            CHECK,
            format!("{WORKFLOW_TOKEN} is not loaded in the job manager, so no job gets a token"),
            how_to_load(WORKFLOW_TOKEN),
        ),
        QueryReply::Ours { path, counters } => ok(CHECK, format!("loaded from {path}: {counters}")),
        // No other project has a plugin of this name.
        QueryReply::Theirs { path } => ok(CHECK, format!("loaded from {path}: no counters")),
        QueryReply::Denied => skip(
            CHECK,
            "only the instance owner can query the job manager",
            "run this as the instance owner",
        ),
        QueryReply::Failed(e) => fail(CHECK, e.to_string(), "check the job manager (flux module list)"),
        QueryReply::NoJson => fail(
            CHECK,
            "flux jobtap query did not print JSON",
            "check that flux on PATH is the real one",
        ),
    }
}

/// Judges a plugin that replaces one of flux-coral2, if it is loaded. The finding of the first plugin covers all other
/// problems of the job manager.
fn judge_replacing(object: &str, answer: QueryReply, what: &str) -> Option<Finding> {
    match answer {
        QueryReply::Ours { path, counters } => Some(ok(CHECK, format!("loaded from {path}: {counters}"))),
        QueryReply::Theirs { path } => Some(warn(
            CHECK,
            format!(
                "the loaded {object}, from {path}, does not belong to this project but to flux-coral2, and writes \
                 {what} in clear text into eventlogs"
            ),
            format!(
                "install the job shell plugins on every node, then the job manager plugin, and run flux jobtap \
                 load --remove={object} {object}; see doc/upgrade.md"
            ),
        )),
        QueryReply::NotLoaded | QueryReply::Denied | QueryReply::Failed(_) | QueryReply::NoJson => None,
    }
}

fn how_to_load(object: &str) -> String {
    format!(
        "load it with `flux jobtap load {object}`, and at every start by plugins = [{{ load = \"{object}\" }}] in \
         the table [job-manager]"
    )
}

/// Collects all numbers of a JSON value, as `name.name=number`.
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
