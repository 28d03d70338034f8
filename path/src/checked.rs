//! A path that was checked, to be checked again at little cost.

use std::path::Path;

use rustix::fs::{Stat, stat};

use crate::refusal::Refusal;

/// The state of a path, and of the directory above, when it was checked.
#[derive(Debug, PartialEq, Eq)]
pub struct Checked([Identity; 2]);

/// Device, inode, mode, owner; and when these last changed (`st_ctime`), since inodes are reused.
type Identity = (u64, u64, u32, u32, (i64, u64));

impl Checked {
    /// To be called before a check, so that a change meanwhile is one afterwards.
    pub(crate) fn now(path: &Path) -> Result<Self, Refusal> {
        let directory = path.parent().unwrap_or(path);
        Ok(Self([identity(&stat(path)?), identity(&stat(directory)?)]))
    }

    /// Returns whether nothing has been replaced, and nothing else been put there. That takes two system calls. A
    /// change further up shows as soon as it makes a difference: the path then leads to another thing.
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
