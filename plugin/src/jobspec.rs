//! The project and the time limit in a jobspec.

use std::time::Duration;

use config::{Asked, Config, Rule, Source};
use ffi::Args;

/// The path at which a job names its project.
const PROJECT: [&str; 4] = ["jobspec", "attributes", "system", "project"];

/// Returns the project that a job asks for, by the jobspec of the callback.
pub fn asked(args: &Args<'_>) -> Asked {
    asked_at(args, &PROJECT)
}

/// Returns the project that an update asks for, by its value.
pub fn asked_by_update(args: &Args<'_>) -> Asked {
    asked_at(args, &["value"])
}

/// Returns how long a job may run, by the jobspec of the callback, updates included: `attributes.system.duration` in
/// seconds (RFC 14). 0 and malformed durations are no limit.
fn time_limit(args: &Args<'_>) -> Option<Duration> {
    let seconds = args.number(&["jobspec", "attributes", "system", "duration"])?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|limit| !limit.is_zero())
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
    /// The project that the job asks for.
    pub asked: Asked,
    /// How long the job may run.
    pub(crate) limit: Option<Duration>,
}

/// The members of a jobspec that any rule or project of a configuration uses. The rest is not read: each member takes time
/// on the reactor thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needed {
    asked: bool,
    limit: bool,
}

impl Needed {
    pub fn by(config: &Config) -> Self {
        let of_project = |rule: &Rule| rule.conditions.project.is_some();
        Self {
            asked: !config.projects.is_empty() || config.rules.iter().any(of_project),
            limit: config.rules.iter().any(|rule| matches!(rule.source, Source::Issuer(_))),
        }
    }

    pub fn anything(self) -> bool {
        self.asked || self.limit
    }
}

impl Spec {
    pub(crate) fn of(args: &Args<'_>, needed: Needed) -> Self {
        Self {
            asked: if needed.asked { asked(args) } else { Asked::Nothing },
            limit: if needed.limit { time_limit(args) } else { None },
        }
    }

    /// Returns the one of a job that is gone, or whose jobspec is not needed.
    pub(crate) fn none() -> Self {
        Self {
            asked: Asked::Nothing,
            limit: None,
        }
    }
}
