//! Files with secrets, and others that the operator names: read only if nobody else could have put them there, see
//! [`secure_path`].

use std::{
    ffi::OsStr,
    fs,
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Component, Path},
};

use secure_path::Owners;
use zeroize::Zeroizing;

pub use secure_path::Refusal;

/// Reads a file whose path the operator wrote, and which nobody else could have put there or changed.
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

/// Opens a file that nobody could have put there, or changed, but root and this user.
pub(crate) fn open(path: &Path) -> Result<fs::File, Refusal> {
    secure_path::open(path, Owners::process())
}

/// Opens a file with a secret of one job or user, see [`secure_path::open`]: closed to everyone but its owner, and
/// under no other name, which could be that of another job or user. `user`, if there is one, is trusted as well: with
/// what only concerns that user.
///
/// Links are followed in the constant part of the template only, which the operator wrote; below it, a link could lead
/// to the file of another job.
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
    let mut at = secure_path::open_directory(base, Owners::process().and_user(user))?;
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

/// Checks that only its owner can read a file that [`secure_path::open`] has opened.
pub(crate) fn private(meta: &fs::Metadata) -> Result<(), Refusal> {
    if meta.mode() & 0o077 != 0 {
        return Err(Refusal::Untrusted(format!(
            "mode {:04o} lets others than its owner in: use chmod 0600",
            meta.mode() & 0o7777
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
