//! Descriptors that a program inherits.

use std::{fs, io, os::fd::RawFd};

/// Closes all descriptors but standard input, output and error, and `keep`: whoever started this program may have left others
/// open. To be called while nothing in this program owns one.
///
/// # Errors
/// /proc/self/fd cannot be read.
pub fn close_inherited(keep: Option<RawFd>) -> io::Result<()> {
    let names = fs::read_dir("/proc/self/fd")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let open: Vec<RawFd> = names.filter_map(|name| name.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| *fd > 2 && Some(*fd) != keep) {
        // The one of the directory itself is closed already.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}
