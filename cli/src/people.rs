// SPDX-License-Identifier: MIT OR Apache-2.0

//! Names of users.

use nix::unistd::{Uid, User};

/// Returns the name of a user, or `None`.
pub fn name(uid: u32) -> Option<String> {
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name)
}

/// Returns `alice (uid 1000)`, or `uid 1000`.
pub fn describe(uid: u32) -> String {
    match name(uid) {
        Some(name) => format!("{name} (uid {uid})"),
        None => format!("uid {uid}"),
    }
}

/// Returns the uid of the caller.
pub fn me() -> u32 {
    nix::unistd::geteuid().as_raw()
}
