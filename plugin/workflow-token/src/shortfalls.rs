// SPDX-License-Identifier: MIT OR Apache-2.0

//! Warns at submission that the token of a job expires before the job may end.

use std::{
    cell::RefCell,
    collections::HashSet,
    rc::Rc,
    time::{Duration, SystemTime},
};

use config::{Config, Membership, OnShortfall, Outlook, round_for_users};
use ffi::{Args, JobId, LogLevel};
use plugin::{Engine, jobspec};

use crate::{expiry::NOTICE, facts::JobFacts};

/// Warns users of tokens that expire too early.
pub(crate) struct Shortfalls {
    engine: Rc<Engine>,
    /// The jobs whose users were warned at submission.
    informed: RefCell<HashSet<JobId>>,
}

/// The predicted shortfalls of a job, one line for each token.
#[derive(Debug, Default)]
pub(crate) struct Foreseen {
    /// The reason why the job is rejected.
    pub rejected: Option<String>,
    warnings: Vec<String>,
}

impl Shortfalls {
    pub fn new(engine: Rc<Engine>) -> Self {
        Self {
            engine,
            informed: RefCell::default(),
        }
    }

    /// Warns the user of an accepted job.
    ///
    /// # Errors
    /// The reason why the job must be rejected.
    pub fn report(&self, job: JobId, foreseen: Foreseen) -> Result<(), String> {
        match foreseen.rejected {
            Some(why) => Err(why),
            None => {
                if !foreseen.warnings.is_empty() {
                    self.informed.borrow_mut().insert(job);
                }
                foreseen.warnings.iter().for_each(|line| self.warn(job, line));
                Ok(())
            }
        }
    }

    /// Warns the user of a job whose delivery found a shortfall, unless the user was warned at submission.
    pub fn report_delivered(&self, job: JobId, lines: &[String]) {
        if !self.informed.borrow().contains(&job) {
            lines.iter().for_each(|line| self.warn(job, line));
        }
    }

    /// Forgets a job.
    pub fn forget(&self, job: JobId) {
        self.informed.borrow_mut().remove(&job);
    }

    /// Raises an exception that does not end the job. Commands that follow the job print it.
    fn warn(&self, job: JobId, line: &str) {
        let prologs = &self.engine.prologs;
        if let Err(e) = prologs.jobtap.raise(job, prologs.identity.prolog, NOTICE, line) {
            let line = format!("{job}: {line}: the exception could not be raised: {e}");
            self.engine.log(LogLevel::Warning, &line);
        }
    }
}

/// Predicts shortfalls of the tokens of a job. If the owner is unknown, rules that depend on the owner count only if all rules that
/// may match fall short, and one of them certainly matches.
pub(crate) fn foresee(config: &Config, job: &JobFacts<'_>) -> Foreseen {
    let mut foreseen = Foreseen::default();
    if !config.foresees() {
        return foreseen;
    }
    let limit = jobspec::time_limit(job.args);
    // Invalid requests were rejected before.
    let requests = jobspec::requests(job.args).unwrap_or_default();
    let membership = membership(config, job);
    let delay = membership.map_or(Duration::ZERO, |_| delay(job.args));
    for group in config.by_name(&config.candidates(job)) {
        let rules: Vec<_> = group.iter().map(|rule| &config.rules[*rule]).collect();
        let is_certain = rules.iter().any(|rule| rule.conditions.hold(job) == Some(true));
        let severity = rules.iter().map(|rule| rule.on_shortfall).min();
        let shortfalls = rules.iter().map(|rule| {
            rule.shortfall(&Outlook {
                limit,
                delay,
                lifetime: rule.lifetime(requests.get(rule.token_name())),
                membership: membership.filter(|_| rule.depends_on_project(job.asked)),
            })
        });
        let Some(line) = shortfalls
            .collect::<Option<Vec<_>>>()
            .and_then(|lines| lines.into_iter().next())
        else {
            continue;
        };
        match severity.filter(|_| is_certain) {
            Some(OnShortfall::Reject) => {
                foreseen.rejected.get_or_insert(line);
            }
            Some(OnShortfall::Warn) => foreseen.warnings.push(line),
            Some(OnShortfall::Ignore) | None => {}
        }
    }
    foreseen
}

/// Returns the project that the identity token of a job's owner alone puts the job in.
fn membership<'a>(config: &'a Config, job: &JobFacts<'_>) -> Option<Membership<'a>> {
    let owner = job.owner?;
    let left = owner.claims_left()?;
    let project = config.projects.of_job(job.asked, owner).ok()??;
    (!project.names(owner)).then_some(Membership {
        project,
        left: round_for_users(left),
    })
}

/// Returns the time before which a job cannot start.
fn delay(args: &Args<'_>) -> Duration {
    let begin = jobspec::begin_time(args).and_then(|begin| begin.duration_since(SystemTime::now()).ok());
    round_for_users(begin.unwrap_or_default())
}
