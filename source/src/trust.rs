//! Files that are trusted: nobody could have put them there, or changed them, but root and whoever this runs as.

use std::{
    ffi::OsStr,
    fs,
    io::{self, Read},
    os::{
        fd::AsFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Component, Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};
use zeroize::Zeroizing;

/// Why a file was not opened.
pub(crate) enum Refusal {
    Io(io::Error),
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
    // A directory that can be searched need not be readable.
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = rustix::fs::open("/", directory, Mode::empty())?;
    let mut so_far = PathBuf::from("/");
    let mut names: Vec<_> = real.components().chain(rest.components()).collect();
    let Some(Component::Normal(last)) = names.pop() else {
        return Err(Refusal::Untrusted("not a regular file".to_owned()));
    };
    trusted_directory(user, &at, &so_far)?;
    for component in names {
        let name = match component {
            Component::RootDir | Component::CurDir => continue,
            Component::Normal(name) => name,
            _ => return Err(Refusal::Untrusted("its path has `..`".to_owned())),
        };
        so_far.push(name);
        at = rustix::fs::openat(&at, name, directory, Mode::empty()).map_err(|e| no_link(e, &so_far))?;
        trusted_directory(user, &at, &so_far)?;
    }
    so_far.push(last);
    // Opening a FIFO would wait for a writer without NONBLOCK.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&at, last, flags, Mode::empty()).map_err(|e| no_link(e, &so_far))?;
    let file = fs::File::from(file);
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(Refusal::Untrusted("not a regular file".to_owned()));
    }
    let me = nix::unistd::geteuid().as_raw();
    if !is_trusted(user, meta.uid()) {
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
