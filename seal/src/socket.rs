//! munged's socket. Whoever listens there is sent secrets in clear text, so nobody but root, this process's user, the
//! instance owner and munged's own user may have put it there.

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

/// The user that munged runs as, besides root and whoever runs this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MungeUser {
    /// By name, which is looked up once, where it matters.
    Name(String),
    /// By number.
    Uid(u32),
}

/// The one of its packages.
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
    /// Nobody answers there at the moment.
    Absent(io::Error),
    /// Somebody else could listen there, or does.
    Untrusted(String),
}

/// Checks the socket. Clones share what they have found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Guard {
    user: MungeUser,
    found: Arc<Mutex<Found>>,
}

#[derive(Debug, Default)]
struct Found {
    /// The uid of munged's user, if its name had to be looked up.
    uid: Option<u32>,
    /// The socket where one of these users was seen to listen. Another listener has another socket.
    listener: Option<Arc<Checked>>,
}

impl Guard {
    pub fn new(user: MungeUser) -> Self {
        Self {
            user,
            found: Arc::default(),
        }
    }

    /// Checks the socket and the way to it, before something is sent that is no secret. Blocks as the file system does,
    /// and as the name service if munged's user has to be looked up.
    pub fn check(&self, path: &Path, instance_owner: u32) -> Result<(), Refused> {
        self.way(path, Owners::process().and(instance_owner)).map(drop)
    }

    /// The same before a secret is sent, and checks who listens. munged logs that at its level Info, so it is done only
    /// if something has changed since the last time.
    pub fn check_listener(&self, path: &Path) -> Result<(), Refused> {
        // Not locked while the file system is asked, which may hang, and takes longer than all else.
        let last = self.found().listener.clone();
        if last.is_some_and(|checked| checked.still_holds(path)) {
            return Ok(());
        }
        let (checked, owners) = self.way(path, Owners::process())?;
        let uid = listener(path).map_err(|e| Refused::Absent(e.into()))?;
        if !owners.has(uid) {
            return Err(Refused::Untrusted(format!(
                "uid {uid} listens there, and must be {owners}: start munged as one of them, or set munge-user"
            )));
        }
        self.found().listener = Some(Arc::new(checked));
        Ok(())
    }

    /// Who may own it, with munged's user.
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

/// The user who listens at a socket, as the kernel says (SO_PEERCRED, unix(7)). Does not wait for munged.
fn listener(path: &Path) -> Result<u32, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket_peercred(&socket)?.uid.as_raw())
}
