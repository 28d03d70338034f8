// SPDX-License-Identifier: MIT OR Apache-2.0

//! The files that hold a job's current tokens on a node. On Slurm, each step has its own.
//!
//! They are in a directory of their own that only the job owner can enter, in a file system in memory if possible. The
//! process that created the directory holds a lock on it. A directory without a lock is left over from an earlier job.
//! The next job of its owner removes it.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{Flock, FlockArg, OFlag, openat, renameat},
    sys::stat::Mode,
    unistd::{UnlinkatFlags, geteuid, mkdtemp, unlinkat},
};
use secrecy::ExposeSecret;

use crate::{
    renewal::Renewal,
    variables::{Variables, check_name},
};

/// The possible parents of the directory, in order of preference.
const PARENTS: [&str; 2] = ["/dev/shm", "/tmp"];

/// The maximum number of entries of a parent that are searched for leftover directories.
const ENTRIES: usize = 10_000;

/// The variable that tells WLCG clients where to find a token: WLCG Bearer Token Discovery, section 2.
pub const BEARER_TOKEN_FILE: &str = "BEARER_TOKEN_FILE";

/// The files of one job, or on Slurm of one step. Dropping the value removes them.
#[derive(Debug)]
pub struct TokenFiles {
    directory: PathBuf,
    /// The locked descriptor of the directory.
    lock: Flock<File>,
}

impl TokenFiles {
    /// Creates a directory with the values that have a file, and removes leftover directories of this user.
    ///
    /// # Errors
    /// From the last file system that was tried.
    pub fn create(jobid: u64, variables: &Variables, renewal: &Renewal) -> io::Result<Self> {
        let mut result = Err(io::ErrorKind::NotFound.into());
        for parent in PARENTS.map(Path::new) {
            sweep(parent);
            // A file system may have room for directories, but not for values.
            result = Self::create_in(parent, jobid).and_then(|files| {
                files.write(variables, renewal)?;
                Ok(files)
            });
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn create_in(parent: &Path, jobid: u64) -> io::Result<Self> {
        // Until a new directory is locked, another job of the user may mistake it for a leftover one.
        for _ in 0..8 {
            let directory = mkdtemp(&parent.join(format!("{}{jobid}-XXXXXX", prefix())))?;
            if let Some(lock) = lock(&directory)?
                && is_same(&lock, &directory)
            {
                return Ok(Self { directory, lock });
            }
        }
        Err(io::Error::other("another process keeps removing its directory"))
    }

    /// Writes the values that have a file, and replaces each atomically. The user owns the directory and can put
    /// anything there, so this opens only files that it has created.
    ///
    /// # Errors
    /// From the file system. Values written earlier remain.
    pub fn write(&self, variables: &Variables, renewal: &Renewal) -> io::Result<()> {
        let directory = self.lock.as_fd();
        for (name, value) in variables.iter().filter(|(name, _)| has_file(name, renewal)) {
            let new = format!(".{name}");
            match unlinkat(directory, new.as_str(), UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(nix::Error::ENOENT) => {}
                Err(e) => return Err(e.into()),
            }
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            let mut file = File::from(openat(directory, new.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
            file.write_all(value.expose_secret().as_bytes())?;
            renameat(directory, new.as_str(), directory, name)?;
        }
        Ok(())
    }

    /// Returns the variables that name the files, and their paths.
    pub fn variables(&self, variables: &Variables, renewal: &Renewal) -> Vec<(String, PathBuf)> {
        let mut all = Vec::new();
        for name in variables.names().filter(|name| has_file(name, renewal)) {
            let path = self.directory.join(name);
            if renewal.bearer.as_deref() == Some(name) {
                all.push((BEARER_TOKEN_FILE.to_owned(), path.clone()));
            }
            all.push((format!("{name}_FILE"), path));
        }
        all
    }
}

/// Returns the file of a token on this node, given its path on any node of the same job, or None if there is no such
/// file.
pub fn on_this_node(path: &Path) -> Option<PathBuf> {
    if is_own_file(path) {
        return Some(path.to_owned());
    }
    let (name, directory) = (path.file_name()?, path.parent()?);
    let parent = directory.parent()?;
    // The name without the suffix that mkdtemp(3) chose.
    let (same, _) = directory.file_name()?.to_str()?.rsplit_once('-')?;
    let is_same = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        let name = name.to_str().and_then(|name| name.rsplit_once('-'));
        name.is_some_and(|(start, _)| start == same && start.starts_with(&prefix()))
    };
    let entries = fs::read_dir(parent).ok()?.flatten().take(ENTRIES);
    let files = entries.filter(is_same).map(|entry| entry.path().join(name));
    files.into_iter().find(|path| is_own_file(path))
}

/// Returns whether a path is a file of this user.
fn is_own_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.uid() == geteuid().as_raw())
}

impl Drop for TokenFiles {
    fn drop(&mut self) {
        // If this fails, the next job of the user tries again.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Returns whether a variable has a file. The file has the name of the variable, so the name is checked.
fn has_file(name: &str, renewal: &Renewal) -> bool {
    renewal.files.iter().any(|file| file == name) && check_name(name).is_ok()
}

/// Returns the prefix of the names of this user's directories.
fn prefix() -> String {
    format!("workflow-token-{}-", geteuid())
}

/// Locks a directory. Returns None if another process holds the lock.
fn lock(directory: &Path) -> io::Result<Option<Flock<File>>> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(directory)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, e)) => Err(e.into()),
    }
}

fn is_same(file: &File, path: &Path) -> bool {
    let same = |one: &fs::Metadata, other: &fs::Metadata| (one.dev(), one.ino()) == (other.dev(), other.ino());
    matches!((file.metadata(), fs::symlink_metadata(path)), (Ok(one), Ok(other)) if same(&one, &other))
}

/// Removes the leftover directories of this user in `parent`.
fn sweep(parent: &Path) {
    let prefix = prefix();
    let is_ours = |name: &OsStr| name.to_str().is_some_and(|name| name.starts_with(&prefix));
    let entries = fs::read_dir(parent).into_iter().flatten().flatten().take(ENTRIES);
    for entry in entries.filter(|entry| is_ours(&entry.file_name())) {
        let path = entry.path();
        let owner = fs::symlink_metadata(&path).map(|meta| meta.uid());
        if owner.is_ok_and(|uid| uid == geteuid().as_raw())
            && let Ok(Some(_lock)) = lock(&path)
        {
            // Nobody uses it, and if this fails, the next job tries again.
            let _ = fs::remove_dir_all(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use crate::Secret;

    use super::*;

    fn variables(value: &str) -> (Variables, Renewal) {
        let mut variables = Variables::new();
        variables.insert("TOKEN", Secret::from(value)).unwrap();
        variables.insert("OTHER", Secret::from("other")).unwrap();
        variables.insert("../evil", Secret::from("evil")).unwrap();
        let renewal = Renewal {
            files: vec!["TOKEN".to_owned(), "../evil".to_owned(), "MISSING".to_owned()],
            bearer: Some("TOKEN".to_owned()),
            ..Renewal::default()
        };
        (variables, renewal)
    }

    #[test]
    fn a_value_is_in_a_file_only_for_its_owner_and_replaced_atomically() {
        let parent = tempfile::tempdir().unwrap();
        let files = TokenFiles::create_in(parent.path(), 7).unwrap();
        let (one, renewal) = variables("one");
        files.write(&one, &renewal).unwrap();
        let named = files.variables(&one, &renewal);
        let names: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["BEARER_TOKEN_FILE", "TOKEN_FILE"]);
        let path = &named[1].1;
        assert_eq!(fs::read_to_string(path).unwrap(), "one");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(path), mode(path.parent().unwrap())), (0o600, 0o700));
        let former = File::open(path).unwrap();
        files.write(&variables("two").0, &renewal).unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), "two");
        assert_eq!(io::read_to_string(former).unwrap(), "one");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        let directory = path.parent().unwrap().to_owned();
        drop(files);
        assert!(!directory.exists());
    }

    #[test]
    fn no_file_of_the_user_in_the_directory_is_opened_or_blocks_a_write() {
        let parent = tempfile::tempdir().unwrap();
        let files = TokenFiles::create_in(parent.path(), 7).unwrap();
        let (one, renewal) = variables("one");
        nix::unistd::mkfifo(&files.directory.join(".TOKEN"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        files.write(&one, &renewal).unwrap();
        let kept = parent.path().join("kept");
        fs::write(&kept, "kept").unwrap();
        std::os::unix::fs::symlink(&kept, files.directory.join(".TOKEN")).unwrap();
        files.write(&one, &renewal).unwrap();
        assert_eq!(fs::read_to_string(&kept).unwrap(), "kept");
        // The directory itself is replaced.
        fs::rename(&files.directory, parent.path().join("moved")).unwrap();
        std::os::unix::fs::symlink(parent.path(), &files.directory).unwrap();
        files.write(&variables("two").0, &renewal).unwrap();
        assert_eq!(fs::read_to_string(parent.path().join("moved/TOKEN")).unwrap(), "two");
        assert!(!parent.path().join("TOKEN").exists());
    }

    #[test]
    fn a_file_is_found_by_its_path_on_another_node() {
        let parent = tempfile::tempdir().unwrap();
        let files = TokenFiles::create_in(parent.path(), 7).unwrap();
        let (one, renewal) = variables("one");
        files.write(&one, &renewal).unwrap();
        let here = files.directory.join("TOKEN");
        assert_eq!(on_this_node(&here), Some(here.clone()));
        let there = |job: u64| parent.path().join(format!("{}{job}-other", prefix())).join("TOKEN");
        assert_eq!(on_this_node(&there(7)), Some(here));
        assert_eq!(on_this_node(&there(8)), None);
        assert_eq!(on_this_node(Path::new("/TOKEN")), None);
    }

    #[test]
    fn directories_that_are_left_over_are_removed_and_no_others() {
        let parent = tempfile::tempdir().unwrap();
        let held = TokenFiles::create_in(parent.path(), 7).unwrap();
        let left = parent.path().join(format!("{}8-left", prefix()));
        let other = parent.path().join("workflow-token-else");
        for directory in [&left, &other] {
            fs::create_dir(directory).unwrap();
            fs::write(directory.join("TOKEN"), "x").unwrap();
        }
        sweep(parent.path());
        assert!(held.directory.exists() && other.exists() && !left.exists());
    }
}
