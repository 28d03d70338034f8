// SPDX-License-Identifier: MIT OR Apache-2.0

//! A path that was checked, in a form that is cheap to check again.

use std::path::Path;

use rustix::fs::{Stat, stat};

use crate::refusal::Refusal;

/// The state of a path and of its parent directory at the time of the check.
#[derive(Debug, PartialEq, Eq)]
pub struct Checked([Identity; 2]);

/// Device, inode, mode, owner, and the time of the last change (`st_ctime`), because inodes are reused.
type Identity = (u64, u64, u32, u32, (i64, u64));

impl Checked {
    /// Call this before a check, so that a change during the check shows afterwards.
    pub(crate) fn now(path: &Path) -> Result<Self, Refusal> {
        let directory = path.parent().unwrap_or(path);
        Ok(Self([identity(&stat(path)?), identity(&stat(directory)?)]))
    }

    /// Returns whether neither the path nor its parent directory has changed. This takes two system calls. A
    /// change further up shows as soon as it matters: the path then leads to another file.
    pub fn still_holds(&self, path: &Path) -> bool {
        Self::now(path).is_ok_and(|now| now == *self)
    }
}

#[allow(clippy::unnecessary_cast, reason = "the types depend on the architecture")]
fn identity(stat: &Stat) -> Identity {
    let changed = (stat.st_ctime as i64, stat.st_ctime_nsec as u64);
    (
        stat.st_dev as u64,
        stat.st_ino as u64,
        stat.st_mode,
        stat.st_uid,
        changed,
    )
}
