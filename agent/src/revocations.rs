// SPDX-License-Identifier: MIT OR Apache-2.0

//! Revocations of tokens before their expiry.
//!
//! The file has one line of JSON for each revocation. It is synced to disk before a revocation is confirmed. Several
//! agents may share the file, as those of two controllers do: each reads the lines that others add.

mod line;
pub mod revoked;

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, BufRead, BufReader, BufWriter, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use nix::fcntl::{Flock, FlockArg};
use protocol::{MAX_SUBJECTS, MAX_TEXT, Subject, TokenFacts};

use line::{Line, Times};
use revoked::{Issued, Revoked};

/// The name of the file.
const NAME: &str = "revocations";

/// The most revocations. In the file, each takes about 100 bytes.
const MOST: usize = 1_000_000;

/// The longest time for which a revocation is kept: enough for a token that lives for a year.
const LONGEST: Duration = Duration::from_secs(400 * 86_400);

/// The revocations in one directory.
#[derive(Debug)]
pub struct Revocations {
    path: PathBuf,
    known: Mutex<Known>,
}

/// A version of the file: its inode, and the number of bytes read.
pub type Version = (u64, u64);

/// The revocations, if the configuration stores them, or the reason why they cannot be used.
pub type Store = Option<Result<Arc<Revocations>, String>>;

/// The part of the file that was read.
#[derive(Debug, Default)]
struct Known {
    /// The inode, since another agent may replace the file, and the number of bytes read.
    inode: u64,
    /// The file, open so that no other file gets its inode.
    _file: Option<File>,
    read: u64,
    lines: u64,
    revoked: Arc<Revoked>,
    /// The hashes of malformed lines that were already reported.
    reported: HashSet<u64>,
}

impl Revocations {
    /// Opens a directory, creates it if its parent exists, and drops expired revocations. Blocks.
    ///
    /// # Errors
    /// For the operator: the directory or its file cannot be used.
    pub fn open(directory: &Path) -> Result<Self, String> {
        let failed = |e: io::Error| format!("{}, the key revocations: {e}", directory.display());
        secure_path::private_directory(directory).map_err(failed)?;
        let revocations = Self {
            path: directory.join(NAME),
            known: Mutex::default(),
        };
        let _lock = revocations.lock().map_err(failed)?;
        let mut known = Known::default();
        revocations.read(&mut known).map_err(failed)?;
        let now = now();
        if known.revoked.has_expired(now) {
            revocations.rewrite(now).map_err(failed)?;
            revocations.read(&mut known).map_err(failed)?;
        }
        *revocations.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
        Ok(revocations)
    }

    /// Revokes tokens. Returns after the revocation is on disk. Blocks.
    ///
    /// # Errors
    /// For the operator: the revocation is malformed, or cannot be stored.
    pub fn revoke(&self, subjects: &[Subject], keep: Duration) -> Result<(), String> {
        let is_long = |subject: &Subject| match subject {
            Subject::Jti(text) | Subject::User(text) => text.len() > MAX_TEXT,
            Subject::Job { instance, .. } => instance.as_ref().is_some_and(|text| text.len() > MAX_TEXT),
            Subject::Uid(_) => false,
        };
        if subjects.len() > MAX_SUBJECTS || subjects.iter().any(is_long) {
            return Err(format!(
                "a revocation has at most {MAX_SUBJECTS} subjects of {MAX_TEXT} bytes"
            ));
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let at = now();
        let until = at + keep.min(LONGEST).as_secs_f64();
        let added = (|| {
            let directory = self.lock()?;
            self.read(&mut known)?;
            if known.revoked.len() + subjects.len() > MOST {
                return Err(io::Error::other(format!(
                    "there are {MOST} revocations: remove some, or wait until they expire"
                )));
            }
            let mut lines = Vec::new();
            for subject in subjects {
                let line = Line {
                    subject: subject.clone(),
                    times: Times { at, until },
                };
                lines.extend(line.to_bytes()?);
            }
            let mut file = open(OpenOptions::new().create(true).append(true), &self.path)?;
            // Ends an incomplete line of an agent that was killed.
            if file.metadata()?.len() > known.read {
                lines.insert(0, b'\n');
            }
            file.write_all(&lines)?;
            file.sync_all()?;
            directory.sync_all()?;
            self.read(&mut known)
        })();
        added.map_err(|e| format!("{}: the revocation could not be stored: {e}", self.path.display()))
    }

    /// Returns whether a token was revoked. Blocks.
    ///
    /// # Errors
    /// For the operator: the file cannot be read, so the answer is unknown.
    pub fn is_revoked(&self, token: &TokenFacts) -> Result<bool, String> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.read(&mut known)
            .map_err(|e| format!("{}: {e}", self.path.display()))?;
        Ok(known.revoked.contains(&Issued::from(token), now()))
    }

    /// Returns all revocations, and the version of the file that contains them. Blocks.
    ///
    /// # Errors
    /// For the operator: the file cannot be read.
    pub fn all(&self) -> Result<(Arc<Revoked>, Version), String> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.read(&mut known)
            .map_err(|e| format!("{}: {e}", self.path.display()))?;
        Ok((Arc::clone(&known.revoked), (known.inode, known.read)))
    }

    /// Locks the directory, so that no agent rewrites the file while another one appends to it.
    fn lock(&self) -> io::Result<Flock<File>> {
        let directory = File::open(self.path.parent().unwrap_or(&self.path))?;
        Flock::lock(directory, FlockArg::LockExclusive).map_err(|(_, e)| e.into())
    }

    /// Reads the lines that were appended to the file.
    fn read(&self, known: &mut Known) -> io::Result<()> {
        let mut file = match open(OpenOptions::new().read(true), &self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound && known.revoked.len() == 0 => return Ok(()),
            Err(e) => return Err(e),
        };
        let meta = file.metadata()?;
        if meta.ino() != known.inode || meta.len() < known.read {
            *known = Known {
                inode: meta.ino(),
                _file: Some(file.try_clone()?),
                reported: std::mem::take(&mut known.reported),
                ..Known::default()
            };
        }
        if meta.len() == known.read {
            return Ok(());
        }
        file.seek(SeekFrom::Start(known.read))?;
        let mut lines = BufReader::new(file);
        let (mut line, mut unreadable) = (Vec::new(), Vec::new());
        let revoked = Arc::make_mut(&mut known.revoked);
        while lines.read_until(b'\n', &mut line)? > 0 {
            // An agent may be writing the last line, or was killed while writing it.
            if line.last() != Some(&b'\n') {
                break;
            }
            known.lines += 1;
            known.read += line.len() as u64;
            match Line::parse(&line) {
                Some(Line { subject, times }) => revoked.add(subject, times),
                None if line.trim_ascii().is_empty() => {}
                None if known.reported.insert(hash(&line)) => unreadable.push(known.lines),
                None => {}
            }
            line.clear();
        }
        if let Some(report) = self.report(&unreadable) {
            eprintln!("workflow-token-agent: {report}");
        }
        Ok(())
    }

    /// Returns the line for the operator's log about malformed lines; none without malformed lines.
    fn report(&self, unreadable: &[u64]) -> Option<String> {
        let (first, others) = unreadable.split_first()?;
        let others = match others.len() {
            0 => String::new(),
            count => format!(" and {count} others"),
        };
        Some(format!(
            "{}: line {first}{others} cannot be read as a revocation and has no effect: \
             remove it, and repeat the revocation",
            self.path.display()
        ))
    }

    /// Rewrites the file without expired lines, and without an incomplete last line of an agent that was killed.
    /// Malformed lines stay, since an operator may correct them.
    fn rewrite(&self, now: f64) -> io::Result<()> {
        let mut lines = BufReader::new(open(OpenOptions::new().read(true), &self.path)?);
        let new = self.path.with_extension(format!("new-{}", std::process::id()));
        let mut kept = BufWriter::new(open(OpenOptions::new().create(true).truncate(true).write(true), &new)?);
        let has_expired = |line: &[u8]| Line::parse(line).is_some_and(|line| line.times.until <= now);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            if line.ends_with(b"\n") && !line.trim_ascii().is_empty() && !has_expired(&line) {
                kept.write_all(&line)?;
            }
            line.clear();
        }
        kept.flush()?;
        kept.get_ref().sync_all()?;
        fs::rename(&new, &self.path)
    }
}

fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.mode(0o600).open(path)
}

fn hash(line: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    line.hash(&mut hasher);
    hasher.finish()
}

fn now() -> f64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.as_ref().map_or(0.0, Duration::as_secs_f64)
}

#[cfg(test)]
mod tests {
    use protocol::JobFacts;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn of_job(jobid: u64) -> TokenFacts {
        TokenFacts {
            job: Some(JobFacts {
                instance: "a".to_owned(),
                jobid,
                uid: 1000,
            }),
            jti: Some(format!("jti-{jobid}")),
            sub: Some("alice".to_owned()),
            iat: Some(now() - 10.0),
        }
    }

    fn job(instance: Option<&str>, jobid: u64) -> Subject {
        Subject::Job {
            instance: instance.map(str::to_owned),
            jobid,
        }
    }

    /// Adds an expired revocation of a job.
    fn add_expired(revocations: &Revocations, jobid: u64) {
        let times = Times {
            at: now() - 20.0,
            until: now() - 10.0,
        };
        let subject = job(None, jobid);
        let line = Line { subject, times }.to_bytes().unwrap();
        let mut file = open(OpenOptions::new().create(true).append(true), &revocations.path).unwrap();
        file.write_all(&line).unwrap();
    }

    #[test]
    fn revocations_outlive_the_agent_and_are_of_their_tokens_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let revocations = Revocations::open(&path).unwrap();
        assert_eq!(revocations.is_revoked(&of_job(1)), Ok(false));
        revocations.revoke(&[job(Some("a"), 1)], HOUR).unwrap();
        revocations
            .revoke(&[job(Some("b"), 2), Subject::Jti("jti-3".to_owned())], HOUR)
            .unwrap();
        let after = Revocations::open(&path).unwrap();
        for each in [&revocations, &after] {
            assert_eq!(
                [1, 2, 3, 4].map(|id| each.is_revoked(&of_job(id)).unwrap()),
                [true, false, true, false]
            );
        }
        // Each agent reads the lines that the other one appends.
        after.revoke(&[job(None, 4)], HOUR).unwrap();
        assert_eq!(revocations.is_revoked(&of_job(4)), Ok(true));
    }

    #[test]
    fn a_file_that_another_agent_rewrites_is_not_taken_for_the_former_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let (reader, writer) = (Revocations::open(&path).unwrap(), Revocations::open(&path).unwrap());
        writer.revoke(&[job(Some("a"), 1)], HOUR).unwrap();
        assert_eq!(reader.is_revoked(&of_job(1)), Ok(true));
        let former = fs::metadata(&writer.path).unwrap().ino();
        // File systems give the inode of a removed file to one of the next.
        for _ in 0..20 {
            writer.rewrite(now()).unwrap();
            assert_ne!(fs::metadata(&writer.path).unwrap().ino(), former);
        }
    }

    #[test]
    fn tokens_of_a_user_that_are_issued_later_are_valid() {
        let directory = tempfile::tempdir().unwrap();
        let revocations = Revocations::open(&directory.path().join("state")).unwrap();
        revocations.revoke(&[Subject::User("alice".to_owned())], HOUR).unwrap();
        let later = TokenFacts {
            iat: Some(now() + 1.0),
            ..of_job(1)
        };
        let undated = TokenFacts { iat: None, ..of_job(1) };
        assert_eq!(revocations.is_revoked(&of_job(1)), Ok(true));
        assert_eq!(revocations.is_revoked(&undated), Ok(true));
        assert_eq!(revocations.is_revoked(&later), Ok(false));
        let bob = TokenFacts {
            sub: Some("bob".to_owned()),
            ..of_job(1)
        };
        assert_eq!(revocations.is_revoked(&bob), Ok(false));
        revocations.revoke(&[Subject::Uid(1000)], HOUR).unwrap();
        assert_eq!(revocations.is_revoked(&bob), Ok(true));
    }

    #[test]
    fn what_has_expired_is_dropped_and_a_line_that_was_not_written_to_its_end_is_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let revocations = Revocations::open(&path).unwrap();
        add_expired(&revocations, 1);
        revocations.revoke(&[job(None, 2)], HOUR).unwrap();
        let mut file = OpenOptions::new().append(true).open(path.join(NAME)).unwrap();
        file.write_all(br#"{"subject":{"jti":"half"#).unwrap();
        revocations.revoke(&[job(None, 3)], HOUR).unwrap();
        let after = Revocations::open(&path).unwrap();
        assert_eq!(
            [1, 2, 3].map(|id| after.is_revoked(&of_job(id)).unwrap()),
            [false, true, true]
        );
        let text = fs::read_to_string(path.join(NAME)).unwrap();
        assert_eq!(text.lines().filter(|line| line.contains("until")).count(), 2);
        assert_eq!(revocations.is_revoked(&of_job(3)), Ok(true));
    }

    #[test]
    fn lines_that_cannot_be_read_are_reported_once_and_hide_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let revocations = Revocations::open(&path).unwrap();
        let reported = |of: &Revocations| of.known.lock().unwrap().reported.len();
        add_expired(&revocations, 1);
        let mut file = OpenOptions::new().append(true).open(path.join(NAME)).unwrap();
        file.write_all(b"\xff\n\n{\"subject\":{\"planet\":3},\"at\":1,\"until\":9e9}\n")
            .unwrap();
        revocations.revoke(&[job(None, 2)], HOUR).unwrap();
        assert_eq!(reported(&revocations), 2);
        // The first line has expired, so the next agent rewrites the file when it starts.
        let after = Revocations::open(&path).unwrap();
        after.revoke(&[job(None, 3)], HOUR).unwrap();
        for each in [&revocations, &after] {
            assert_eq!(
                [2, 3, 4].map(|id| each.is_revoked(&of_job(id)).unwrap()),
                [true, true, false]
            );
            assert_eq!(reported(each), 2);
        }
        let bytes = fs::read(path.join(NAME)).unwrap();
        assert!(bytes.starts_with(b"\xff\n{\"subject\":{\"planet\""));
        let report = after.report(&[1, 2]).unwrap();
        assert!(report.contains("state/revocations: line 1 and 1 others") && report.contains("remove it"));
        assert_eq!(after.report(&[]), None);
    }

    #[test]
    fn a_shorter_revocation_does_not_end_a_longer_one() {
        let directory = tempfile::tempdir().unwrap();
        let revocations = Revocations::open(&directory.path().join("state")).unwrap();
        revocations.revoke(&[job(None, 1)], HOUR).unwrap();
        revocations.revoke(&[job(None, 1)], Duration::ZERO).unwrap();
        assert_eq!(revocations.is_revoked(&of_job(1)), Ok(true));
    }

    #[test]
    fn a_file_that_is_gone_does_not_make_tokens_valid() {
        let directory = tempfile::tempdir().unwrap();
        let revocations = Revocations::open(&directory.path().join("state")).unwrap();
        revocations.revoke(&[job(None, 1)], HOUR).unwrap();
        fs::remove_file(&revocations.path).unwrap();
        assert!(revocations.is_revoked(&of_job(2)).is_err());
    }
}
