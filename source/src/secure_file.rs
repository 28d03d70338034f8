// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reads files with secrets and other files that the operator names, if nobody else can have changed them, see
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

/// Opens a file that only root and this user can have created or changed.
pub(crate) fn open(path: &Path) -> Result<fs::File, Refusal> {
    secure_path::open(path, Owners::process())
}

/// Opens a file with a secret of one job or user, see [`secure_path::open`]. Only its owner may read it, and it must
/// have no other hard link, which could be the file of another job or user. `user` is trusted as well, if set, because
/// the secret concerns only that user.
///
/// Symbolic links are followed only in the constant part of the template, which the operator wrote. Below it, a link
/// could lead to the file of another job.
pub(crate) fn open_private(user: Option<u32>, constant: &Path, path: &Path) -> Result<fs::File, Refusal> {
    // The part before the last slash is always a directory.
    let text = constant.as_os_str().as_bytes();
    let end = text.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    let base = Path::new(OsStr::from_bytes(&text[..end.max(1)]));
    let rest = path
        .strip_prefix(base)
        .map_err(|_| Refusal::Untrusted("its path is not absolute".to_owned()))?;
    let mut names = rest.components();
    let Some(Component::Normal(last)) = names.next_back() else {
        return Err(Refusal::Untrusted("not a regular file".to_owned()));
    };
    let mut at = secure_path::open_directory(base, Owners::process().and_user(user))?;
    for component in names {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => at = at.directory(name)?,
            _ => return Err(Refusal::Untrusted("its path contains `..`".to_owned())),
        }
    }
    let file = at.open(last)?;
    let meta = file.metadata()?;
    check_private(&meta)?;
    if meta.nlink() != 1 {
        return Err(Refusal::Untrusted(
            "it has several names (hard links): give each job its own file".to_owned(),
        ));
    }
    Ok(file)
}
