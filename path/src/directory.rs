// SPDX-License-Identifier: MIT OR Apache-2.0

//! Directories, and files in them.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStringExt, fs::PermissionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat};

use crate::{mount, owners::Owners, refusal::Refusal};

/// A trusted directory. Every directory in its path is trusted, too.
pub struct Directory {
    owners: Owners,
    fd: OwnedFd,
    path: PathBuf,
    /// The directory's `st_dev`, which differs across a mount point.
    device: u64,
}

impl Directory {
    pub(crate) fn root(owners: Owners) -> Result<Self, Refusal> {
        let fd = rustix::fs::open("/", DIRECTORY, Mode::empty())?;
        Self::checked(owners, fd, PathBuf::from("/"), None)
    }

    /// `above` is the device of the directory from which this one was reached.
    fn checked(owners: Owners, fd: OwnedFd, path: PathBuf, above: Option<u64>) -> Result<Self, Refusal> {
        let stat = rustix::fs::fstat(&fd)?;
        if above != Some(stat.st_dev) {
            mount::check(&fd, &stat, &path, owners)?;
        }
        owners.check_directory(&stat, &path)?;
        let device = stat.st_dev;
        Ok(Self {
            owners,
            fd,
            path,
            device,
        })
    }

    /// Opens a subdirectory or the parent directory. Does not follow links.
    pub(crate) fn enter(&self, name: &OsStr) -> Result<Self, Refusal> {
        let path = if name == PARENT {
            self.path.parent().unwrap_or(&self.path).to_owned()
        } else {
            self.path.join(name)
        };
        let fd = rustix::fs::openat(&self.fd, name, DIRECTORY, Mode::empty())?;
        Self::checked(self.owners, fd, path, Some(self.device))
    }

    /// Returns the target of a symbolic link in this directory, or `None` if the entry is not a link.
    pub(crate) fn link(&self, name: &OsStr) -> Result<Option<PathBuf>, Refusal> {
        let stat = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            return Ok(None);
        }
        let link = rustix::fs::openat(&self.fd, name, ANYTHING, Mode::empty())?;
        let stat = rustix::fs::fstat(&link)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            return Ok(None);
        }
        let owners = self.owners.and_user(None);
        let holder = rustix::fs::fstat(&self.fd)?;
        if owners != self.owners {
            mount::check(&self.fd, &holder, &self.path, owners)?;
        }
        owners.check_directory(&holder, &self.path)?;
        owners.check_link(&holder, &stat, &self.path.join(name))?;
        let target = rustix::fs::readlinkat(&link, "", Vec::new())?;
        Ok(Some(PathBuf::from(OsString::from_vec(target.into_bytes()))))
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a subdirectory. Does not follow links.
    pub fn directory(&self, name: &OsStr) -> Result<Self, Refusal> {
        self.enter(name).map_err(|e| no_link(e, &self.path.join(name)))
    }

    /// Opens a file that no other user could have created or changed. Does not follow links.
    pub fn open(&self, name: &OsStr) -> Result<fs::File, Refusal> {
        // Without NONBLOCK, opening a FIFO would wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.fd, name, flags, Mode::empty());
        let file = fs::File::from(file.map_err(|e| no_link(e.into(), &self.path.join(name)))?);
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Refusal::Untrusted("not a regular file".to_owned()));
        }
        self.check_mount(&file, &stat, name)?;
        self.owners.check_owner(&stat)?;
        if stat.st_mode & 0o022 != 0 {
            return Err(Refusal::Untrusted(format!(
                "mode {:04o} lets others write to it: use chmod 0600",
                stat.st_mode & 0o7777
            )));
        }
        Ok(file)
    }

    /// Returns the status of an entry, without checking it.
    pub(crate) fn status(&self, name: &OsStr) -> Result<Stat, Refusal> {
        let stat = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if stat.st_dev == self.device {
            return Ok(stat);
        }
        let fd = rustix::fs::openat(&self.fd, name, ANYTHING, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        self.check_mount(&fd, &stat, name)?;
        Ok(stat)
    }

    pub(crate) fn own_status(&self) -> Result<Stat, Refusal> {
        Ok(rustix::fs::fstat(&self.fd)?)
    }

    /// Checks the mount if the entry is a mount point. A file can be one, too.
    fn check_mount(&self, fd: impl AsFd, stat: &Stat, name: &OsStr) -> Result<(), Refusal> {
        if stat.st_dev == self.device {
            return Ok(());
        }
        mount::check(fd, stat, &self.path.join(name), self.owners)
    }

    pub(crate) fn owners(&self) -> Owners {
        self.owners
    }

    /// Returns the sorted names of the entries, except those that start with a period. More than `most` entries are an
    /// error.
    pub fn names(&self, most: usize) -> Result<Vec<OsString>, Refusal> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let readable = rustix::fs::openat(&self.fd, ".", flags, Mode::empty())?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(readable)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name.starts_with(b".") {
                continue;
            }
            if names.len() == most {
                return Err(Refusal::Untrusted(format!("it has more than {most} entries")));
            }
            names.push(OsString::from_vec(name));
        }
        names.sort();
        Ok(names)
    }

    /// Creates a subdirectory unless it exists, and opens it.
    pub fn make_directory(&self, name: &OsStr, mode: u32) -> Result<Self, Refusal> {
        self.create_directory(name, mode)?;
        self.directory(name)
    }

    pub(crate) fn create_directory(&self, name: &OsStr, mode: u32) -> Result<(), Refusal> {
        match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(mode)) {
            Ok(()) => self.sync(),
            Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Writes a file atomically: a reader finds either the whole file or the previous one, also after a crash. Only the
    /// owner can ever read it, unless `mode` permits more.
    pub fn write(&self, name: &OsStr, mode: u32, bytes: &[u8], replace: bool) -> Result<(), Refusal> {
        let temporary = format!(".new-{:016x}", fastrand::u64(..));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.fd, &*temporary, flags, Mode::RUSR | Mode::WUSR)?;
        let mut file = fs::File::from(file);
        let written = file
            .write_all(bytes)
            .and_then(|()| file.set_permissions(fs::Permissions::from_mode(mode)))
            .and_then(|()| file.sync_all())
            .map_err(Refusal::from)
            .and_then(|()| {
                let flags = if replace {
                    RenameFlags::empty()
                } else {
                    RenameFlags::NOREPLACE
                };
                Ok(rustix::fs::renameat_with(&self.fd, &*temporary, &self.fd, name, flags)?)
            });
        if written.is_err() {
            // Nobody uses the temporary file, and the first error matters more than its removal.
            let _ = rustix::fs::unlinkat(&self.fd, &*temporary, AtFlags::empty());
        }
        written?;
        self.sync()
    }

    /// Removes a file. Returns whether it existed.
    pub fn remove(&self, name: &OsStr) -> Result<bool, Refusal> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) => self.sync().map(|()| true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Locks the directory against others who lock it, until the result is dropped. Does not wait: returns `None` if
    /// another process holds the lock.
    pub fn lock(&self) -> Result<Option<OwnedFd>, Refusal> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, ".", flags, Mode::empty())?;
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(fd)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn sync(&self) -> Result<(), Refusal> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, ".", flags, Mode::empty())?;
        Ok(rustix::fs::fsync(fd)?)
    }
}

pub(crate) const PARENT: &str = "..";

/// Flags that open an entry of any type, or a link itself.
const ANYTHING: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A directory that can be searched need not be readable.
const DIRECTORY: OFlags = ANYTHING.union(OFlags::DIRECTORY);

/// Returns whether the error reports a link, or an entry that is not a directory.
pub(crate) fn is_other_kind(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Io(e) if matches!(
        rustix::io::Errno::from_io_error(e),
        Some(rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR)
    ))
}

fn no_link(refusal: Refusal, path: &Path) -> Refusal {
    if !is_other_kind(&refusal) {
        return refusal;
    }
    Refusal::Untrusted(format!(
        "{} is a symbolic link or not a directory: use the path of a directory",
        path.display()
    ))
}
