// SPDX-License-Identifier: MIT OR Apache-2.0

//! Values in cookies that only this service can read, so that strangers do not fill the database.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Serialize, de::DeserializeOwned};

use super::{Kind, State, StateError, seal::Place};

impl State {
    /// Seals a value for the cookie with this name.
    ///
    /// # Errors
    /// [`StateError::TooLong`].
    pub fn seal_cookie<T: Serialize>(&self, name: &str, value: &T) -> Result<String, StateError> {
        let sealed = self.keyring().seal(&place(name), value)?;
        Ok(URL_SAFE_NO_PAD.encode(sealed))
    }

    /// Opens the cookie with this name. Returns `None` if this service did not seal the value for it.
    pub fn open_cookie<T: DeserializeOwned>(&self, name: &str, sealed: &str) -> Option<T> {
        let sealed = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        self.keyring().open(&place(name), &sealed).ok()
    }
}

fn place(name: &str) -> Place {
    Place::new(Kind::Cookie, name.as_bytes(), 0, 0)
}
