// SPDX-License-Identifier: MIT OR Apache-2.0

//! The project, the time limit and the requests for tokens in a jobspec.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use config::{Asked, Config, Rule, TokenRequests};
use ffi::Args;
use serde_json::Value;

/// The path at which a job requests tokens other than the default ones.
const TOKEN: [&str; 4] = ["jobspec", "attributes", "system", "token"];

/// The path of the dependencies of a job, and their most bytes of JSON that are parsed.
const DEPENDENCIES: [&str; 4] = ["jobspec", "attributes", "system", "dependencies"];
const LONGEST_DEPENDENCIES: usize = 64 << 10;

/// The path at which a job names its project.
const PROJECT: [&str; 4] = ["jobspec", "attributes", "system", "project"];

/// Returns the project that a job requests, from the jobspec of the callback.
pub fn asked(args: &Args<'_>) -> Asked {
    asked_at(args, &PROJECT)
}

/// Returns the project that an update requests.
pub fn asked_by_update(args: &Args<'_>) -> Asked {
    asked_at(args, &["value"])
}

/// Returns the token requests of a job, from the jobspec of the callback.
///
/// # Errors
/// The error in the requests, for the user.
pub fn requests(args: &Args<'_>) -> Result<TokenRequests, String> {
    if !args.has(&TOKEN) {
        return Ok(TokenRequests::new());
    }
    match args.json(&TOKEN) {
        // A site may use an attribute of this name for something else.
        Some(text) if !text.starts_with('{') => Ok(TokenRequests::new()),
        text => config::parse_requests(&text.unwrap_or_default()),
    }
}

/// Returns the time limit of a job, from the jobspec of the callback, including updates: `attributes.system.duration`
/// in seconds (RFC 14). 0 and malformed durations mean no limit.
pub fn time_limit(args: &Args<'_>) -> Option<Duration> {
    let seconds = args.number(&["jobspec", "attributes", "system", "duration"])?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|limit| !limit.is_zero())
}

/// Returns the time before which a job cannot start (`--begin-time`), from the jobspec of the callback, as flux-core's
/// plugin begin-time reads it; none if the job names none.
pub fn begin_time(args: &Args<'_>) -> Option<SystemTime> {
    let text = args
        .json(&DEPENDENCIES)
        .filter(|text| text.len() <= LONGEST_DEPENDENCIES)?;
    let dependencies: Vec<Value> = serde_json::from_str(&text).ok()?;
    let times = dependencies
        .iter()
        .filter(|dependency| dependency["scheme"] == "begin-time");
    let seconds = times.filter_map(|dependency| dependency["value"].as_str()?.parse::<f64>().ok());
    let latest = seconds.max_by(f64::total_cmp)?;
    UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(latest).ok()?)
}

fn asked_at(args: &Args<'_>, path: &[&str]) -> Asked {
    match args.string_bounded(path, config::MAX_NAME) {
        Some(name) => Asked::Project(name),
        None if args.has(path) => Asked::Malformed,
        None => Asked::Nothing,
    }
}

/// The members of a jobspec that a delivery needs.
pub struct Spec {
    /// The project that the job requests.
    pub asked: Asked,
    /// The time limit of the job.
    pub(crate) limit: Option<Duration>,
    /// The user's token requests, or the error in them.
    pub requests: Result<TokenRequests, String>,
}

/// The members of a jobspec that any rule or project of a configuration uses. The other members are not read: each one
/// takes time on the reactor thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needed {
    asked: bool,
    limit: bool,
    requests: bool,
}

impl Needed {
    pub fn by(config: &Config) -> Self {
        let of_project = |rule: &Rule| rule.conditions.project.is_some();
        Self {
            asked: !config.projects.is_empty() || config.rules.iter().any(of_project),
            limit: config.rules.iter().any(Rule::uses_limit),
            requests: config.rules.iter().any(Rule::takes_requests),
        }
    }

    pub fn anything(self) -> bool {
        self.asked || self.limit || self.requests
    }
}

impl Spec {
    pub(crate) fn of(args: &Args<'_>, needed: Needed) -> Self {
        Self {
            asked: if needed.asked { asked(args) } else { Asked::Nothing },
            limit: if needed.limit { time_limit(args) } else { None },
            requests: match needed.requests {
                true => requests(args),
                false => Ok(TokenRequests::new()),
            },
        }
    }

    /// Returns the members of a job that has ended, or whose jobspec is not needed.
    pub(crate) fn none() -> Self {
        Self {
            asked: Asked::Nothing,
            limit: None,
            requests: Ok(TokenRequests::new()),
        }
    }
}
