// SPDX-License-Identifier: MIT OR Apache-2.0

//! Predicts whether a token expires before its job ends, or cannot be obtained when the job starts.

use std::time::Duration;

use serde::Deserialize;

use crate::{Asked, Config, Project, Rule, Source, TokenRequest};

/// The consequence of a token that expires before its job ends, in order of severity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnShortfall {
    /// No consequence.
    Ignore,
    /// The user is informed.
    #[default]
    Warn,
    /// The job is rejected.
    Reject,
}

/// The facts of a job that determine whether its token lasts until the job ends.
#[derive(Debug, Clone, Default)]
pub struct Outlook<'a> {
    /// The time limit of the job, if any.
    pub limit: Option<Duration>,
    /// The time until the earliest start of the job.
    pub delay: Duration,
    /// The lifetime of its first token, if known.
    pub lifetime: Option<Duration>,
    /// The project that its token depends on, if its owner is a member only by an identity token.
    pub membership: Option<Membership<'a>>,
}

/// A membership that depends on an identity token.
#[derive(Debug, Clone, Copy)]
pub struct Membership<'a> {
    /// The project.
    pub project: &'a Project,
    /// The time until the identity token expires.
    pub left: Duration,
}

impl Config {
    /// Returns whether any rule can report a shortfall at submission.
    pub fn foresees(&self) -> bool {
        let has_identity = self.projects.identity().is_some();
        let foresees = |rule: &Rule| has_identity || rule.renewal.after.is_none() && rule.lifetime(None).is_some();
        let mut rules = self
            .rules
            .iter()
            .filter(|rule| rule.on_shortfall != OnShortfall::Ignore);
        rules.any(foresees)
    }
}

impl Rule {
    /// Returns the longest lifetime of a token of this rule, if it is known before the delivery.
    pub fn lifetime(&self, request: Option<&TokenRequest>) -> Option<Duration> {
        let Source::Issuer(issuer) = &self.source else {
            return None;
        };
        let requested = request.and_then(|request| request.lifetime);
        Some(requested.map_or(issuer.max_lifetime, |wanted| wanted.min(issuer.max_lifetime)))
    }

    /// Returns whether the lifetime of the token depends on the time limit of the job or is compared with it.
    pub fn uses_limit(&self) -> bool {
        let compares = self.renewal.after.is_none() && self.on_shortfall != OnShortfall::Ignore;
        compares || matches!(self.source, Source::Issuer(_))
    }

    /// Returns whether a job receives its token only if its owner is a member of its project.
    pub fn depends_on_project(&self, asked: &Asked) -> bool {
        matches!(asked, Asked::Project(_)) || self.source.needs_project() || self.conditions.project.is_some()
    }

    /// Returns why the token expires before the job ends: one line for the user, with the next step.
    pub fn shortfall(&self, job: &Outlook<'_>) -> Option<String> {
        let why = match job.membership {
            Some(membership) => self.membership_ends(job, membership).or_else(|| self.token_ends(job)),
            None => self.token_ends(job),
        };
        why.map(|why| format!("token.{}: {why}", self.token_name()))
    }

    /// Returns why the identity token of a user expires too early. A job needs it until it starts, or until it ends if
    /// its token is renewed.
    fn membership_ends(&self, job: &Outlook<'_>, Membership { project, left }: Membership<'_>) -> Option<String> {
        let expires = format!(
            "your identity token for project {} expires in {}",
            project.name,
            text_of(left)
        );
        let needs_renewal = self.renewal.after.is_some() && job.lifetime.is_none_or(|lifetime| job.outlasts(lifetime));
        if left <= job.delay {
            let delay = text_of(job.delay);
            Some(format!(
                "{expires}, and this job starts in {delay} at the earliest: log in again first"
            ))
        } else if needs_renewal && job.outlasts(left - job.delay) {
            Some(format!(
                "{expires}, and renewals need it, but {}: log in again first",
                job.duration()
            ))
        } else {
            None
        }
    }

    /// Returns why a token without renewal expires before the job ends.
    fn token_ends(&self, job: &Outlook<'_>) -> Option<String> {
        let lifetime = job.lifetime.filter(|lifetime| job.outlasts(*lifetime))?;
        if self.renewal.after.is_some() {
            return None;
        }
        let longer = self.lifetime(None).filter(|longest| !job.outlasts(*longest));
        let or_request = longer.map_or("", |_| ", or request a longer lifetime");
        let (lifetime, duration) = (text_of(lifetime), job.duration());
        Some(format!(
            "it lasts {lifetime} and is not renewed, but {duration}: set a time limit of at most {lifetime}{or_request}"
        ))
    }
}

impl Outlook<'_> {
    /// Returns whether the job may run for longer than `time`.
    fn outlasts(&self, time: Duration) -> bool {
        self.limit.is_none_or(|limit| limit > time)
    }

    fn duration(&self) -> String {
        match self.limit {
            Some(limit) => format!("this job may run {}", text_of(limit)),
            None => "this job has no time limit".to_owned(),
        }
    }
}

/// Rounds a time down to whole minutes, or to seconds if it is short, for users.
pub fn round_for_users(time: Duration) -> Duration {
    match time.as_secs() {
        seconds @ ..120 => Duration::from_secs(seconds),
        seconds => Duration::from_secs(seconds / 60 * 60),
    }
}

/// Formats a duration in the largest exact unit of hours, minutes and seconds. A duration below one second is a
/// fraction.
fn text_of(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{}s", duration.as_secs_f64()),
        seconds if seconds % 3600 == 0 => format!("{}h", seconds / 3600),
        seconds if seconds % 60 == 0 => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn config(rule: &Value) -> Config {
        let mut whole = json!({"source": "issuer", "max-lifetime": "2h"});
        whole.as_object_mut().unwrap().extend(rule.as_object().unwrap().clone());
        let table = json!({"workflow-token": {
            "issuer": {"keys": "/k", "name": "https://i", "audience": "a"},
            "trust": {"login": {"issuer": "https://l", "audience": "a"}},
            "identity": {"token": "/i/{uid}", "trust": "login", "claim": "groups"},
            "project": [{"name": "fusion", "claims": ["team"]}],
            "rule": [whole],
        }});
        Config::from_json(&table).unwrap()
    }

    fn job(limit: Option<u32>, lifetime: Option<Duration>) -> Outlook<'static> {
        Outlook {
            limit: limit.map(|hours| HOUR * hours),
            lifetime,
            ..Outlook::default()
        }
    }

    #[test]
    fn a_token_that_is_not_renewed_must_last_as_long_as_the_job() {
        let rule = |renew: Value| config(&json!({"renew": renew})).rules.remove(0);
        let (once, renewed) = (rule(json!(false)), rule(json!(0.5)));
        let request = |lifetime| TokenRequest {
            lifetime: Some(lifetime),
            ..TokenRequest::default()
        };
        assert_eq!(once.lifetime(None), Some(2 * HOUR));
        assert_eq!(once.lifetime(Some(&request(HOUR))), Some(HOUR));
        assert_eq!(once.lifetime(Some(&request(3 * HOUR))), Some(2 * HOUR));
        for (limit, lifetime, says) in [
            (Some(2), Some(2 * HOUR), None),
            (Some(100), None, None),
            (
                Some(3),
                Some(2 * HOUR),
                Some("it lasts 2h and is not renewed, but this job may run 3h: set a time limit of at most 2h"),
            ),
            (
                None,
                Some(2 * HOUR),
                Some("it lasts 2h and is not renewed, but this job has no time limit: set a time limit of at most 2h"),
            ),
            (
                Some(2),
                Some(HOUR),
                Some(
                    "it lasts 1h and is not renewed, but this job may run 2h: set a time limit of at most 1h, or request a longer lifetime",
                ),
            ),
        ] {
            let says = says.map(|says| format!("token.default: {says}"));
            assert_eq!(once.shortfall(&job(limit, lifetime)), says);
            assert_eq!(renewed.shortfall(&job(limit, lifetime)), None);
        }
    }

    #[test]
    fn an_identity_token_must_last_to_the_start_of_a_job_and_to_its_last_renewal() {
        for (renew, hours, delay, limit, says) in [
            (json!(0.5), 4, 0, Some(4), None),
            (json!(0.5), 4, 1, Some(3), None),
            // The first token lasts as long as the job.
            (json!(0.5), 1, 0, Some(2), None),
            (json!(false), 1, 0, Some(2), None),
            (
                json!(0.5),
                4,
                1,
                Some(4),
                Some("expires in 4h, and renewals need it, but this job may run 4h: log in"),
            ),
            (
                json!(0.5),
                4,
                0,
                None,
                Some("expires in 4h, and renewals need it, but this job has no time limit"),
            ),
            (
                json!(false),
                1,
                1,
                Some(2),
                Some("fusion expires in 1h, and this job starts in 1h at the earliest"),
            ),
        ] {
            let config = config(&json!({"renew": renew}));
            let rule = &config.rules[0];
            let outlook = Outlook {
                delay: HOUR * delay,
                membership: Some(Membership {
                    project: &config.projects.list[0],
                    left: HOUR * hours,
                }),
                ..job(limit, rule.lifetime(None))
            };
            let shortfall = rule.shortfall(&outlook);
            assert_eq!(shortfall.is_some(), says.is_some(), "{shortfall:?}");
            assert!(shortfall.unwrap_or_default().contains(says.unwrap_or_default()));
        }
    }

    /// Flux truncates an error to 159 bytes.
    #[test]
    fn a_line_fits_into_an_error_of_flux() {
        let config = config(&json!({"renew": false, "name": "a-rather-long-name"}));
        let long = job(Some(1_000_000), Some(HOUR * 999_999 + HOUR / 3600));
        let line = config.rules[0].shortfall(&long).unwrap();
        assert!(line.len() < 160, "{line}");
    }

    #[test]
    fn only_rules_that_may_fall_short_cost_submissions_anything() {
        let foresees = |rule: Value, has_claims: bool| {
            let mut config = config(&rule);
            if !has_claims {
                config.projects.identity = None;
            }
            (config.foresees(), config.rules[0].uses_limit())
        };
        assert_eq!(foresees(json!({}), false), (false, true));
        assert_eq!(foresees(json!({}), true), (true, true));
        assert_eq!(foresees(json!({"renew": false}), false), (true, true));
        assert_eq!(
            foresees(json!({"renew": false, "on-shortfall": "ignore"}), true),
            (false, true)
        );
    }
}
