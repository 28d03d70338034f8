// SPDX-License-Identifier: MIT OR Apache-2.0

//! Timeouts for calls that may block forever.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// How long this command waits for any program or daemon.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// Runs `call` in a separate thread, and returns `None` after [`TIMEOUT`]. The thread ends with the process.
pub fn timeout<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, wait) = mpsc::channel();
    thread::spawn(move || done.send(call()));
    wait.recv_timeout(TIMEOUT).ok()
}
