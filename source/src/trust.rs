//! Files that are trusted: nobody could have put them there, or changed them, but root and whoever this runs as.

use std::{
    ffi::{OsStr, OsString},
    fmt, fs,
    io::{self, Read, Write},
    os::{
        fd::OwnedFd,
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::{MetadataExt, PermissionsExt},
        },
    },
    path::{Component, Path, PathBuf},
};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags};
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

/// Reads a file whose path the operator wrote, and which nobody else could have put there or changed: see [`open`].
///
/// # Errors
/// [`Refusal`], also where it has more than `limit` bytes.
pub fn read_public(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    read_all(open(path)?, limit)
}

/// The same for a file with a secret, which must be closed to everyone but its owner.
///
/// # Errors
/// [`Refusal`], also where it has more than `limit` bytes.
pub fn read_private(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let file = open(path)?;
    private(&file.metadata()?)?;
    read_all(file, limit)
}

/// Checks the way to what an instance of `owner` has, as it does itself, and not what is at its end: nobody else but root
/// could put something else in that place.
///
/// # Errors
/// [`Refusal`].
pub fn examine_way(path: &Path, owner: u32) -> Result<(), Refusal> {
    let trusted = Trusted { owner, user: None };
    Way::new(trusted, path)?.up_to_last().map(drop)
}

/// Opens a file that nobody could have put there, or changed, but root and this user. The operator wrote the path: links
/// are followed, as [`Way`] says.
///
/// Every directory on the way must belong to one of these two and be closed to writing by others (a sticky one, such as
/// /tmp, is as good: what others put there is theirs, and refused).
pub(crate) fn open(path: &Path) -> Result<fs::File, Refusal> {
    Way::new(Trusted::me(None), path)?.file()
}

/// Opens a file with a secret of one job or user, see [`open`]: closed to everyone but its owner, and under no other name,
/// which could be that of another job or user. `user`, if there is one, is trusted as well: with what only concerns that
/// user.
///
/// Links are followed in the constant part of the template only, which the operator wrote; below it, a link could lead to
/// the file of another job.
pub(crate) fn open_private(user: Option<u32>, constant: &Path, path: &Path) -> Result<fs::File, Refusal> {
    // What precedes the last slash of the constant part is a directory in any case.
    let text = constant.as_os_str().as_bytes();
    let end = text.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    let base = Path::new(OsStr::from_bytes(&text[..end.max(1)]));
    let rest = path
        .strip_prefix(base)
        .map_err(|_| Refusal::Untrusted("it has no absolute path".to_owned()))?;
    let mut names = rest.components();
    let Some(Component::Normal(last)) = names.next_back() else {
        return Err(Refusal::Untrusted("not a regular file".to_owned()));
    };
    let mut at = Way::new(Trusted::me(user), base)?.directory()?;
    for component in names {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => at = at.directory(name)?,
            _ => return Err(Refusal::Untrusted("its path has `..`".to_owned())),
        }
    }
    let file = at.open(last)?;
    let meta = file.metadata()?;
    private(&meta)?;
    if meta.nlink() != 1 {
        return Err(Refusal::Untrusted(
            "it has more than one name (hard links): give each job a file of its own".to_owned(),
        ));
    }
    Ok(file)
}

/// Whom a path is trusted to, besides root.
#[derive(Clone, Copy)]
struct Trusted {
    owner: u32,
    /// A user who may own what is on the way as well, but lay no links on it.
    user: Option<u32>,
}

impl Trusted {
    /// Whoever this runs as, and `user`.
    fn me(user: Option<u32>) -> Self {
        let owner = nix::unistd::geteuid().as_raw();
        Self { owner, user }
    }

    /// Whose links are followed: with one, a user could choose among the files of root and the owner.
    fn with_links(self) -> Self {
        Self { user: None, ..self }
    }

    fn has(self, uid: u32) -> bool {
        uid == 0 || uid == self.owner || Some(uid) == self.user
    }

    fn directory(self, stat: &rustix::fs::Stat, path: &Path) -> Result<(), Refusal> {
        if !self.has(stat.st_uid) {
            return Err(Refusal::Untrusted(format!(
                "the directory {} belongs to uid {}, and must to uid {} or root: use chown",
                path.display(),
                stat.st_uid,
                self.owner
            )));
        }
        let sticky = stat.st_mode & 0o1000 != 0;
        if is_writable_by_others(stat) && !sticky {
            return Err(Refusal::Untrusted(format!(
                "others can write to the directory {}: use chmod go-w",
                path.display()
            )));
        }
        Ok(())
    }

    /// Checks a link in a directory with the status `holder`, which is trusted: in a sticky one, it may be of others.
    fn link(self, holder: &rustix::fs::Stat, stat: &rustix::fs::Stat, link: &Path) -> Result<(), Refusal> {
        if is_writable_by_others(holder) && !self.has(stat.st_uid) {
            return Err(Refusal::Untrusted(format!(
                "the symbolic link {} belongs to uid {}, and must to uid {} or root where others can write to its \
                 directory: name what it leads to",
                link.display(),
                stat.st_uid,
                self.owner
            )));
        }
        Ok(())
    }
}

fn is_writable_by_others(stat: &rustix::fs::Stat) -> bool {
    stat.st_mode & 0o022 != 0
}

/// A way that goes over links: where it has come to, and what is left of it.
///
/// The kernel, and `fs::canonicalize`, follow a link wherever it lies, and tell only where it led. Whoever owns the
/// directory that holds it chooses that, so each such directory is one on the way.
struct Way {
    at: Directory,
    /// The names that are left, the next one last.
    left: Vec<OsString>,
    /// The links that it went over.
    links: Vec<PathBuf>,
}

impl Way {
    /// As many as the kernel follows.
    const MAX_LINKS: usize = 40;

    fn new(trusted: Trusted, path: &Path) -> Result<Self, Refusal> {
        Ok(Self {
            at: Directory::root(trusted)?,
            left: names_from_last(&std::path::absolute(path)?),
            links: Vec::new(),
        })
    }

    /// The directory at its end.
    fn directory(mut self) -> Result<Directory, Refusal> {
        while let Some(name) = self.left.pop() {
            self.enter(&name)?;
        }
        Ok(self.at)
    }

    /// The file at its end.
    fn file(mut self) -> Result<fs::File, Refusal> {
        let Some(name) = self.up_to_last()? else {
            return Err(Refusal::Untrusted("not a regular file".to_owned()));
        };
        self.at.open(&name).map_err(|e| self.led(e))
    }

    /// Goes up to the directory that has what is at the end, and returns the name which that has there; `None` if it is
    /// this directory itself.
    fn up_to_last(&mut self) -> Result<Option<OsString>, Refusal> {
        while let Some(name) = self.left.pop() {
            if !self.left.is_empty() || name == PARENT {
                self.enter(&name)?;
                continue;
            }
            match self.at.link(&name).map_err(|e| self.led(e))? {
                Some(target) => self.follow(&name, &target)?,
                None => return Ok(Some(name)),
            }
        }
        Ok(None)
    }

    fn enter(&mut self, name: &OsStr) -> Result<(), Refusal> {
        let refusal = match self.at.enter(name) {
            Ok(directory) => {
                self.at = directory;
                return Ok(());
            }
            Err(refusal) => refusal,
        };
        if is_other_kind(&refusal)
            && let Some(target) = self.at.link(name).map_err(|e| self.led(e))?
        {
            return self.follow(name, &target);
        }
        Err(self.led(refusal))
    }

    fn follow(&mut self, name: &OsStr, target: &Path) -> Result<(), Refusal> {
        let link = self.at.path.join(name);
        if self.links.len() == Self::MAX_LINKS {
            return Err(Refusal::Untrusted(format!(
                "the symbolic link {} is one too many on the way, after {} others: name what is meant",
                link.display(),
                Self::MAX_LINKS
            )));
        }
        self.links.push(link);
        if target.is_absolute() {
            self.at = Directory::root(self.at.trusted)?;
        }
        self.left.extend(names_from_last(target));
        Ok(())
    }

    /// The same refusal with the link named that led there, which is not in the path of what is refused.
    fn led(&self, refusal: Refusal) -> Refusal {
        let Some(link) = self.links.last() else { return refusal };
        let text = format!("{refusal} (the symbolic link {} leads there)", link.display());
        match refusal {
            Refusal::Io(e) => Refusal::Io(io::Error::new(e.kind(), text)),
            Refusal::Untrusted(_) => Refusal::Untrusted(text),
        }
    }
}

const PARENT: &str = "..";

fn names_from_last(path: &Path) -> Vec<OsString> {
    path.components()
        .rev()
        .filter(|component| matches!(component, Component::Normal(_) | Component::ParentDir))
        .map(|component| component.as_os_str().to_owned())
        .collect()
}

/// A directory that is trusted, as [`open`] says, with all on the way to it.
pub(crate) struct Directory {
    trusted: Trusted,
    fd: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Opens one. Links to it are followed, as [`Way`] says.
    pub(crate) fn at(path: &Path) -> Result<Self, Refusal> {
        Way::new(Trusted::me(None), path)?.directory()
    }

    /// The same, which is created unless there is something already.
    pub(crate) fn make(path: &Path, mode: u32) -> Result<Self, Refusal> {
        let path = std::path::absolute(path)?;
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
            Self::at(parent)?.create_directory(name, mode)?;
        }
        Self::at(&path)
    }

    fn root(trusted: Trusted) -> Result<Self, Refusal> {
        let fd = rustix::fs::open("/", DIRECTORY, Mode::empty())?;
        Self::checked(trusted, fd, PathBuf::from("/"))
    }

    fn checked(trusted: Trusted, fd: OwnedFd, path: PathBuf) -> Result<Self, Refusal> {
        trusted.directory(&rustix::fs::fstat(&fd)?, &path)?;
        Ok(Self { trusted, fd, path })
    }

    /// A directory in it, or the one above it, not by a link.
    fn enter(&self, name: &OsStr) -> Result<Self, Refusal> {
        let path = if name == PARENT {
            self.path.parent().unwrap_or(&self.path).to_owned()
        } else {
            self.path.join(name)
        };
        let fd = rustix::fs::openat(&self.fd, name, DIRECTORY, Mode::empty())?;
        Self::checked(self.trusted, fd, path)
    }

    /// Where a link in it leads to. `None` for what is no link.
    fn link(&self, name: &OsStr) -> Result<Option<PathBuf>, Refusal> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let link = rustix::fs::openat(&self.fd, name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&link)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            return Ok(None);
        }
        let trusted = self.trusted.with_links();
        let holder = rustix::fs::fstat(&self.fd)?;
        trusted.directory(&holder, &self.path)?;
        trusted.link(&holder, &stat, &self.path.join(name))?;
        let target = rustix::fs::readlinkat(&link, "", Vec::new())?;
        Ok(Some(PathBuf::from(OsString::from_vec(target.into_bytes()))))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A directory in it, not by a link.
    pub(crate) fn directory(&self, name: &OsStr) -> Result<Self, Refusal> {
        self.enter(name).map_err(|e| no_link(e, &self.path.join(name)))
    }

    /// A file in it, not by a link, that nobody else could have put there or changed.
    pub(crate) fn open(&self, name: &OsStr) -> Result<fs::File, Refusal> {
        // Opening a FIFO would wait for a writer without NONBLOCK.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.fd, name, flags, Mode::empty());
        let file = fs::File::from(file.map_err(|e| no_link(e.into(), &self.path.join(name)))?);
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(Refusal::Untrusted("not a regular file".to_owned()));
        }
        if !self.trusted.has(meta.uid()) {
            return Err(Refusal::Untrusted(format!(
                "owned by uid {}, and must be by uid {} or root: use chown",
                meta.uid(),
                self.trusted.owner
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
        self.create_directory(name, mode)?;
        self.directory(name)
    }

    fn create_directory(&self, name: &OsStr, mode: u32) -> Result<(), Refusal> {
        match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(mode)) {
            Ok(()) => self.sync(),
            Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(e) => Err(e.into()),
        }
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

/// Whether something is no directory, or a link.
fn is_other_kind(refusal: &Refusal) -> bool {
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
        "{} is a symbolic link, or no directory: name the real one",
        path.display()
    ))
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
