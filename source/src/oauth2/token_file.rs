// SPDX-License-Identifier: MIT OR Apache-2.0

//! Files with tokens that are sent to the server.

use std::{
    fmt::Display,
    io,
    path::{Path, PathBuf},
    sync::LazyLock,
    time::Duration,
};

use config::{Template, Values};
use seal::Secret;

use super::readers::{Readers, Unread};
use crate::{
    Error, seconds,
    secure_file::{self, Refusal},
};

/// The timeout for reading a file.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The readers of users' files, which all rules share.
static READERS: LazyLock<Readers> = LazyLock::new(Readers::default);

/// The token that is exchanged.
pub(super) const SUBJECT: TokenFile = TokenFile {
    key: "subject-token",
    name: "the token of its owner that is exchanged for its token",
};

/// A kind of file in messages.
#[derive(Clone, Copy)]
pub(crate) struct TokenFile {
    /// The key of its path.
    pub key: &'static str,
    /// The name of the token, for the user.
    pub name: &'static str,
}

/// The path of a file. `prefix` is the part that the operator wrote.
#[derive(Clone)]
pub(super) struct TokenPath {
    pub prefix: PathBuf,
    pub path: PathBuf,
}

impl TokenFile {
    /// Reads the token of a user. The file may belong to the user, who can exchange the token without us, too.
    pub async fn of_user(self, template: &Template, job: &Values) -> Result<Secret, Error> {
        let (at, uid) = (self.path(template, job)?, job.uid);
        let shown = at.path.clone();
        self.in_time(uid, &shown, move || self.read(Some(uid), &at)).await
    }

    /// Returns the path for a job.
    pub(super) fn path(self, template: &Template, job: &Values) -> Result<TokenPath, Error> {
        let path = template.fill(job);
        let path =
            path.map_err(|e| Error::new(format!("{} does not exist", self.name), format!("{}: {e}", self.key)))?;
        Ok(TokenPath {
            prefix: template.prefix().into(),
            path: path.into(),
        })
    }

    /// Runs blocking work on a file of a user on its own thread, for at most [`TIMEOUT`].
    pub async fn in_time<T: Send + 'static>(
        self,
        uid: u32,
        path: &Path,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let failed = |why: &dyn Display| self.failed("could not be read", path, why);
        READERS.read(uid, TIMEOUT, work).await.unwrap_or_else(|why| match why {
            Unread::Hangs => Err(failed(&format_args!(
                "it was not read within {}: check for a hung file system",
                seconds(TIMEOUT)
            ))),
            Unread::Fault => Err(failed(&"an internal error")),
        })
    }

    /// Reads a token. Besides root and this user, `uid` is trusted. Blocks.
    pub(super) fn read(self, uid: Option<u32>, at: &TokenPath) -> Result<Secret, Error> {
        let failed = |what: &str, why: &dyn Display| self.failed(what, &at.path, why);
        let file = secure_file::open_private(uid, &at.prefix, &at.path).map_err(|refusal| match refusal {
            Refusal::Io(e) if e.kind() == io::ErrorKind::NotFound => failed("does not exist", &e),
            Refusal::Io(e) => failed("could not be read", &e),
            Refusal::Untrusted(why) => failed("was refused", &why),
        })?;
        let bytes = secure_file::read_all(file, token::MAX_LEN).map_err(|e| failed("could not be read", &e))?;
        let token = bytes.trim_ascii();
        let is_token = !token.is_empty() && token.iter().all(u8::is_ascii_graphic);
        let token = std::str::from_utf8(token).ok().filter(|_| is_token);
        token.map(Secret::from).ok_or_else(|| {
            failed(
                "is not valid",
                &"it is empty, or contains spaces or other invalid characters",
            )
        })
    }

    /// Returns an error. `what` is for the user, `why` for the operator.
    pub fn failed(self, what: &str, path: &Path, why: &dyn Display) -> Error {
        let Self { key, name } = self;
        Error::new(format!("{name} {what}"), format!("{key}: {}: {why}", path.display()))
    }
}
