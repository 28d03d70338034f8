// SPDX-License-Identifier: MIT OR Apache-2.0

//! Walks a path and follows its links.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    path::{Component, Path, PathBuf},
};

use rustix::fs::Stat;

use crate::{
    directory::{Directory, PARENT, is_other_kind},
    owners::Owners,
    refusal::Refusal,
};

/// A walk along a path: the current directory, and the names that remain.
///
/// The kernel and `fs::canonicalize` follow links in any directory and report only the final target. The owner of the
/// directory that holds a link chooses the target, so this walk checks each such directory.
pub(crate) struct PathWalk {
    at: Directory,
    /// The remaining names, in reverse order.
    left: Vec<OsString>,
    /// The links followed so far.
    links: Vec<PathBuf>,
}

impl PathWalk {
    /// The kernel's limit.
    const MAX_LINKS: usize = 40;

    pub(crate) fn new(owners: Owners, path: &Path) -> Result<Self, Refusal> {
        Ok(Self {
            at: Directory::root(owners)?,
            left: names_from_last(&std::path::absolute(path)?),
            links: Vec::new(),
        })
    }

    /// Returns the directory at the end of the path.
    pub(crate) fn directory(mut self) -> Result<Directory, Refusal> {
        while let Some(name) = self.left.pop() {
            self.enter(&name)?;
        }
        Ok(self.at)
    }

    /// Opens the file at the end of the path.
    pub(crate) fn file(mut self) -> Result<fs::File, Refusal> {
        let Some(name) = self.up_to_last()? else {
            return Err(Refusal::Untrusted("not a regular file".to_owned()));
        };
        self.at.open(&name).map_err(|e| self.add_link(e))
    }

    /// Returns the status of the file at the end of the path.
    pub(crate) fn status(mut self) -> Result<Stat, Refusal> {
        match self.up_to_last()? {
            Some(name) => self.at.status(&name).map_err(|e| self.add_link(e)),
            None => Ok(self.at.own_status()?),
        }
    }

    /// Walks to the directory that contains the last component, and returns the component's name there. Returns `None`
    /// if the path ends at that directory itself.
    pub(crate) fn up_to_last(&mut self) -> Result<Option<OsString>, Refusal> {
        while let Some(name) = self.left.pop() {
            if !self.left.is_empty() || name == PARENT {
                self.enter(&name)?;
                continue;
            }
            match self.at.link(&name).map_err(|e| self.add_link(e))? {
                Some(target) => self.follow(&name, &target)?,
                None => return Ok(Some(name)),
            }
        }
        Ok(None)
    }

    fn enter(&mut self, name: &OsStr) -> Result<(), Refusal> {
        let refusal = match self.at.enter(name) {
            Ok(directory) => {
                self.at = directory;
                return Ok(());
            }
            Err(refusal) => refusal,
        };
        if is_other_kind(&refusal)
            && let Some(target) = self.at.link(name).map_err(|e| self.add_link(e))?
        {
            return self.follow(name, &target);
        }
        Err(self.add_link(refusal))
    }

    fn follow(&mut self, name: &OsStr, target: &Path) -> Result<(), Refusal> {
        let link = self.at.path().join(name);
        if self.links.len() == Self::MAX_LINKS {
            return Err(Refusal::Untrusted(format!(
                "the symbolic link {} follows {} others, which is the limit: use the path of the target",
                link.display(),
                Self::MAX_LINKS
            )));
        }
        self.links.push(link);
        if target.is_absolute() {
            self.at = Directory::root(self.at.owners())?;
        }
        self.left.extend(names_from_last(target));
        Ok(())
    }

    /// Adds to the error the link that led to the path, because the path in the error does not contain it.
    fn add_link(&self, refusal: Refusal) -> Refusal {
        let Some(link) = self.links.last() else { return refusal };
        let text = format!("{refusal} (the symbolic link {} leads there)", link.display());
        match refusal {
            Refusal::Io(e) => Refusal::Io(io::Error::new(e.kind(), text)),
            Refusal::Untrusted(_) => Refusal::Untrusted(text),
        }
    }
}

fn names_from_last(path: &Path) -> Vec<OsString> {
    path.components()
        .rev()
        .filter(|component| matches!(component, Component::Normal(_) | Component::ParentDir))
        .map(|component| component.as_os_str().to_owned())
        .collect()
}
