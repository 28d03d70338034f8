// SPDX-License-Identifier: MIT OR Apache-2.0

//! The sealed records of active jobs, one file for each. They outlive the agent, and two controllers may share them.
//!
//! The agent keeps no copy in memory: the kernel caches the files.

use std::{
    collections::HashSet,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use config::Slurm;
use protocol::slurm::Job;
use seal::{Due, Record};
use serde::{Deserialize, Serialize};
use tokio::{sync::Semaphore, time::timeout};

use super::Site;

/// The version of the files. Files of another version are ignored.
const VERSION: u32 = 1;

/// The age below which a record is kept even if Slurm does not list its job: it may have been stored just now.
const YOUNG: Duration = Duration::from_secs(300);

/// The most concurrent reads and changes: a shared store may hang.
const AT_ONCE: usize = 32;

/// The timeout of the file system.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The store of records.
pub struct Store {
    directory: PathBuf,
    /// The end of the names of new files: agents on other machines may share the directory.
    suffix: String,
    /// Serializes changes: the end of a job and its next run may be reported at the same time.
    changing: Mutex<()>,
    turns: Arc<Semaphore>,
}

/// The stored answer, and the facts that decide which node gets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    version: u32,
    /// The job.
    pub job: Job,
    /// The answer to its nodes.
    pub answer: Answer,
}

/// The answer to the nodes of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The sealed record, in JSON.
    Record(String),
    /// The reason why the job must not start, for the user.
    Failed(String),
}

impl Entry {
    pub fn new(job: Job, answer: Answer) -> Self {
        Self {
            version: VERSION,
            job,
            answer,
        }
    }

    /// Returns the next renewal of the job; none if there is none.
    pub fn due(&self) -> Option<Due> {
        match &self.answer {
            Answer::Record(record) => Record::from_json(record).ok()?.renewal().due(),
            Answer::Failed(_) => None,
        }
    }
}

impl Store {
    /// Opens a directory, and creates it if its parent exists.
    ///
    /// # Errors
    /// For the operator: the directory cannot be created, or others could write to it.
    pub fn open(directory: &Path) -> Result<Self, String> {
        secure_path::private_directory(directory)
            .map_err(|e| format!("{}, the key store of the table slurm: {e}", directory.display()))?;
        Ok(Self {
            directory: directory.to_owned(),
            suffix: format!("{:016x}", fastrand::u64(..)),
            changing: Mutex::default(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
        })
    }

    /// Stores the entry of a job and replaces a former one, unless the job has been requeued since. Blocks.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn put(&self, entry: &Entry) -> io::Result<()> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let jobid = entry.job.jobid;
        let written = self.get(jobid).and_then(|former| {
            let is_over = former.is_some_and(|former| former.job.restarts > entry.job.restarts);
            if is_over { Ok(()) } else { self.write(entry) }
        });
        if written.is_err() {
            // A node must not take the former entry for this one.
            let _ = fs::remove_file(self.file_of(jobid));
        }
        written
    }

    /// Stores the renewed record of a job, unless its entry has changed since. Blocks.
    ///
    /// # Errors
    /// Those of the file system. The former entry stays.
    pub fn renew(&self, former: Entry, record: String) -> io::Result<()> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.get(former.job.jobid)?.as_ref() != Some(&former) {
            return Ok(());
        }
        let answer = Answer::Record(record);
        self.write(&Entry { answer, ..former })
    }

    fn write(&self, entry: &Entry) -> io::Result<()> {
        let jobid = entry.job.jobid;
        let new = self.directory.join(format!(".job-{jobid}-{}", self.suffix));
        let mut options = OpenOptions::new();
        options.create(true).truncate(true).write(true).mode(0o600);
        let written = options
            .open(&new)
            .and_then(|mut file| file.write_all(&serde_json::to_vec(entry)?))
            .and_then(|()| fs::rename(&new, self.file_of(jobid)));
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written
    }

    /// Returns the jobs that have an entry. Blocks.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn jobs(&self) -> io::Result<HashSet<u32>> {
        let files = fs::read_dir(&self.directory)?.collect::<io::Result<Vec<_>>>()?;
        let jobid = |file: fs::DirEntry| file.file_name().to_str()?.strip_prefix("job-")?.parse().ok();
        Ok(files.into_iter().filter_map(jobid).collect())
    }

    /// Returns the entry of a job; none if it is missing or cannot be used. Blocks.
    ///
    /// # Errors
    /// Those of the file system: the entry may exist.
    pub fn get(&self, jobid: u32) -> io::Result<Option<Entry>> {
        let bytes = match fs::read(self.file_of(jobid)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes?,
        };
        let entry = serde_json::from_slice(&bytes).ok();
        Ok(entry.filter(|entry: &Entry| entry.version == VERSION))
    }

    /// Removes the entry of an ended job, unless the job has been requeued since. Blocks.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove(&self, jobid: u32, restarts: u32) -> io::Result<()> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.get(jobid)?.is_some_and(|entry| entry.job.restarts > restarts) {
            return Ok(());
        }
        match fs::remove_file(self.file_of(jobid)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Removes the entries of jobs that are not active, except young ones. Blocks.
    pub fn purge(&self, active: &HashSet<u32>) {
        let now = SystemTime::now();
        for file in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let name = file.file_name();
            let Some(name) = name.to_str() else { continue };
            let jobid = name.strip_prefix("job-").and_then(|jobid| jobid.parse().ok());
            // Files with other names are incomplete files of agents that were killed.
            let is_over = jobid.is_none_or(|jobid: u32| !active.contains(&jobid)) && name.contains("job-");
            let modified = file.metadata().and_then(|meta| meta.modified());
            let is_old = modified.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > YOUNG));
            if is_over && is_old {
                // The next purge tries again.
                let _ = fs::remove_file(file.path());
            }
        }
    }

    fn file_of(&self, jobid: u32) -> PathBuf {
        self.directory.join(Slurm::record_name(jobid))
    }
}

/// Reads or changes the store on a thread, with a timeout.
pub async fn in_store<T: Send + 'static>(
    site: &Arc<Site>,
    f: impl FnOnce(&Store) -> io::Result<T> + Send + 'static,
) -> Result<T, String> {
    let permit = timeout(TIMEOUT, Arc::clone(&site.store.turns).acquire_owned()).await;
    let Ok(Ok(permit)) = permit else {
        return Err("others hang".to_owned());
    };
    let site = Arc::clone(site);
    let run = move || {
        let done = f(&site.store);
        drop(permit);
        done
    };
    match timeout(TIMEOUT, tokio::task::spawn_blocking(run)).await {
        Ok(Ok(done)) => done.map_err(|e| e.to_string()),
        Ok(Err(_)) => Err("an internal error".to_owned()),
        Err(_) => Err("the file system does not answer".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn entry(jobid: u32, restarts: u32) -> Entry {
        Entry {
            version: VERSION,
            job: Job {
                version: 1,
                cluster: "c".to_owned(),
                jobid,
                uid: 1000,
                partition: "p".to_owned(),
                account: None,
                qos: None,
                comment: None,
                nodes: "n1".to_owned(),
                restarts,
                array: None,
                requests: None,
            },
            answer: Answer::Record("{}".to_owned()),
        }
    }

    #[test]
    fn records_survive_and_end_with_their_job() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let store = Store::open(&path).unwrap();
        assert_eq!(store.get(7).unwrap(), None);
        store.put(&entry(7, 0)).unwrap();
        store.put(&entry(7, 1)).unwrap();
        drop(store);
        let store = Store::open(&path).unwrap();
        assert_eq!(store.get(7).unwrap(), Some(entry(7, 1)));
        assert_eq!(fs::metadata(path.join("job-7")).unwrap().mode() & 0o777, 0o600);
        // The record of the first run arrives after the job was requeued.
        store.put(&entry(7, 0)).unwrap();
        assert_eq!(store.get(7).unwrap(), Some(entry(7, 1)));
        // The end of the first run is reported after the job was requeued.
        store.remove(7, 0).unwrap();
        assert_eq!(store.get(7).unwrap(), Some(entry(7, 1)));
        store.remove(7, 1).unwrap();
        store.remove(7, 1).unwrap();
        assert_eq!(store.get(7).unwrap(), None);
    }

    #[test]
    fn a_record_is_renewed_unless_its_job_has_ended_or_begun_again() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        let record = || r#"{"next":1}"#.to_owned();
        store.renew(entry(7, 0), record()).unwrap();
        assert_eq!(store.get(7).unwrap(), None);
        store.put(&entry(7, 1)).unwrap();
        store.renew(entry(7, 0), record()).unwrap();
        assert_eq!(store.get(7).unwrap(), Some(entry(7, 1)));
        store.renew(entry(7, 1), record()).unwrap();
        let answer = Answer::Record(record());
        assert_eq!(store.get(7).unwrap(), Some(Entry { answer, ..entry(7, 1) }));
        assert_eq!(store.jobs().unwrap(), HashSet::from([7]));
    }

    #[test]
    fn only_old_records_of_jobs_that_have_ended_are_purged() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        for jobid in [1, 2, 3] {
            store.put(&entry(jobid, 0)).unwrap();
        }
        let old = SystemTime::now() - YOUNG - Duration::from_secs(1);
        for jobid in [1, 2] {
            let file = fs::File::options().write(true).open(store.file_of(jobid)).unwrap();
            file.set_modified(old).unwrap();
        }
        store.purge(&HashSet::from([1]));
        assert_eq!(
            [1, 2, 3].map(|jobid| store.get(jobid).unwrap().is_some()),
            [true, false, true]
        );
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = Store::open(directory.path()).err().unwrap();
        assert!(error.contains("nobody else can write to"), "{error}");
    }

    #[test]
    fn what_cannot_be_stored_leaves_no_former_record() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        store.put(&entry(7, 0)).unwrap();
        // Simulates a full disk: the new file cannot be written.
        fs::create_dir(store.directory.join(format!(".job-7-{}", store.suffix))).unwrap();
        assert!(store.put(&entry(7, 1)).is_err());
        assert_eq!(store.get(7).unwrap(), None);
    }
}
