// SPDX-License-Identifier: MIT OR Apache-2.0

//! The users who may own a path.

use std::{fmt, path::Path};

use rustix::fs::Stat;

use crate::refusal::Refusal;

/// The users who may own a file and each directory in its path. Root always may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owners {
    owner: u32,
    others: [Option<u32>; 2],
    user: Option<u32>,
}

impl Owners {
    /// Returns the user of this process.
    pub fn process() -> Self {
        Self::of(rustix::process::geteuid().as_raw())
    }

    /// Returns a single user.
    pub fn of(owner: u32) -> Self {
        Self {
            owner,
            others: [None; 2],
            user: None,
        }
    }

    /// Adds a user. The set holds three; a further user replaces the last.
    #[must_use]
    pub fn and(mut self, uid: u32) -> Self {
        if !self.has(uid) {
            let free = self.others.iter().position(Option::is_none).unwrap_or(1);
            self.others[free] = Some(uid);
        }
        self
    }

    /// Adds a user whose own links are not followed: with them, that user could choose among the files of the other
    /// owners.
    #[must_use]
    pub fn and_user(self, user: Option<u32>) -> Self {
        Self { user, ..self }
    }

    /// Returns whether the set contains this user.
    pub fn has(&self, uid: u32) -> bool {
        uid == 0 || uid == self.owner || self.others.contains(&Some(uid)) || Some(uid) == self.user
    }

    pub(crate) fn check_directory(&self, stat: &Stat, path: &Path) -> Result<(), Refusal> {
        if !self.has(stat.st_uid) {
            return Err(Refusal::Untrusted(format!(
                "the directory {} belongs to uid {} and must belong to {self}: use chown",
                path.display(),
                stat.st_uid
            )));
        }
        let sticky = stat.st_mode & 0o1000 != 0;
        if is_writable_by_others(stat) && !sticky {
            return Err(Refusal::Untrusted(format!(
                "others can write to the directory {}: use chmod go-w",
                path.display()
            )));
        }
        Ok(())
    }

    /// Checks a link in a trusted directory with the status `holder`. In a sticky directory, the link may belong to
    /// others.
    pub(crate) fn check_link(&self, holder: &Stat, stat: &Stat, link: &Path) -> Result<(), Refusal> {
        if is_writable_by_others(holder) && !self.has(stat.st_uid) {
            return Err(Refusal::Untrusted(format!(
                "the symbolic link {} belongs to uid {} and must belong to {self}, because others can write to its \
                 directory: use the path of its target",
                link.display(),
                stat.st_uid
            )));
        }
        Ok(())
    }

    pub(crate) fn check_owner(&self, stat: &Stat) -> Result<(), Refusal> {
        if self.has(stat.st_uid) {
            return Ok(());
        }
        Err(Refusal::Untrusted(format!(
            "owned by uid {} and must be owned by {self}: use chown",
            stat.st_uid
        )))
    }
}

/// Formats the users for messages.
impl fmt::Display for Owners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid {}", self.owner)?;
        for uid in self.others.iter().flatten() {
            write!(f, ", uid {uid}")?;
        }
        f.write_str(" or root")
    }
}

pub(crate) fn is_writable_by_others(stat: &Stat) -> bool {
    stat.st_mode & 0o022 != 0
}
