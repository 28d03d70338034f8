//! Refresh tokens in files (RFC 6749 section 6). A server may replace one at each use, and then treat a use of the former as theft.
//! So one delivery at a time uses a file, and the next token is on disk before the answer is used.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use config::{Template, Values};
use nix::fcntl::{Flock, FlockArg, OFlag};
use seal::{ExposeSecret, Secret};
use secure_path::{Owners, Refusal};

use super::{
    SERVER,
    token_file::{TokenFile, TokenPath},
};
use crate::{Error, http::SourceError};

/// A refresh token.
const REFRESH: TokenFile = TokenFile {
    key: "refresh-token",
    name: "the refresh token that its token is to come from",
};

/// The pause before a file is looked at again that another delivery uses.
const IN_USE: Duration = Duration::from_millis(50);

/// Returns the refresh token of a job, once no other delivery uses it.
pub(super) async fn held(template: &Template, job: &Values) -> Result<Arc<HeldToken>, Error> {
    let at = REFRESH.path(template, job)?;
    loop {
        let file = at.clone();
        let take = REFRESH.in_time(job.uid, &at.path, move || HeldToken::take(&file));
        match take.await? {
            Some(held) => return Ok(Arc::new(held)),
            // The timeout of the delivery ends this.
            None => tokio::time::sleep(IN_USE).await,
        }
    }
}

/// A refresh token that nobody else uses. Dropping it lets others use its file.
pub(super) struct HeldToken {
    path: PathBuf,
    /// The file that replaces it, which is made before the server is asked: the disk may be full.
    new: PathBuf,
    file: File,
    token: Secret,
    _lock: Flock<File>,
}

impl HeldToken {
    /// Takes a file; none if another delivery uses it. `prefix` is the part of the path that the operator wrote. Blocks.
    ///
    /// # Errors
    /// For the user and the operator: the file is missing, cannot be read or replaced, or others can read it.
    fn take(at: &TokenPath) -> Result<Option<Self>, Error> {
        let path = &at.path;
        let failed = |e: io::Error| {
            let why = format!("it must be replaced, which this user cannot do: {e}");
            REFRESH.failed("cannot be used", path, &why)
        };
        let beside = |suffix: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        let read = || REFRESH.read(None, at);
        // Nobody else can have put anything beside it.
        match secure_path::check_way(path, Owners::process()) {
            Ok(()) => {}
            // It says so better.
            Err(Refusal::Io(e)) if e.kind() == io::ErrorKind::NotFound => drop(read()?),
            Err(e) => return Err(failed(io::Error::other(e.to_string()))),
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits());
        let lock = options.open(beside(".lock")).map_err(failed)?;
        let lock = match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, nix::Error::EWOULDBLOCK)) => return Ok(None),
            Err((_, e)) => return Err(failed(e.into())),
        };
        let token = read()?;
        let new = beside(".new");
        let file = options.open(&new).map_err(failed)?;
        Ok(Some(Self {
            path: path.clone(),
            new,
            file,
            token,
            _lock: lock,
        }))
    }

    /// Returns the token.
    pub fn token(&self) -> &Secret {
        &self.token
    }

    /// Stores the token that the server gave in its place. Blocks until it is on disk.
    ///
    /// # Errors
    /// The file system's. The former token stays, but the server may reject it.
    pub fn replace(&self, token: &Secret) -> Result<(), SourceError> {
        let write = || {
            (&self.file).write_all(token.expose_secret().as_bytes())?;
            (&self.file).write_all(b"\n")?;
            self.file.sync_all()?;
            fs::rename(&self.new, &self.path)?;
            File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
        };
        write().map_err(|e| {
            SourceError::permanent(
                SERVER.credential,
                format_args!(
                    "refresh-token: {}: the next one could not be stored: {e}",
                    self.path.display()
                ),
                "mend that, and log in again if the server refuses the former one",
            )
        })
    }
}

impl Drop for HeldToken {
    fn drop(&mut self) {
        // It has replaced the token, or is of no use.
        let _ = fs::remove_file(&self.new);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn take(path: &Path) -> Result<Option<HeldToken>, Error> {
        HeldToken::take(&TokenPath {
            prefix: path.into(),
            path: path.into(),
        })
    }

    fn held(path: &Path) -> Option<HeldToken> {
        take(path).unwrap()
    }

    #[test]
    fn one_at_a_time_uses_a_token_and_the_next_gets_what_replaced_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("refresh");
        assert!(take(&path).is_err(), "there is none");
        fs::write(&path, "first\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(take(&path).is_err(), "others can read it");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let first = held(&path).unwrap();
        assert!(held(&path).is_none());
        assert_eq!(first.token().expose_secret(), "first");
        first.replace(&Secret::from("second")).unwrap();
        drop(first);
        let second = held(&path).unwrap();
        assert_eq!(second.token().expose_secret(), "second");
        drop(second);
        assert_eq!(
            held(&path).unwrap().token().expose_secret(),
            "second",
            "it was not replaced"
        );
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!directory.path().join("refresh.new").exists());
    }

    #[test]
    fn a_token_that_could_not_be_replaced_is_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("refresh");
        fs::write(&path, "first").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::create_dir(directory.path().join("refresh.new")).unwrap();
        let error = take(&path).err().unwrap().to_string();
        assert!(error.contains("cannot"), "{error}");
    }
}
