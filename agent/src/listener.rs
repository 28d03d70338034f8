//! The socket, which one agent at a time serves.

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

/// The time that an agent waits for its predecessor to end.
const PREDECESSOR: Duration = Duration::from_secs(5);

/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// A socket that this agent serves.
pub struct Listening {
    socket: UnixListener,
    bound: Option<Bound>,
}

/// The files of a socket that this agent has bound.
pub struct Bound {
    path: PathBuf,
    _lock: Flock<File>,
}

/// Returns the socket that systemd passed, sd_listen_fds(3), if it did.
///
/// # Errors
/// It is no listening Unix socket.
pub fn passed_by_systemd() -> Result<Option<UnixListener>, String> {
    let mut passed = ListenFd::from_env();
    passed
        .take_unix_listener(0)
        .map_err(|e| format!("the socket that systemd passed: {e}"))
}

impl Listening {
    /// The socket that systemd passed.
    pub fn of_systemd(socket: UnixListener) -> Self {
        Self { socket, bound: None }
    }

    /// Returns whether systemd passed it.
    pub fn is_of_systemd(&self) -> bool {
        self.bound.is_none()
    }

    /// Binds a path; none if another agent serves it. The socket is for its owner only.
    ///
    /// # Errors
    /// What failed.
    pub fn bind(path: &Path) -> Result<Option<Self>, String> {
        Self::bind_by(path, |path| {
            let before = nix::sys::stat::umask(Mode::from_bits_truncate(0o177));
            let socket = UnixListener::bind(path);
            nix::sys::stat::umask(before);
            socket
        })
    }

    /// Binds a path in the same way. Anybody can connect to the socket; the caller checks who does.
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
        // It was that of an agent that is gone, or nobody could have taken the lock.
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

    /// Returns the socket, and what must be kept with it.
    pub fn into_parts(self) -> (UnixListener, Option<Bound>) {
        (self.socket, self.bound)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // The lock is still held, so it is the one that was bound.
        let _ = fs::remove_file(&self.path);
    }
}

/// Takes the lock of a socket; none if an agent serves it.
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
