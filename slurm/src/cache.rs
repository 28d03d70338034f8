// SPDX-License-Identifier: MIT OR Apache-2.0

//! The cache of sealed records on a node, accessible to root only. The node requests each job's record once.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use config::Slurm;
use nix::fcntl::{Flock, FlockArg, OFlag};
use seal::Record;

use crate::{
    client::{Answer, is_of},
    exchange::Deadline,
};

/// The maximum time to wait for another step of the job that is requesting the record.
const OTHER_STEP: Duration = Duration::from_secs(30);

/// The pause before the next attempt to lock.
const PAUSE: Duration = Duration::from_millis(10);

/// The longest record, in bytes: the length of a full MUNGE credential and its names.
const MAX_RECORD: u64 = 2 << 20;

/// Returns the record of a job from the cache of this node, or requests it and caches it. Steps that start together, or
/// that wait for the next record together, make one request. Failures are not cached. If no current record is
/// available, returns the previous one.
///
/// # Errors
/// Text for the operator: the directory cannot be used, or the reason why there is no record.
pub fn cached(
    directory: &Path,
    jobid: u32,
    uid: u32,
    is_current: impl Fn(&Record) -> bool,
    ask: impl FnOnce() -> Result<Answer, String>,
) -> Result<Answer, String> {
    let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", directory.display());
    secure_path::private_directory(directory).map_err(|e| failed(&e))?;
    let path = file_of(directory, jobid);
    let mut file = match lock(&path) {
        Ok(file) => file,
        // Another step is waiting for agents that do not respond. The cached record may still be valid.
        Err(e) => {
            let kept = File::open(&path).ok().and_then(|file| read(&file));
            let kept = kept.filter(|record| is_of(record, jobid, uid));
            return kept.map(Answer::Record).ok_or_else(|| failed(&e));
        }
    };
    // Ignore a record that was not written completely, or that belongs to an earlier job with the same id.
    let former = read(&file).filter(|record| is_of(record, jobid, uid));
    if let Some(record) = former.as_ref().filter(|record| is_current(record)) {
        return Ok(Answer::Record(record.clone()));
    }
    match (ask(), former) {
        (Ok(Answer::Record(record)), _) => {
            // The job has its record, even if caching it fails.
            let _ = write(&mut file, &record);
            Ok(Answer::Record(record))
        }
        (_, Some(former)) => Ok(Answer::Record(former)),
        (answer, None) => answer,
    }
}

fn read(file: &File) -> Option<Record> {
    let mut text = String::new();
    file.take(MAX_RECORD).read_to_string(&mut text).ok()?;
    Record::from_json(&text).ok()
}

/// Removes the record of a job.
///
/// # Errors
/// From unlink(2), except ENOENT.
pub fn forget(directory: &Path, jobid: u32) -> io::Result<()> {
    match fs::remove_file(file_of(directory, jobid)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn file_of(directory: &Path, jobid: u32) -> PathBuf {
    directory.join(Slurm::record_name(jobid))
}

fn lock(path: &Path) -> io::Result<Flock<File>> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true).mode(0o600);
    options.custom_flags(OFlag::O_NOFOLLOW.bits());
    let deadline = Deadline::after(OTHER_STEP);
    loop {
        let file = options.open(path)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            // The end of another job with this id may have removed the file meanwhile.
            Ok(file) if is_at(&file, path) => return Ok(file),
            Ok(_) => deadline.left().map(drop)?,
            Err((_, nix::Error::EWOULDBLOCK)) => {
                deadline.left()?;
                thread::sleep(PAUSE);
            }
            Err((_, e)) => return Err(e.into()),
        }
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let id = |meta: fs::Metadata| (meta.dev(), meta.ino());
    file.metadata().map(id).ok() == fs::symlink_metadata(path).map(id).ok()
}

fn write(file: &mut Flock<File>, record: &Record) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(record.to_json().as_bytes())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const RECORD: &str = r#"{"version":1,"jobid":7,"uid":1000,"sealer":64030,"variables":["A"],"sealed-at":1.0,"credential":"MUNGE:x:"}"#;

    #[test]
    fn a_node_requests_a_record_once_per_job() {
        let directory = tempfile::tempdir().unwrap();
        let cache = directory.path().join("cache");
        let asked = Cell::new(0);
        let record = || {
            asked.set(asked.get() + 1);
            Ok(Answer::Record(Record::from_json(RECORD).unwrap()))
        };
        let other = || {
            asked.set(asked.get() + 1);
            Ok(Answer::Record(Record::from_json(&RECORD.replace(":7", ":8")).unwrap()))
        };
        for expected in [1, 1, 1] {
            let Ok(Answer::Record(record)) = cached(&cache, 7, 1000, |_| true, record) else {
                panic!("no record")
            };
            assert_eq!((record.jobid(), asked.get()), (7, expected));
        }
        cached(&cache, 8, 1000, |_| true, other).unwrap();
        assert_eq!(asked.get(), 2, "another job");
        assert_eq!(fs::metadata(cache.join("job-7")).unwrap().mode() & 0o777, 0o600);
        let answer = cached(&cache, 7, 1001, |_| true, || Err("asked".to_owned()));
        assert_eq!(answer.unwrap_err(), "asked", "a job of another user");
        forget(&cache, 7).unwrap();
        forget(&cache, 7).unwrap();
        cached(&cache, 7, 1000, |_| true, record).unwrap();
        assert_eq!(asked.get(), 3);
    }

    #[test]
    fn a_node_requests_a_newer_record_and_keeps_the_old_one_if_there_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let cache = directory.path().join("cache");
        let generation = |answer| match answer {
            Ok(Answer::Record(record)) => record.renewal().generation,
            other => panic!("{other:?}"),
        };
        let is_new = |record: &Record| record.renewal().generation > 0;
        let next = RECORD.replace(r#","credential"#, r#","renewal":{"generation":1},"credential"#);
        let record = |text: &str| Ok(Answer::Record(Record::from_json(text).unwrap()));
        assert_eq!(generation(cached(&cache, 7, 1000, is_new, || record(RECORD))), 0);
        assert_eq!(
            generation(cached(&cache, 7, 1000, is_new, || Err("down".to_owned()))),
            0
        );
        let failed = || Ok(Answer::Failed("no".to_owned()));
        assert_eq!(generation(cached(&cache, 7, 1000, is_new, failed)), 0);
        assert_eq!(generation(cached(&cache, 7, 1000, is_new, || record(&next))), 1);
        assert_eq!(
            generation(cached(&cache, 7, 1000, is_new, || panic!("unexpected request"))),
            1
        );
    }

    #[test]
    fn failures_and_damaged_records_are_not_kept() {
        let directory = tempfile::tempdir().unwrap();
        let cache = directory.path().join("cache");
        assert_eq!(
            cached(&cache, 7, 1000, |_| true, || Err("down".to_owned())).unwrap_err(),
            "down"
        );
        let failed = cached(&cache, 7, 1000, |_| true, || Ok(Answer::Failed("no".to_owned())));
        assert!(matches!(failed, Ok(Answer::Failed(_))));
        fs::write(cache.join("job-7"), &RECORD[..40]).unwrap();
        let answer = cached(
            &cache,
            7,
            1000,
            |_| true,
            || Ok(Answer::Record(Record::from_json(RECORD).unwrap())),
        );
        assert!(matches!(answer, Ok(Answer::Record(_))));
        assert_eq!(fs::read_to_string(cache.join("job-7")).unwrap(), RECORD);
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = cached(directory.path(), 7, 1000, |_| true, || panic!("unexpected request")).unwrap_err();
        assert!(error.contains("nobody else can write to"), "{error}");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/tmp", &link).unwrap();
        assert!(cached(&link, 7, 1000, |_| true, || panic!("unexpected request")).is_err());
    }
}
