//! Files that are trusted: nobody could have put them there, or changed them, but root and whoever this runs as.

use std::{
    ffi::{OsStr, OsString},
    fmt, fs,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::{MetadataExt, PermissionsExt},
        },
    },
    path::{Component, Path, PathBuf},
};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RenameFlags};
use zeroize::Zeroizing;

/// Why a file was not opened.
#[derive(Debug)]
pub enum Refusal {
    /// It cannot be read.
    Io(io::Error),
    /// Somebody else has, or could have, a hand in it: what is wrong, and what to do.
    Untrusted(String),
}

impl From<io::Error> for Refusal {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

impl From<rustix::io::Errno> for Refusal {
    fn from(e: rustix::io::Errno) -> Self {
        Self::Io(e.into())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(e) => e.fmt(f),
            Self::Untrusted(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Refusal {}

/// Reads a file whose path the operator wrote, and which nobody else could have put there or changed: see [`open`]. Links
/// are followed.
///
/// # Errors
/// [`Refusal`], also where it has more than `limit` bytes.
pub fn read_public(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let real = fs::canonicalize(path)?;
    read_all(open(&real, &real)?, limit)
}

/// The same for a file with a secret, which must be closed to everyone but its owner.
///
/// # Errors
/// [`Refusal`], also where it has more than `limit` bytes.
pub fn read_private(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let real = fs::canonicalize(path)?;
    let file = open(&real, &real)?;
    private(&file.metadata()?)?;
    read_all(file, limit)
}

/// Opens a file that nobody could have put there, or changed, but those whom the path is trusted to: root and this user.
///
/// Every directory on the way must belong to one of these two and be closed to writing by others (a sticky one, such as
/// /tmp, is as good: what others put there is theirs, and refused). Links are followed in the constant part of the
/// template only, which the operator wrote; below it, a link could lead to the file of another job.
pub(crate) fn open(constant: &Path, path: &Path) -> Result<fs::File, Refusal> {
    open_trusting(None, constant, path)
}

/// Opens a file with a secret of one job or user, see [`open`]: closed to everyone but its owner, and under no other name,
/// which could be that of another job or user. `user`, if there is one, is trusted as well: with what only concerns that
/// user.
pub(crate) fn open_private(user: Option<u32>, constant: &Path, path: &Path) -> Result<fs::File, Refusal> {
    let file = open_trusting(user, constant, path)?;
    let meta = file.metadata()?;
    private(&meta)?;
    if meta.nlink() != 1 {
        return Err(Refusal::Untrusted(
            "it has more than one name (hard links): give each job a file of its own".to_owned(),
        ));
    }
    Ok(file)
}

fn open_trusting(user: Option<u32>, constant: &Path, path: &Path) -> Result<fs::File, Refusal> {
    // What precedes the last slash of the constant part is a directory in any case.
    let text = constant.as_os_str().as_bytes();
    let end = text.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    let base = Path::new(OsStr::from_bytes(&text[..end.max(1)]));
    let rest = path
        .strip_prefix(base)
        .map_err(|_| Refusal::Untrusted("it has no absolute path".to_owned()))?;
    let real = fs::canonicalize(base)?;
    let mut names: Vec<_> = real.components().chain(rest.components()).collect();
    let Some(Component::Normal(last)) = names.pop() else {
        return Err(Refusal::Untrusted("not a regular file".to_owned()));
    };
    Directory::walk(user, names.into_iter())?.open(last)
}

/// A directory that is trusted, as [`open`] says, with all on the way to it.
pub(crate) struct Directory {
    /// A user who is trusted as well.
    user: Option<u32>,
    fd: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Opens one. Links to it are followed.
    pub(crate) fn at(path: &Path) -> Result<Self, Refusal> {
        Self::walk(None, fs::canonicalize(path)?.components())
    }

    fn walk<'a>(user: Option<u32>, components: impl Iterator<Item = Component<'a>>) -> Result<Self, Refusal> {
        let root = rustix::fs::open("/", DIRECTORY, Mode::empty())?;
        let mut at = Self {
            user,
            fd: root,
            path: PathBuf::from("/"),
        };
        trusted_directory(user, &at.fd, &at.path)?;
        for component in components {
            match component {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) => at = at.directory(name)?,
                _ => return Err(Refusal::Untrusted("its path has `..`".to_owned())),
            }
        }
        Ok(at)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A directory in it, not by a link.
    pub(crate) fn directory(&self, name: &OsStr) -> Result<Self, Refusal> {
        let path = self.path.join(name);
        let fd = rustix::fs::openat(&self.fd, name, DIRECTORY, Mode::empty()).map_err(|e| no_link(e, &path))?;
        trusted_directory(self.user, &fd, &path)?;
        Ok(Self {
            user: self.user,
            fd,
            path,
        })
    }

    /// A file in it, not by a link, that nobody else could have put there or changed.
    pub(crate) fn open(&self, name: &OsStr) -> Result<fs::File, Refusal> {
        // Opening a FIFO would wait for a writer without NONBLOCK.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.fd, name, flags, Mode::empty());
        let file = fs::File::from(file.map_err(|e| no_link(e, &self.path.join(name)))?);
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(Refusal::Untrusted("not a regular file".to_owned()));
        }
        let me = nix::unistd::geteuid().as_raw();
        if !is_trusted(self.user, meta.uid()) {
            return Err(Refusal::Untrusted(format!(
                "owned by uid {}, and must be by uid {me} or root: use chown",
                meta.uid()
            )));
        }
        if meta.mode() & 0o022 != 0 {
            return Err(Refusal::Untrusted(format!(
                "mode {:04o} lets others write to it: use chmod 0600",
                meta.mode() & 0o7777
            )));
        }
        Ok(file)
    }

    /// The names of what is in it, sorted, without those that start with a period. More than `most` are refused.
    pub(crate) fn names(&self, most: usize) -> Result<Vec<OsString>, Refusal> {
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

    /// Creates a directory in it, unless there is one already, and opens it.
    pub(crate) fn make_directory(&self, name: &OsStr, mode: u32) -> Result<Self, Refusal> {
        match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(mode)) {
            Ok(()) => self.sync()?,
            Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        self.directory(name)
    }

    /// Writes a file in one step: whoever opens it finds all of it, or what was there before, also after a crash. At no
    /// moment can others than its owner read it, unless `mode` says so.
    pub(crate) fn write(&self, name: &OsStr, mode: u32, bytes: &[u8], replace: bool) -> Result<(), Refusal> {
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
            // It is of no use to anybody; what went wrong is more important than that it stays.
            let _ = rustix::fs::unlinkat(&self.fd, &*temporary, AtFlags::empty());
        }
        written?;
        self.sync()
    }

    /// Removes a file. Returns whether it was there.
    pub(crate) fn remove(&self, name: &OsStr) -> Result<bool, Refusal> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) => self.sync().map(|()| true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Keeps others out who lock it too, until what is returned is dropped. Does not wait: `None` where somebody has it.
    pub(crate) fn lock(&self) -> Result<Option<OwnedFd>, Refusal> {
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

/// A directory that can be searched need not be readable.
const DIRECTORY: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// That nobody but its owner can read a file that [`open`] has opened.
pub(crate) fn private(meta: &fs::Metadata) -> Result<(), Refusal> {
    if meta.mode() & 0o077 != 0 {
        return Err(Refusal::Untrusted(format!(
            "mode {:04o} lets others than its owner in: use chmod 0600",
            meta.mode() & 0o7777
        )));
    }
    Ok(())
}

fn no_link(e: rustix::io::Errno, path: &Path) -> Refusal {
    match e {
        rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR => Refusal::Untrusted(format!(
            "{} is a symbolic link, or no directory: name the real one",
            path.display()
        )),
        e => e.into(),
    }
}

fn is_trusted(user: Option<u32>, uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw() || Some(uid) == user
}

fn trusted_directory(user: Option<u32>, directory: &impl AsFd, path: &Path) -> Result<(), Refusal> {
    let stat = rustix::fs::fstat(directory)?;
    let me = nix::unistd::geteuid().as_raw();
    if !is_trusted(user, stat.st_uid) {
        return Err(Refusal::Untrusted(format!(
            "the directory {} belongs to uid {}, and must to uid {me} or root",
            path.display(),
            stat.st_uid
        )));
    }
    let sticky = stat.st_mode & 0o1000 != 0;
    if stat.st_mode & 0o022 != 0 && !sticky {
        return Err(Refusal::Untrusted(format!(
            "others can write to the directory {}: use chmod go-w",
            path.display()
        )));
    }
    Ok(())
}

/// Reads up to `limit` bytes, and one more where there is more.
pub(crate) fn read(file: fs::File, limit: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    // The buffer is as long as the file, and a little longer, so that it is not moved, leaving a copy behind.
    let expected = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX).min(limit);
    let mut bytes = Zeroizing::new(Vec::with_capacity(expected + 64));
    file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a file to its end, and refuses one with more than `limit` bytes.
pub(crate) fn read_all(file: fs::File, limit: usize) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let bytes = read(file, limit)?;
    if bytes.len() > limit {
        return Err(Refusal::Untrusted(format!(
            "longer than {limit} bytes: see that it is the right file"
        )));
    }
    Ok(bytes)
}
