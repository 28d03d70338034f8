// SPDX-License-Identifier: MIT OR Apache-2.0

//! Finds out which files, programs and sockets can be trusted: those that only root and a few chosen users can create
//! or change.
//!
//! Every directory in a path is checked. If the path contains a symbolic link, so is the directory that holds the link,
//! wherever the link points: its owner, and anybody who can write to it, chooses the target. A path that passes stays
//! unchanged until one of these users changes it, so a later open(2), execve(2) or connect(2) of the same path reaches
//! the same file. All calls may block on the file system.
//!
//! The crate also closes inherited descriptors, for programs that run on behalf of others.

#![forbid(unsafe_code)]

mod checked;
mod descriptors;
mod directory;
mod mount;
mod owners;
mod private;
mod read;
mod refusal;
mod way;

use std::{
    env,
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::fs::{FileType, Stat};

pub use checked::Checked;
pub use descriptors::close_inherited;
pub use directory::Directory;
pub use owners::Owners;
pub use private::private_directory;
pub use read::{check_private, read, read_all, read_private, read_public};
pub use refusal::Refusal;
use way::PathWalk;

/// Opens the regular file at the end of a path that the operator configured. Follows links.
///
/// # Errors
/// [`Refusal`].
pub fn open(path: &Path, owners: Owners) -> Result<fs::File, Refusal> {
    PathWalk::new(owners, path)?.file()
}

/// Opens a directory. Follows links.
///
/// # Errors
/// [`Refusal`].
pub fn open_directory(path: &Path, owners: Owners) -> Result<Directory, Refusal> {
    PathWalk::new(owners, path)?.directory()
}

/// Like [`open_directory`], but creates the directory unless the path exists.
///
/// # Errors
/// [`Refusal`].
pub fn make_directory(path: &Path, mode: u32, owners: Owners) -> Result<Directory, Refusal> {
    let path = std::path::absolute(path)?;
    if let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
        open_directory(parent, owners)?.create_directory(name, mode)?;
    }
    open_directory(&path, owners)
}

/// Checks the path of a file, but not the file itself: no other user could put another file in its place.
///
/// # Errors
/// [`Refusal`].
pub fn check_way(path: &Path, owners: Owners) -> Result<(), Refusal> {
    PathWalk::new(owners, path)?.up_to_last().map(drop)
}

/// Checks a program and its path, but not the program's interpreter and libraries.
///
/// # Errors
/// [`Refusal`].
pub fn check_program(path: &Path, owners: Owners) -> Result<(), Refusal> {
    let stat = end_of(path, owners)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Refusal::Untrusted("not a regular file".to_owned()));
    }
    owners.check_owner(&stat)?;
    if stat.st_mode & 0o022 != 0 {
        return Err(Refusal::Untrusted(format!(
            "mode {:04o} lets others write to it: use chmod go-w",
            stat.st_mode & 0o7777
        )));
    }
    if stat.st_mode & 0o111 == 0 {
        return Err(Refusal::Io(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it is not executable",
        )));
    }
    Ok(())
}

/// Finds a program as execvp(3) does: looks up a name without a slash in the directories of the variable PATH. Checks
/// the first that exists, see [`check_program`], and returns its path.
///
/// # Errors
/// [`Refusal`]; [`io::ErrorKind::NotFound`] if no directory contains it.
pub fn find_program(name: &Path, owners: Owners) -> Result<PathBuf, Refusal> {
    find_program_in(&env::var_os("PATH").unwrap_or_default(), name, owners)
}

fn find_program_in(directories: &OsStr, name: &Path, owners: Owners) -> Result<PathBuf, Refusal> {
    if name.as_os_str().as_bytes().contains(&b'/') {
        return check_program(name, owners).map(|()| name.to_owned());
    }
    for directory in env::split_paths(directories).filter(|directory| directory.is_absolute()) {
        let path = directory.join(name);
        if fs::metadata(&path).is_ok_and(|meta| meta.is_file()) {
            return check_program(&path, owners).map(|()| path);
        }
    }
    Err(Refusal::Io(io::Error::new(
        io::ErrorKind::NotFound,
        "no directory of PATH contains it",
    )))
}

/// Checks a Unix socket and its path, but not the socket's mode: a service may let everybody connect.
///
/// # Errors
/// [`Refusal`].
pub fn check_socket(path: &Path, owners: Owners) -> Result<Checked, Refusal> {
    let checked = Checked::now(path)?;
    let stat = end_of(path, owners)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(Refusal::Untrusted("not a socket".to_owned()));
    }
    owners.check_owner(&stat)?;
    Ok(checked)
}

fn end_of(path: &Path, owners: Owners) -> Result<Stat, Refusal> {
    PathWalk::new(owners, path)?.status()
}
