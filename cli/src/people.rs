//! Users as people know them.

use nix::unistd::{Uid, User};

/// The name of a user, where it has one.
pub fn name(uid: u32) -> Option<String> {
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name)
}

/// `alice (uid 1000)`, or `uid 1000`.
pub fn describe(uid: u32) -> String {
    match name(uid) {
        Some(name) => format!("{name} (uid {uid})"),
        None => format!("uid {uid}"),
    }
}

/// Who runs this.
pub fn me() -> u32 {
    nix::unistd::geteuid().as_raw()
}
