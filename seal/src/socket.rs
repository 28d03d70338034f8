// SPDX-License-Identifier: MIT OR Apache-2.0

//! munged's socket. Its listener receives secrets in clear text, so only root, this process's user, the instance owner
//! and munged's own user may have created it.

use std::{
    fmt, io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::unistd::User;
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt::socket_peercred},
};
use secure_path::{Checked, Owners, Refusal, check_socket};

/// The user that munged runs as, besides root and the user of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MungeUser {
    /// A name, looked up once, and only when needed.
    Name(String),
    /// A uid.
    Uid(u32),
}

/// The default of munge's packages.
impl Default for MungeUser {
    fn default() -> Self {
        Self::Name("munge".to_owned())
    }
}

impl fmt::Display for MungeUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "{}", name.escape_debug()),
            Self::Uid(uid) => write!(f, "uid {uid}"),
        }
    }
}

/// The reason why a socket must not be used.
pub(crate) enum Refused {
    /// No process listens there at the moment.
    Absent(io::Error),
    /// Another user could listen there, or does.
    Untrusted(String),
}

/// Checks the socket. Clones share their findings.
#[derive(Debug, Clone, Default)]
pub(crate) struct Guard {
    user: MungeUser,
    found: Arc<Mutex<Found>>,
}

#[derive(Debug, Default)]
struct Found {
    /// The uid of munged's user, if its name was looked up.
    uid: Option<u32>,
    /// The socket where one of these users was found to listen. Another listener has another socket.
    listener: Option<Arc<Checked>>,
}

impl Guard {
    pub fn new(user: MungeUser) -> Self {
        Self {
            user,
            found: Arc::default(),
        }
    }

    /// Checks the socket and its path before sending data that is not secret. Blocks on the file system, and on the
    /// name service if munged's user must be looked up.
    pub fn check(&self, path: &Path, instance_owner: u32) -> Result<(), Refused> {
        self.way(path, Owners::process().and(instance_owner)).map(drop)
    }

    /// Like [`Guard::check`], before sending a secret, and checks the user that listens. munged logs each connection at
    /// its level Info, so this connects only if the socket has changed since the last check.
    pub fn check_listener(&self, path: &Path) -> Result<(), Refused> {
        // The file system may hang and takes longer than everything else, so the lock is not held meanwhile.
        let last = self.found().listener.clone();
        if last.is_some_and(|checked| checked.still_holds(path)) {
            return Ok(());
        }
        let (checked, owners) = self.way(path, Owners::process())?;
        let uid = listener(path).map_err(|e| Refused::Absent(e.into()))?;
        if !owners.has(uid) {
            return Err(Refused::Untrusted(format!(
                "uid {uid} listens there, but it must be {owners}: start munged as one of them, or set munge-user"
            )));
        }
        self.found().listener = Some(Arc::new(checked));
        Ok(())
    }

    /// Returns the checked socket, and its permitted owners including munged's user.
    fn way(&self, path: &Path, owners: Owners) -> Result<(Checked, Owners), Refused> {
        let known = match self.user {
            MungeUser::Uid(uid) => Some(uid),
            MungeUser::Name(_) => self.found().uid,
        };
        let mut owners = known.map_or(owners, |uid| owners.and(uid));
        let mut checked = check_socket(path, owners);
        if let (Err(Refusal::Untrusted(_)), None, MungeUser::Name(name)) = (&checked, known, &self.user)
            && let Ok(Some(user)) = User::from_name(name)
        {
            let uid = user.uid.as_raw();
            self.found().uid = Some(uid);
            owners = owners.and(uid);
            checked = check_socket(path, owners);
        }
        match checked {
            Ok(checked) => Ok((checked, owners)),
            Err(Refusal::Io(e)) => Err(Refused::Absent(e)),
            Err(Refusal::Untrusted(why)) => Err(Refused::Untrusted(format!(
                "{why}; or set munge-user to the user that munged runs as (it is {} now)",
                self.user
            ))),
        }
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the user that listens at a socket, as reported by the kernel (SO_PEERCRED, unix(7)). Does not wait for
/// munged.
fn listener(path: &Path) -> Result<u32, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket_peercred(&socket)?.uid.as_raw())
}
