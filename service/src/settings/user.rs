// SPDX-License-Identifier: MIT OR Apache-2.0

//! User names in the file.

use nix::unistd::User;
use serde::Deserialize;

/// A user, by name or uid.
#[derive(Deserialize)]
#[serde(untagged, expecting = "must be the name of a user or a uid")]
pub(super) enum UserName {
    Uid(u32),
    Name(String),
}

impl UserName {
    /// Returns the uid. May block in the name service.
    pub fn uid(&self) -> Result<u32, String> {
        let name = match self {
            Self::Uid(uid) => return Ok(*uid),
            Self::Name(name) => name,
        };
        match User::from_name(name) {
            Ok(Some(user)) => Ok(user.uid.as_raw()),
            Ok(None) => Err(format!("`{}`: no such user on this machine", name.escape_debug())),
            Err(e) => Err(format!("`{}`: {e}", name.escape_debug())),
        }
    }
}
