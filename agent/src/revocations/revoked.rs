// SPDX-License-Identifier: MIT OR Apache-2.0

//! The active revocations, in memory: a million of them take about 30 MB.

use std::collections::{BTreeMap, HashMap};

use protocol::{Subject, TokenFacts};
use source::status_lists::hash_of;

use super::line::Times;

/// The time of a revocation and the time after which it is dropped, in whole seconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy)]
struct Span {
    /// Rounded down, as issuers round `iat`.
    at: u32,
    /// Rounded up.
    until: u32,
}

/// Revocations by their subjects.
#[derive(Debug, Default, Clone)]
pub struct Revoked {
    /// By job id, and the [`hash_of`] the instance; 0 for any instance.
    jobs: BTreeMap<(u64, u64), Span>,
    /// By [`hash_of`].
    jtis: BTreeMap<u64, Span>,
    users: HashMap<String, Span>,
    uids: HashMap<u32, Span>,
}

/// The properties of a token that revocations concern.
#[derive(Debug, Clone, Copy, Default)]
pub struct Issued<'a> {
    /// The job, if the token is bound to one.
    pub job: Option<JobOf<'a>>,
    /// The [`hash_of`] its `jti`.
    pub jti: Option<u64>,
    /// `sub`.
    pub sub: Option<&'a str>,
    /// `iat`, in seconds since 1970-01-01T00:00:00Z.
    pub iat: Option<f64>,
}

/// The job of a token.
#[derive(Debug, Clone, Copy)]
pub struct JobOf<'a> {
    /// The instance of Flux, or the cluster of Slurm.
    pub instance: &'a str,
    /// The job id.
    pub jobid: u64,
    /// The uid of the job owner.
    pub uid: u32,
}

impl<'a> From<&'a TokenFacts> for Issued<'a> {
    fn from(token: &'a TokenFacts) -> Self {
        Self {
            job: token.job.as_ref().map(|job| JobOf {
                instance: &job.instance,
                jobid: job.jobid,
                uid: job.uid,
            }),
            jti: token.jti.as_deref().map(hash_of),
            sub: token.sub.as_deref(),
            iat: token.iat,
        }
    }
}

impl Revoked {
    /// Returns the number of subjects.
    pub fn len(&self) -> usize {
        self.jobs.len() + self.jtis.len() + self.users.len() + self.uids.len()
    }

    /// Returns whether any revocation has expired at `now`, in seconds since 1970-01-01T00:00:00Z.
    pub fn has_expired(&self, now: f64) -> bool {
        let owners = self.users.values().chain(self.uids.values());
        let mut all = self.jobs.values().chain(self.jtis.values()).chain(owners);
        all.any(|span| f64::from(span.until) <= now)
    }

    /// Adds a revocation. An earlier one with the same subject may be kept longer.
    pub fn add(&mut self, subject: Subject, times: Times) {
        let span = Span::from(times);
        let known = match subject {
            Subject::Job { instance, jobid } => {
                let instance = instance.as_deref().map_or(0, hash_of);
                self.jobs.entry((jobid, instance)).or_insert(span)
            }
            Subject::Jti(jti) => self.jtis.entry(hash_of(&jti)).or_insert(span),
            Subject::User(user) => self.users.entry(user).or_insert(span),
            Subject::Uid(uid) => self.uids.entry(uid).or_insert(span),
        };
        known.at = known.at.max(span.at);
        known.until = known.until.max(span.until);
    }

    /// Returns whether a token is revoked at `now`, in seconds since 1970-01-01T00:00:00Z.
    pub fn contains(&self, token: &Issued, now: f64) -> bool {
        let lasts = |span: &Span| f64::from(span.until) > now;
        // A token without `iat` may be an old one.
        let is_older = |span: &Span| lasts(span) && token.iat.is_none_or(|iat| iat.floor() <= f64::from(span.at));
        let is_job_revoked = |job: JobOf| {
            let mut of_job = self.jobs.range((job.jobid, 0)..=(job.jobid, u64::MAX));
            of_job.any(|((_, instance), span)| lasts(span) && (*instance == 0 || *instance == hash_of(job.instance)))
        };
        token.job.is_some_and(is_job_revoked)
            || token.jti.and_then(|jti| self.jtis.get(&jti)).is_some_and(lasts)
            || token.sub.and_then(|sub| self.users.get(sub)).is_some_and(is_older)
            || token.job.and_then(|job| self.uids.get(&job.uid)).is_some_and(is_older)
    }
}

impl From<Times> for Span {
    // Casts of floating-point numbers saturate, and turn NaN into 0.
    fn from(times: Times) -> Self {
        Self {
            at: times.at.floor() as u32,
            until: times.until.ceil() as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(instance: Option<&str>, jobid: u64) -> Subject {
        Subject::Job {
            instance: instance.map(str::to_owned),
            jobid,
        }
    }

    #[test]
    fn each_subject_concerns_its_own_tokens() {
        let mut revoked = Revoked::default();
        let hour = Times {
            at: 1000.5,
            until: 4600.5,
        };
        let past = Times { at: 1.0, until: 999.5 };
        for (subject, times) in [
            (job(Some("a"), 1), hour),
            (job(Some("b"), 2), hour),
            (job(None, 3), hour),
            (Subject::Jti("one".to_owned()), hour),
            (Subject::User("alice".to_owned()), hour),
            (Subject::Uid(1001), hour),
            (job(None, 4), past),
            (Subject::Jti("two".to_owned()), past),
            (Subject::Uid(1002), past),
            // An expired revocation does not replace one that is kept longer.
            (job(Some("a"), 1), past),
        ] {
            revoked.add(subject, times);
        }
        assert_eq!(revoked.len(), 9);
        let mut found = 0;
        for jobid in 1..6 {
            for jti in ["one", "two", "three"] {
                for (sub, uid) in [("alice", 1000), ("bob", 1001), ("carol", 1002)] {
                    for iat in [Some(1000.9), Some(1001.0), None] {
                        let token = Issued {
                            job: Some(JobOf {
                                instance: "a",
                                jobid,
                                uid,
                            }),
                            jti: Some(hash_of(jti)),
                            sub: Some(sub),
                            iat,
                        };
                        let is_older = iat != Some(1001.0);
                        let expected = [1, 3].contains(&jobid) || jti == "one" || (sub != "carol" && is_older);
                        assert_eq!(revoked.contains(&token, 1002.0), expected, "{token:?}");
                        assert!(!revoked.contains(&token, 4601.0), "{token:?}");
                        found += u32::from(expected);
                    }
                }
            }
        }
        assert!(found > 0);
    }

    #[test]
    fn times_that_are_none_do_no_harm() {
        let mut revoked = Revoked::default();
        for (at, until) in [(f64::NAN, f64::NAN), (-1.0, -1.0), (1e300, 1e300)] {
            revoked.add(Subject::Jti(at.to_string()), Times { at, until });
        }
        let is_revoked = |jti: &str| {
            let jti = Some(hash_of(jti));
            revoked.contains(
                &Issued {
                    jti,
                    ..Issued::default()
                },
                1.7e9,
            )
        };
        assert!(!is_revoked("NaN") && !is_revoked("-1") && is_revoked(&1e300_f64.to_string()));
    }
}
