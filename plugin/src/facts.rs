//! The job context: what a callback's arguments and the agent tell of a job, for the choice of its rule.

use std::time::Duration;

use config::{Asked, AttributePath, Config, Facts, Person, Principal, Projects, Rule, Source};
use ffi::Args;

use crate::owners::Owner;

/// Where a job says which project it is to be in.
const PROJECT: [&str; 4] = ["jobspec", "attributes", "system", "project"];

/// The project that a job asks for, by the jobspec as the callback has it.
pub(crate) fn asked(args: &Args<'_>) -> Asked {
    asked_at(args, &PROJECT)
}

/// The same of an update, by its value.
pub(crate) fn asked_anew(args: &Args<'_>) -> Asked {
    asked_at(args, &["value"])
}

/// How long a job may run, by the jobspec as the callback has it, updates included: `attributes.system.duration` in
/// seconds (RFC 14), where 0 is no limit. So is what cannot be a duration.
pub(crate) fn time_limit(args: &Args<'_>) -> Option<Duration> {
    let seconds = args.number(&["jobspec", "attributes", "system", "duration"])?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|limit| !limit.is_zero())
}

/// What a delivery needs to know of a job's jobspec.
pub(crate) struct Spec {
    /// The project that it asks for.
    pub asked: Asked,
    /// How long it may run.
    pub limit: Option<Duration>,
}

/// What of it any rule or project of a configuration asks for. The rest is not read: each member takes time on the reactor
/// thread.
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
    pub fn of(args: &Args<'_>, needed: Needed) -> Self {
        Self {
            asked: if needed.asked { asked(args) } else { Asked::Nothing },
            limit: if needed.limit { time_limit(args) } else { None },
        }
    }

    /// Of a job that is gone, or of which nothing is needed.
    pub fn none() -> Self {
        Self {
            asked: Asked::Nothing,
            limit: None,
        }
    }
}

fn asked_at(args: &Args<'_>, path: &[&str]) -> Asked {
    match args.string_bounded(path, config::MAX_NAME) {
        Some(name) => Asked::Project(name),
        None if args.has(path) => Asked::Malformed,
        None => Asked::Nothing,
    }
}

/// A job as its callback shows it.
#[derive(Clone, Copy)]
pub(crate) struct JobFacts<'a> {
    pub args: &'a Args<'a>,
    pub uid: u32,
    pub projects: &'a Projects,
    pub asked: &'a Asked,
    /// What is known of the job owner, if that was looked up not long ago.
    pub owner: Option<&'a Owner>,
}

impl Facts for JobFacts<'_> {
    fn has_attribute(&self, path: &AttributePath) -> Option<bool> {
        let mut keys = vec!["jobspec", "attributes"];
        keys.extend(path.components().iter().map(String::as_str));
        Some(self.args.has(&keys))
    }

    fn system_is(&self, key: &str, value: &str) -> Option<bool> {
        let path = ["jobspec", "attributes", "system", key];
        Some(self.args.string_bounded(&path, config::MAX_NAME).as_deref() == Some(value))
    }

    fn project_is(&self, name: &str) -> Option<bool> {
        match self.asked {
            Asked::Project(asked) => Some(asked == name),
            Asked::Malformed => Some(false),
            Asked::Nothing if self.projects.is_empty() => Some(false),
            Asked::Nothing => {
                let project = self.projects.of_job(self.asked, self.owner?);
                Some(project.is_ok_and(|project| project.is_some_and(|project| project.name == name)))
            }
        }
    }

    fn owner_is(&self, user: &Principal) -> Option<bool> {
        match user {
            Principal::Id(uid) => Some(*uid == self.uid),
            Principal::Name(_) => self.owner.map(|owner| owner.is(user)),
        }
    }

    fn owner_in(&self, group: &Principal) -> Option<bool> {
        self.owner.map(|owner| owner.is_in(group))
    }
}
