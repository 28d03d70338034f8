// SPDX-License-Identifier: MIT OR Apache-2.0

//! Descriptors that a program inherits.

use std::{fs, io, os::fd::RawFd};

/// Closes all descriptors except standard input, output and error, and `keep`, because the parent process may have left
/// others open. Call it while nothing in this program owns a descriptor.
///
/// # Errors
/// /proc/self/fd cannot be read.
pub fn close_inherited(keep: Option<RawFd>) -> io::Result<()> {
    let names = fs::read_dir("/proc/self/fd")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let open: Vec<RawFd> = names.filter_map(|name| name.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| *fd > 2 && Some(*fd) != keep) {
        // The descriptor of the directory itself is closed already.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}
