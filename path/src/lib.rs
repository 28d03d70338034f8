//! Files, programs and sockets that can be trusted: only root and a few chosen users could have put them there, or
//! could change them.
//!
//! Every directory on the way is checked, and so is each directory that holds a symbolic link on the way, wherever the
//! link leads: its owner, or anybody who can write to it, chooses what is at the end. Whatever passes stays as it is
//! until one of these users changes it, so a later open(2), execve(2) or connect(2) of the same path reaches the same
//! thing. All calls may block as the file system does.
//!
//! A program that runs for others also closes the descriptors that it inherits.

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

/// Opens the regular file at the end of a path that the operator wrote. Links are followed.
///
/// # Errors
/// [`Refusal`].
pub fn open(path: &Path, owners: Owners) -> Result<fs::File, Refusal> {
    PathWalk::new(owners, path)?.file()
}

/// Opens a directory. Links are followed.
///
/// # Errors
/// [`Refusal`].
pub fn open_directory(path: &Path, owners: Owners) -> Result<Directory, Refusal> {
    PathWalk::new(owners, path)?.directory()
}

/// The same, and creates it unless something is there already.
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

/// Checks the way to `path`, but not the thing at its end: nobody else could put something else in that place.
///
/// # Errors
/// [`Refusal`].
pub fn check_way(path: &Path, owners: Owners) -> Result<(), Refusal> {
    PathWalk::new(owners, path)?.up_to_last().map(drop)
}

/// Checks a program and the way to it. The program's interpreter and libraries are its own business.
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

/// Finds a program as execvp(3) does: a name without a slash in the directories of the variable PATH. Checks the first that
/// exists, see [`check_program`], and returns its path.
///
/// # Errors
/// [`Refusal`]; an [`io::ErrorKind::NotFound`] if it exists nowhere.
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
        "it is in no directory of PATH",
    )))
}

/// Checks a Unix socket and the way to it. The mode is not checked: a service may let everybody connect.
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
