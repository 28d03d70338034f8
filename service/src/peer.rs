// SPDX-License-Identifier: MIT OR Apache-2.0

//! The peer of a connection.

/// The peer of a connection.
#[derive(Debug, Clone, Copy)]
pub enum Peer {
    /// An unknown program that connected by TCP, possibly on this machine.
    Tcp,
    /// A local user, as reported by the kernel (`SO_PEERCRED`, unix(7)).
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
