//! The way to something, over links.

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

/// A way that goes over links: where it has come to, and what is left of it.
///
/// The kernel, and `fs::canonicalize`, follow a link wherever it lies, and tell only where it led. Whoever owns the
/// directory that holds it chooses that, so each such directory is one on the way.
pub(crate) struct PathWalk {
    at: Directory,
    /// The names that are left, the next one last.
    left: Vec<OsString>,
    /// The links that it went over.
    links: Vec<PathBuf>,
}

impl PathWalk {
    /// As many as the kernel follows.
    const MAX_LINKS: usize = 40;

    pub(crate) fn new(owners: Owners, path: &Path) -> Result<Self, Refusal> {
        Ok(Self {
            at: Directory::root(owners)?,
            left: names_from_last(&std::path::absolute(path)?),
            links: Vec::new(),
        })
    }

    /// The directory at its end.
    pub(crate) fn directory(mut self) -> Result<Directory, Refusal> {
        while let Some(name) = self.left.pop() {
            self.enter(&name)?;
        }
        Ok(self.at)
    }

    /// The file at its end.
    pub(crate) fn file(mut self) -> Result<fs::File, Refusal> {
        let Some(name) = self.up_to_last()? else {
            return Err(Refusal::Untrusted("not a regular file".to_owned()));
        };
        self.at.open(&name).map_err(|e| self.led(e))
    }

    /// The status of what is at its end.
    pub(crate) fn status(mut self) -> Result<Stat, Refusal> {
        match self.up_to_last()? {
            Some(name) => self.at.status(&name).map_err(|e| self.led(e)),
            None => Ok(self.at.own_status()?),
        }
    }

    /// Goes up to the directory that has what is at the end, and returns the name which that has there; `None` if it is
    /// this directory itself.
    pub(crate) fn up_to_last(&mut self) -> Result<Option<OsString>, Refusal> {
        while let Some(name) = self.left.pop() {
            if !self.left.is_empty() || name == PARENT {
                self.enter(&name)?;
                continue;
            }
            match self.at.link(&name).map_err(|e| self.led(e))? {
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
            && let Some(target) = self.at.link(name).map_err(|e| self.led(e))?
        {
            return self.follow(name, &target);
        }
        Err(self.led(refusal))
    }

    fn follow(&mut self, name: &OsStr, target: &Path) -> Result<(), Refusal> {
        let link = self.at.path().join(name);
        if self.links.len() == Self::MAX_LINKS {
            return Err(Refusal::Untrusted(format!(
                "the symbolic link {} is one too many on the way, after {} others: name what is meant",
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

    /// The same refusal with the link named that led there, which is not in the path of what is refused.
    fn led(&self, refusal: Refusal) -> Refusal {
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
