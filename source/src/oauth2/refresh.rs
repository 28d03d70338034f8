// SPDX-License-Identifier: MIT OR Apache-2.0

//! Refresh tokens in files (RFC 6749 section 6). A server may replace a refresh token at each use, and treat a later
//! use of the former one as theft. So only one delivery at a time uses a file, and the next token is on disk before the
//! answer is used.

use std::{
    fmt::Display,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use config::{Template, Values};
use nix::fcntl::{Flock, FlockArg, OFlag, posix_fallocate};
use seal::{ExposeSecret, Munge, MungeError, Secret};
use secure_path::{Owners, Refusal};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use zeroize::Zeroizing;

use super::{
    SERVER,
    token_file::{TokenFile, TokenPath},
};
use crate::{Error, http::SourceError};

/// A refresh token.
const REFRESH: TokenFile = TokenFile {
    key: "refresh-token",
    name: "the refresh token that its token comes from",
};

/// The interval of polls for a file that another delivery uses.
const IN_USE: Duration = Duration::from_millis(50);

/// The time that an operation waits for munged, which may be restarting, and the interval of attempts.
const MUNGED: (Duration, Duration) = (Duration::from_secs(8), Duration::from_millis(100));

/// Held by each request that uses a refresh token, until the next token is on disk.
static ROTATIONS: RwLock<()> = RwLock::const_new(());

/// Begins a request that uses a refresh token.
pub(super) async fn rotation() -> RwLockReadGuard<'static, ()> {
    ROTATIONS.read().await
}

/// Waits until the requests that use refresh tokens have ended. No further one begins while the guard exists.
pub async fn rotations_ended() -> RwLockWriteGuard<'static, ()> {
    ROTATIONS.write().await
}

/// Repeats an operation until munged responds, for [`MUNGED`] at most. Blocks.
fn with_munged<T>(run: impl Fn() -> Result<T, MungeError>) -> Result<T, MungeError> {
    let end = Instant::now() + MUNGED.0;
    loop {
        match run() {
            Err(e) if e.is_retryable() && Instant::now() < end => thread::sleep(MUNGED.1),
            done => return done,
        }
    }
}

/// Returns the refresh token of a job. Waits while another delivery uses it.
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

/// The login of a user for jobs.
pub(crate) const LOGIN: TokenFile = TokenFile {
    key: "store",
    name: "the login of its owner",
};

/// The longest sealed refresh token, in bytes.
const MAX_SEALED: usize = 4 * token::MAX_LEN;

/// A refresh token whose file is locked. Dropping it unlocks the file.
pub(crate) struct HeldToken {
    path: PathBuf,
    /// Set if the file is sealed.
    munge: Option<Munge>,
    /// The file that replaces it. It is created before the token request, with room for the next token, so that no token is
    /// lost if that fails.
    new: PathBuf,
    file: File,
    token: Secret,
    /// The identity token of a login, if any.
    id_token: Option<Secret>,
    _lock: Flock<File>,
}

impl HeldToken {
    /// Locks and reads a file; none if another delivery uses it. Blocks.
    ///
    /// # Errors
    /// For the user and the operator: the file is missing, cannot be read or replaced, or others can read it.
    fn take(at: &TokenPath) -> Result<Option<Self>, Error> {
        let read = || REFRESH.read(None, at);
        // The lock and the new file are in the same directory, so nobody else may be able to write to it.
        match secure_path::check_way(&at.path, Owners::process()) {
            Ok(()) => {}
            // `read` returns a better error for a missing file.
            Err(Refusal::Io(e)) if e.kind() == io::ErrorKind::NotFound => drop(read()?),
            Err(e) => return Err(unusable(REFRESH, &at.path, &e)),
        }
        Self::lock(REFRESH, &at.path, None, || Ok((read()?, None)))
    }

    /// Locks and reads a sealed file; none if another delivery uses it. Blocks.
    ///
    /// # Errors
    /// For the user and the operator: the file is missing, or cannot be opened or replaced.
    pub fn take_sealed(path: &Path, munge: Munge) -> Result<Option<Self>, Error> {
        let open = munge.clone();
        Self::lock(LOGIN, path, Some(munge), || {
            let bytes = secure_path::read_private(path, MAX_SEALED).map_err(|refusal| match refusal {
                Refusal::Io(e) if e.kind() == io::ErrorKind::NotFound => LOGIN.failed(
                    "does not exist: run `workflow-token login`, or `flux workflow-token login`",
                    path,
                    &e,
                ),
                refusal => LOGIN.failed("could not be read", path, &refusal),
            })?;
            let sealed = std::str::from_utf8(&bytes).unwrap_or_default();
            let opened = with_munged(|| open.unwrap(sealed.trim_ascii()));
            let opened = opened.map_err(|e| match e.is_retryable() {
                true => LOGIN.failed("could not be opened", path, &e),
                false => LOGIN.failed("could not be opened: log in again", path, &e),
            })?;
            login_of(&opened).ok_or_else(|| LOGIN.failed("is not valid", path, &"log in again"))
        })
    }

    /// Locks a sealed file to write the first token into it; none if a delivery uses it. Blocks.
    ///
    /// # Errors
    /// For the operator: the file cannot be written.
    pub fn create(path: &Path, munge: Munge) -> Result<Option<Self>, Error> {
        Self::lock(LOGIN, path, Some(munge), || Ok((Secret::from(""), None)))
    }

    fn lock(
        of: TokenFile,
        path: &Path,
        munge: Option<Munge>,
        read: impl FnOnce() -> Result<(Secret, Option<Secret>), Error>,
    ) -> Result<Option<Self>, Error> {
        let failed = |e: io::Error| unusable(of, path, &e);
        let beside = |suffix: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits());
        let lock = options.open(beside(".lock")).map_err(failed)?;
        let lock = match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, nix::Error::EWOULDBLOCK)) => return Ok(None),
            Err((_, e)) => return Err(failed(e.into())),
        };
        let (token, id_token) = read()?;
        let new = beside(".new");
        let file = options.open(&new).map_err(failed)?;
        let room = if munge.is_some() { MAX_SEALED } else { token::MAX_LEN };
        posix_fallocate(&file, 0, room as i64).map_err(|e| failed(e.into()))?;
        Ok(Some(Self {
            path: path.to_owned(),
            munge,
            new,
            file,
            token,
            id_token,
            _lock: lock,
        }))
    }

    /// Returns the token.
    pub fn token(&self) -> &Secret {
        &self.token
    }

    /// Returns the identity token of the login.
    pub fn id_token(&self) -> Option<&Secret> {
        self.id_token.as_ref()
    }

    /// Replaces the tokens with those that the server returned, and keeps the others. Blocks until they are on disk.
    ///
    /// # Errors
    /// The file system failed. The former tokens remain, but the server may reject them.
    pub fn replace(&self, token: Option<&Secret>, id_token: Option<&Secret>) -> Result<(), SourceError> {
        if token.is_none() && (self.munge.is_none() || id_token.is_none()) {
            return Ok(());
        }
        let token = token.unwrap_or(&self.token).expose_secret();
        let write = || {
            let written = match &self.munge {
                Some(munge) => {
                    let id_token = id_token
                        .or(self.id_token.as_ref())
                        .map_or("", |token| token.expose_secret());
                    let login = Zeroizing::new(format!("{token}\n{id_token}"));
                    let sealed = with_munged(|| munge.wrap(login.as_bytes())).map_err(io::Error::other)?;
                    (&self.file).write_all(sealed.as_bytes())?;
                    sealed.len()
                }
                None => {
                    (&self.file).write_all(token.as_bytes())?;
                    token.len()
                }
            };
            (&self.file).write_all(b"\n")?;
            self.file.set_len(written as u64 + 1)?;
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
                "correct that, and log in again if the server rejects the former one",
            )
        })
    }
}

/// Returns the refresh token and the identity token of a login.
fn login_of(opened: &[u8]) -> Option<(Secret, Option<Secret>)> {
    let (token, id_token) = std::str::from_utf8(opened).ok()?.split_once('\n')?;
    let id_token = Some(id_token).filter(|token| !token.is_empty());
    Some((Secret::from(token), id_token.map(Secret::from)))
}

fn unusable(of: TokenFile, path: &Path, why: &dyn Display) -> Error {
    let why = format!("this user cannot replace it: {why}");
    of.failed("cannot be used", path, &why)
}

impl Drop for HeldToken {
    fn drop(&mut self) {
        // The file was renamed, or is not needed.
        let _ = fs::remove_file(&self.new);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

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
        // There is room for the next token, even if the disk is full when it arrives.
        let new = fs::metadata(directory.path().join("refresh.new")).unwrap();
        assert!(new.blocks() * 512 >= token::MAX_LEN as u64, "{new:?}");
        first.replace(Some(&Secret::from("second")), None).unwrap();
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
