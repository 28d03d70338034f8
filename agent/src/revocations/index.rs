//! Revocations by their subjects, for whoever has many tokens to look up and knows little of each.

use std::{
    collections::HashMap,
    sync::PoisonError,
    time::{SystemTime, UNIX_EPOCH},
};

use protocol::Subject;
use source::status_lists::hash_of;

use super::{Known, Revocations, line::Times};

/// The revocations at one time.
#[derive(Debug, Default)]
pub struct Index {
    /// The file, and how much of it was read; none before the first time.
    version: Option<(u64, u64)>,
    jobs: HashMap<u64, Vec<(Option<String>, Times)>>,
    /// By [`hash_of`].
    jtis: HashMap<u64, Times>,
    users: HashMap<String, Times>,
    uids: HashMap<u32, Times>,
}

/// A token of a job.
#[derive(Debug, Clone, Copy)]
pub struct Issued<'a> {
    /// The instance of Flux, or the cluster of Slurm.
    pub instance: &'a str,
    /// The job id.
    pub jobid: u64,
    /// The [`hash_of`] its `jti`.
    pub jti: u64,
    /// `iat`, in seconds since 1970-01-01T00:00:00Z.
    pub iat: u32,
    /// The uid of the job owner.
    pub uid: u32,
    /// `sub`.
    pub sub: &'a str,
}

impl Index {
    /// Takes up what has changed. Returns whether anything has. Blocks.
    ///
    /// # Errors
    /// For the operator: the file cannot be read.
    pub fn update(&mut self, revocations: &Revocations) -> Result<bool, String> {
        let mut known = revocations.known.lock().unwrap_or_else(PoisonError::into_inner);
        revocations
            .read(&mut known)
            .map_err(|e| format!("{}: {e}", revocations.path.display()))?;
        let version = Some((known.inode, known.read));
        if self.version == version {
            return Ok(false);
        }
        *self = Self::of(&known);
        self.version = version;
        Ok(true)
    }

    /// Forgets everything, so that all of it counts as changed the next time.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    fn of(known: &Known) -> Self {
        let mut index = Self::default();
        for (subject, times) in &known.all {
            let times = *times;
            match subject {
                Subject::Job { instance, jobid } => {
                    index.jobs.entry(*jobid).or_default().push((instance.clone(), times));
                }
                Subject::Jti(jti) => {
                    index.jtis.insert(hash_of(jti), times);
                }
                Subject::User(user) => {
                    index.users.insert(user.clone(), times);
                }
                Subject::Uid(uid) => {
                    index.uids.insert(*uid, times);
                }
            }
        }
        index
    }

    /// Returns whether a token was revoked, as [`Revocations::is_revoked`] does.
    pub fn is_revoked(&self, token: &Issued, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let lasts = |times: &Times| times.until > now;
        let is_older = |times: &Times| lasts(times) && f64::from(token.iat) <= times.at;
        let jobs = self.jobs.get(&token.jobid).into_iter().flatten();
        let mut of_job = jobs.filter(|(instance, _)| instance.as_ref().is_none_or(|name| name == token.instance));
        of_job.any(|(_, times)| lasts(times))
            || self.jtis.get(&token.jti).is_some_and(lasts)
            || self.users.get(token.sub).is_some_and(is_older)
            || self.uids.get(&token.uid).is_some_and(is_older)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use protocol::{JobFacts, TokenFacts};

    use super::*;

    #[test]
    fn it_agrees_with_the_answers_about_single_tokens() {
        let directory = tempfile::tempdir().unwrap();
        let revocations = Revocations::open(directory.path()).unwrap();
        let now = SystemTime::now();
        let seconds = now.duration_since(UNIX_EPOCH).unwrap().as_secs();
        let mut index = Index::default();
        assert_eq!(
            (index.update(&revocations), index.update(&revocations)),
            (Ok(true), Ok(false))
        );
        let job = |instance: Option<&str>, jobid| Subject::Job {
            instance: instance.map(str::to_owned),
            jobid,
        };
        let jti = |jti: &str| Subject::Jti(jti.to_owned());
        let hour = Duration::from_secs(3600);
        for (subjects, keep) in [
            (vec![job(Some("a"), 1), job(Some("b"), 2), job(None, 3)], hour),
            (
                vec![jti("one"), Subject::User("alice".to_owned()), Subject::Uid(1001)],
                hour,
            ),
            (vec![job(None, 4), jti("two"), Subject::Uid(1002)], Duration::ZERO),
        ] {
            revocations.revoke(&subjects, keep).unwrap();
        }
        assert_eq!(index.update(&revocations), Ok(true));
        let mut revoked = 0;
        for jobid in 1..6 {
            for jti in ["one", "two", "three"] {
                for (sub, uid) in [("alice", 1000), ("bob", 1001), ("carol", 1002)] {
                    for iat in [seconds - 10, seconds + 10] {
                        let token = TokenFacts {
                            job: Some(JobFacts {
                                instance: "a".to_owned(),
                                jobid,
                                uid,
                            }),
                            jti: Some(jti.to_owned()),
                            sub: Some(sub.to_owned()),
                            iat: Some(iat as f64),
                        };
                        let issued = Issued {
                            instance: "a",
                            jobid,
                            jti: hash_of(jti),
                            iat: u32::try_from(iat).unwrap(),
                            uid,
                            sub,
                        };
                        let expected = revocations.is_revoked(&token).unwrap();
                        assert_eq!(index.is_revoked(&issued, SystemTime::now()), expected, "{token:?}");
                        revoked += u32::from(expected);
                    }
                }
            }
        }
        // Of each of the others: one of three tokens, and of the rest two of three users, until the revocation.
        assert_eq!(revoked, 2 * 18 + 3 * (6 + 2 * 2));
    }
}
