// SPDX-License-Identifier: MIT OR Apache-2.0

//! The refresh tokens of logins for jobs: one file for each user, sealed by MUNGE so that only the agent's user can
//! open it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use config::Values;
use seal::{Munge, Secret};

use super::refresh::{HeldToken, LOGIN};
use crate::Error;

/// The interval of polls for a file that another delivery uses, and their maximum number.
const IN_USE: (Duration, u32) = (Duration::from_millis(50), 80);

/// The directory with the refresh tokens.
#[derive(Clone)]
pub struct LoginStore {
    directory: PathBuf,
    munge: Munge,
}

impl LoginStore {
    /// Returns the store in a directory. Reads nothing.
    #[must_use]
    pub fn new(directory: &Path, munge: Munge) -> Self {
        Self {
            directory: directory.to_owned(),
            munge,
        }
    }

    /// Returns the directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    fn path(&self, uid: u32) -> PathBuf {
        self.directory.join(format!("login-{uid}"))
    }

    /// Stores the refresh token and the identity token of a user, and replaces former ones. Blocks until they are on
    /// disk.
    ///
    /// # Errors
    /// For the operator: the directory cannot be used, or munged does not answer.
    pub fn store(&self, uid: u32, token: &Secret, id_token: &Secret) -> Result<(), Error> {
        let path = self.path(uid);
        let failed = |e: io::Error| LOGIN.failed("could not be stored", &path, &e);
        secure_path::private_directory(&self.directory).map_err(failed)?;
        for _ in 0..IN_USE.1 {
            if let Some(held) = HeldToken::create(&path, self.munge.clone())? {
                return held
                    .replace(Some(token), Some(id_token))
                    .map_err(|e| failed(io::Error::other(e.cause().to_owned())));
            }
            std::thread::sleep(IN_USE.0);
        }
        Err(failed(io::Error::other("a delivery uses it: try again")))
    }

    /// Returns the time of the start or last use of a user's login; none if the user has not logged in. Blocks.
    ///
    /// # Errors
    /// For the operator: the directory cannot be used.
    pub fn since(&self, uid: u32) -> Result<Option<SystemTime>, Error> {
        let path = self.path(uid);
        match fs::metadata(&path).and_then(|meta| meta.modified()) {
            Ok(since) => Ok(Some(since)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(LOGIN.failed("could not be read", &path, &e)),
        }
    }

    /// Removes the login of a user. Blocks.
    ///
    /// # Errors
    /// For the operator: the directory cannot be used.
    pub fn remove(&self, uid: u32) -> Result<(), Error> {
        let path = self.path(uid);
        if self.since(uid)?.is_none() {
            return Ok(());
        }
        // A delivery that uses the token would store the next one after the removal, so wait for it.
        for _ in 0..IN_USE.1 {
            if let Some(_held) = HeldToken::create(&path, self.munge.clone())? {
                return match fs::remove_file(&path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        Err(LOGIN.failed("could not be removed", &path, &e))
                    }
                    _ => Ok(()),
                };
            }
            std::thread::sleep(IN_USE.0);
        }
        Err(LOGIN.failed("could not be removed", &path, &"a delivery uses it: try again"))
    }

    /// Takes the refresh token of a user. Waits while another delivery uses it. Blocks.
    ///
    /// # Errors
    /// Those of [`LoginStore::take`]; the token was in use for too long.
    pub(crate) fn take_soon(&self, uid: u32) -> Result<Arc<HeldToken>, Error> {
        for _ in 0..IN_USE.1 {
            if let Some(held) = self.take(uid)? {
                return Ok(held);
            }
            std::thread::sleep(IN_USE.0);
        }
        Err(LOGIN.failed("could not be used", &self.path(uid), &"deliveries use it"))
    }

    /// Takes the refresh token of a user; none if another delivery uses it. Blocks.
    ///
    /// # Errors
    /// For the user and the operator: the token does not exist, or cannot be opened or replaced.
    pub(crate) fn take(&self, uid: u32) -> Result<Option<Arc<HeldToken>>, Error> {
        let path = self.path(uid);
        if self.since(uid)?.is_none() {
            let what = "does not exist: run `workflow-token login`, or `flux workflow-token login`";
            return Err(LOGIN.failed(what, &path, &"the user has not logged in"));
        }
        Ok(HeldToken::take_sealed(&self.path(uid), self.munge.clone())?.map(Arc::new))
    }
}

/// Returns the refresh token of a job owner's login. Waits while another delivery uses it.
pub(super) async fn of_login(store: &Path, munge: &config::Munge, job: &Values) -> Result<Arc<HeldToken>, Error> {
    let munge = munge.client();
    let munge = munge.map_err(|e| LOGIN.failed("cannot be used", store, &e))?;
    let store = LoginStore::new(store, munge);
    let uid = job.uid;
    loop {
        let of_user = store.clone();
        let take = LOGIN.in_time(uid, store.directory(), move || of_user.take(uid));
        match take.await? {
            Some(held) => return Ok(held),
            // The timeout of the delivery ends this.
            None => tokio::time::sleep(IN_USE.0).await,
        }
    }
}
