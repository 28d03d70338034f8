// SPDX-License-Identifier: MIT OR Apache-2.0

//! Lines for the operator, in the system log of the node (syslog(3), RFC 3164). slurmstepd provides no log for its
//! children.

use std::{os::unix::net::UnixDatagram, process};

/// The socket of the system log.
const SOCKET: &str = "/dev/log";

/// The facility daemon (3) with the severity error (3).
const PRIORITY: u8 = 3 << 3 | 3;

/// Logs a line. If there is no system log, the line is lost.
pub fn log(line: &str) {
    let Ok(socket) = UnixDatagram::unbound() else { return };
    // A full log must not block the renewal.
    let _ = socket.set_nonblocking(true);
    let line = line.escape_debug();
    let line = format!("<{PRIORITY}>workflow-token-slurmstepd[{}]: {line}", process::id());
    let _ = socket.send_to(line.as_bytes(), SOCKET);
}
