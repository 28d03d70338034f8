// SPDX-License-Identifier: MIT OR Apache-2.0

//! Directories for files that only this user writes.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::Path,
};

use nix::unistd::geteuid;

/// Creates a directory with mode 0700 if it is missing, and checks that no other user can write to
/// it.
///
/// # Errors
/// From mkdir(2). The directory belongs to another user, or others can write to it.
pub fn private_directory(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let meta = fs::symlink_metadata(path)?;
    let uid = geteuid().as_raw();
    if !meta.is_dir() || meta.uid() != uid || meta.mode() & 0o022 != 0 {
        let what = format!("it must be a directory that belongs to uid {uid} and that nobody else can write to");
        return Err(io::Error::other(what));
    }
    Ok(())
}
