// SPDX-License-Identifier: MIT OR Apache-2.0

//! The socket of the agent. Only one agent serves it at a time.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::{
        fs::{OpenOptionsExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use listenfd::ListenFd;
use nix::{
    fcntl::{Flock, FlockArg},
    sys::stat::Mode,
};

/// The time for which an agent waits until its predecessor ends.
const PREDECESSOR: Duration = Duration::from_secs(5);

/// The pause between two attempts to take the lock.
const PAUSE: Duration = Duration::from_millis(20);

/// A socket that this agent serves.
pub struct Listening {
    socket: UnixListener,
    bound: Option<Bound>,
}

/// The files of a socket that this agent bound.
pub struct Bound {
    path: PathBuf,
    _lock: Flock<File>,
}

/// Returns the socket that systemd passed (sd_listen_fds(3)), if any.
///
/// # Errors
/// The descriptor is not a listening Unix socket.
pub fn passed_by_systemd() -> Result<Option<UnixListener>, String> {
    let mut passed = ListenFd::from_env();
    passed
        .take_unix_listener(0)
        .map_err(|e| format!("the socket that systemd passed: {e}"))
}

impl Listening {
    /// Wraps the socket that systemd passed.
    pub fn of_systemd(socket: UnixListener) -> Self {
        Self { socket, bound: None }
    }

    /// Returns whether systemd passed the socket.
    pub fn is_of_systemd(&self) -> bool {
        self.bound.is_none()
    }

    /// Binds a path; none if another agent serves it. Only the owner can connect to the socket.
    ///
    /// # Errors
    /// The path and the error.
    pub fn bind(path: &Path) -> Result<Option<Self>, String> {
        Self::bind_by(path, |path| {
            let before = nix::sys::stat::umask(Mode::from_bits_truncate(0o177));
            let socket = UnixListener::bind(path);
            nix::sys::stat::umask(before);
            socket
        })
    }

    /// Binds a path like [`Self::bind`], for all users. The caller must check the peer of each connection.
    ///
    /// # Errors
    /// For the operator: the path, and the error.
    pub fn bind_for_all(path: &Path) -> Result<Option<Self>, String> {
        Self::bind_by(path, |path| {
            let socket = UnixListener::bind(path)?;
            fs::set_permissions(path, Permissions::from_mode(0o666))?;
            Ok(socket)
        })
    }

    fn bind_by(path: &Path, bind: impl FnOnce(&Path) -> io::Result<UnixListener>) -> Result<Option<Self>, String> {
        let failed = |e: io::Error| format!("{}: {e}", path.display());
        let Some(lock) = lock(path)? else { return Ok(None) };
        // This process holds the lock, so the agent that bound the former socket has ended.
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        let socket = bind(path);
        let bound = Bound {
            path: path.to_owned(),
            _lock: lock,
        };
        Ok(Some(Self {
            socket: socket.map_err(failed)?,
            bound: Some(bound),
        }))
    }

    /// Returns the socket, and the guard that must live as long as the socket is served.
    pub fn into_parts(self) -> (UnixListener, Option<Bound>) {
        (self.socket, self.bound)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // The lock is still held, so the path is that of this socket.
        let _ = fs::remove_file(&self.path);
    }
}

/// Takes the lock of a socket; none if another agent serves it.
fn lock(path: &Path) -> Result<Option<Flock<File>>, String> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let failed = |e: io::Error| format!("{}: {e}", name.display());
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    let until = Instant::now() + PREDECESSOR;
    loop {
        let file = options.open(&name).map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((_, nix::Error::EWOULDBLOCK)) if Instant::now() < until => {
                if UnixStream::connect(path).is_ok() {
                    return Ok(None);
                }
                thread::sleep(PAUSE);
            }
            Err((_, nix::Error::EWOULDBLOCK)) => {
                return Err(format!(
                    "{}: another agent holds it and does not answer",
                    name.display()
                ));
            }
            Err((_, e)) => return Err(failed(e.into())),
        }
    }
}
