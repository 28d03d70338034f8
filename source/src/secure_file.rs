//! Files with secrets, and others that the operator names: read only if nobody else could have put them there, see
//! [`secure_path`].

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Component, Path},
};

use secure_path::Owners;
pub use secure_path::{Refusal, read_private, read_public};
pub(crate) use secure_path::{check_private, read, read_all};

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
    check_private(&meta)?;
    if meta.nlink() != 1 {
        return Err(Refusal::Untrusted(
            "it has more than one name (hard links): give each job a file of its own".to_owned(),
        ));
    }
    Ok(file)
}
