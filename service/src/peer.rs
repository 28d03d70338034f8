//! The peer of a connection.

/// The peer of a connection.
#[derive(Debug, Clone, Copy)]
pub enum Peer {
    /// A program that is reached by TCP: whoever it is, also on this machine.
    Tcp,
    /// A local user, as the kernel says (`SO_PEERCRED`, unix(7)).
    Unix(u32),
}

impl Peer {
    /// Returns the uid of a local user.
    pub fn uid(self) -> Option<u32> {
        match self {
            Self::Tcp => None,
            Self::Unix(uid) => Some(uid),
        }
    }
}
