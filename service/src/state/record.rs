// SPDX-License-Identifier: MIT OR Apache-2.0

//! Records of the state, and errors of storing them.

use std::{
    fmt,
    sync::atomic::{AtomicI64, Ordering::Relaxed},
    time::Duration,
};

use thiserror::Error;

/// The timeout of an operation.
pub const LIMIT: Duration = Duration::from_secs(2);

/// The longest value, in bytes, as JSON.
pub const MAX_VALUE: usize = 64 << 10;

/// The kind of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The session of a browser.
    Session,
    /// The login of a device (RFC 8628), with its device code as id.
    Device,
    /// The code that a user types to log in a device.
    UserCode,
    /// An authorization code.
    Code,
    /// A family of refresh tokens.
    Family,
    /// The name of a session at the login provider.
    ProviderSession,
    /// A cookie. It is not stored in the state.
    Cookie,
}

/// A record.
#[derive(Debug)]
pub struct Stored<T> {
    /// Its value.
    pub value: T,
    /// The version, which each change increments. [`State::replace`](super::State::replace) expects it.
    pub version: i64,
    /// When it expires, in seconds since 1970-01-01T00:00:00Z.
    pub expires: u64,
}

/// The reason why an operation failed.
#[derive(Debug, Error)]
pub enum StateError {
    /// The id is taken.
    #[error("the state already contains a {0} with this id")]
    Exists(Kind),
    /// The number of records of this kind has reached the limit.
    #[error("the state contains {1} records of the kind {0}: raise state.max-records, or wait until some expire")]
    Full(Kind, u64),
    /// The value is too long.
    #[error("a value of the kind {0} is longer than {max} bytes", max = MAX_VALUE)]
    TooLong(Kind),
    /// The database cannot be used. The text is for the operator. The operation may have been executed all the same.
    #[error("the state cannot be used: {0}")]
    Unavailable(String),
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::Session,
        Self::Device,
        Self::UserCode,
        Self::Code,
        Self::Family,
        Self::ProviderSession,
        Self::Cookie,
    ];

    /// Returns its number in the database, which never changes.
    pub fn number(self) -> i64 {
        match self {
            Self::Session => 1,
            Self::Device => 2,
            Self::UserCode => 3,
            Self::Code => 4,
            Self::Family => 5,
            Self::ProviderSession => 6,
            Self::Cookie => 7,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Session => "session",
            Self::Device => "device",
            Self::UserCode => "user-code",
            Self::Code => "code",
            Self::Family => "family",
            Self::ProviderSession => "provider-session",
            Self::Cookie => "cookie",
        })
    }
}

/// The approximate number of records of each kind: from the last count, and the changes of this process since then.
pub struct Counts {
    of: [AtomicI64; Kind::ALL.len()],
    most: u64,
}

impl Counts {
    /// Returns counts of zero, with a limit for each kind.
    pub fn new(most: u64) -> Self {
        Self {
            of: Default::default(),
            most,
        }
    }

    /// Checks that another record is within the limit.
    ///
    /// # Errors
    /// [`StateError::Full`].
    pub fn check(&self, kind: Kind) -> Result<(), StateError> {
        match self.of[kind as usize].load(Relaxed) < i64::try_from(self.most).unwrap_or(i64::MAX) {
            true => Ok(()),
            false => Err(StateError::Full(kind, self.most)),
        }
    }

    /// Adds a number of new records, which is negative for removed ones.
    pub fn add(&self, kind: Kind, count: i64) {
        self.of[kind as usize].fetch_add(count, Relaxed);
    }

    /// Sets the counted numbers, by the numbers of the kinds.
    pub fn set(&self, counted: &[(i64, i64)]) {
        for kind in Kind::ALL {
            let count = counted.iter().find(|(number, _)| *number == kind.number());
            self.of[kind as usize].store(count.map_or(0, |(_, count)| *count), Relaxed);
        }
    }
}
