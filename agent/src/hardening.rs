// SPDX-License-Identifier: MIT OR Apache-2.0

//! Hardens the process: no core dumps, no ptrace, bounded memory, no inherited descriptors.

use std::os::{fd::AsRawFd, unix::net::UnixListener};

use nix::{
    sys::{
        prctl::set_dumpable,
        resource::{Resource, getrlimit, setrlimit},
        stat::{Mode, umask},
    },
    unistd::chdir,
};

/// The most memory that the process may allocate, in bytes: RLIMIT_DATA, getrlimit(2). An agent that exceeds it ends,
/// and plugins or systemd start another one.
const MEMORY: u64 = 4 << 30;

/// Hardens the process before it holds a secret: no core dumps, no ptrace by other processes of the same user, limited
/// memory, no inherited descriptor except `listener`, and the highest limit of descriptors, since each command takes
/// two. The caller must run only one thread.
///
/// # Errors
/// The step that failed.
pub fn harden(listener: Option<&UnixListener>) -> Result<(), String> {
    let failed = |what: &str, e: nix::Error| format!("{what}: {e}");
    secure_path::close_inherited(listener.map(AsRawFd::as_raw_fd)).map_err(|e| format!("/proc/self/fd: {e}"))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|e| failed("core dumps cannot be disabled", e))?;
    set_dumpable(false).map_err(|e| failed("the process cannot be made undumpable", e))?;
    let (_, most) = getrlimit(Resource::RLIMIT_DATA).map_err(|e| failed("RLIMIT_DATA", e))?;
    let memory = MEMORY.min(most);
    setrlimit(Resource::RLIMIT_DATA, memory, memory).map_err(|e| failed("memory cannot be bounded", e))?;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|e| failed("RLIMIT_NOFILE", e))?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
        .map_err(|e| failed("the limit of descriptors cannot be raised", e))?;
    umask(Mode::from_bits_truncate(0o077));
    chdir("/").map_err(|e| failed("/", e))
}

/// Makes panics report only their place in the code: the message of a panic may quote anything.
pub fn report_panics_by_place() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        eprintln!("workflow-token-agent: an internal error at {place}: please report it");
    }));
}
