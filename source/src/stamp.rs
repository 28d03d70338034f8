// SPDX-License-Identifier: MIT OR Apache-2.0

//! Files that are read again when they change.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The fingerprint of a file at one time.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    path: PathBuf,
    state: Option<[i64; 6]>,
}

impl Stamp {
    /// Returns the current stamp. Blocks.
    pub fn of(path: &Path) -> Self {
        // Links are followed, because in a pod, only the link to the directory of the files changes.
        let state = fs::metadata(path).ok().map(|meta| {
            [
                i64::from_ne_bytes(meta.ino().to_ne_bytes()),
                i64::from_ne_bytes(meta.len().to_ne_bytes()),
                meta.mtime(),
                meta.mtime_nsec(),
                meta.ctime(),
                meta.ctime_nsec(),
            ]
        });
        Self {
            path: path.to_owned(),
            state,
        }
    }

    /// Returns whether the file has changed.
    pub fn is_stale(&self) -> bool {
        *self != Self::of(&self.path)
    }
}
