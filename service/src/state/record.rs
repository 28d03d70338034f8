//! Records of the state, and why one cannot be stored.

use std::{
    fmt,
    sync::atomic::{AtomicI64, Ordering::Relaxed},
    time::Duration,
};

use thiserror::Error;

/// The longest time of an operation.
pub const LIMIT: Duration = Duration::from_secs(2);

/// The longest value, in bytes, as JSON.
pub const MAX_VALUE: usize = 64 << 10;

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The session of a browser.
    Session,
    /// The login of a device (RFC 8628), by its device code.
    Device,
    /// The code that a user types to log in a device.
    UserCode,
    /// An authorization code.
    Code,
    /// A family of refresh tokens.
    Family,
    /// The name of a session at the provider of logins.
    ProviderSession,
    /// A cookie. It is no record: a browser keeps it.
    Cookie,
}

/// A record.
#[derive(Debug)]
pub struct Stored<T> {
    /// Its value.
    pub value: T,
    /// The number of its changes, which [`State::replace`](super::State::replace) expects.
    pub version: i64,
    /// When it expires, in seconds since 1970-01-01T00:00:00Z.
    pub expires: u64,
}

/// The reason why an operation failed.
#[derive(Debug, Error)]
pub enum StateError {
    /// The id is taken.
    #[error("the state has another {0} of this id")]
    Exists(Kind),
    /// The state has as many records of a kind as it may have.
    #[error("the state has {1} records of the kind {0}: raise state.max-records, or wait until some expire")]
    Full(Kind, u64),
    /// The value is too long to be stored.
    #[error("a value of the kind {0} is longer than {max} bytes", max = MAX_VALUE)]
    TooLong(Kind),
    /// The database cannot be used: for the operator. What was asked for may have been done all the same.
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

    /// Its number in the database, which never changes.
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

/// About how many records of each kind there are: counted once in a while, and what this process did since.
pub struct Counts {
    of: [AtomicI64; Kind::ALL.len()],
    most: u64,
}

impl Counts {
    /// Returns counts of nothing, of which each may be as high as this.
    pub fn new(most: u64) -> Self {
        Self {
            of: Default::default(),
            most,
        }
    }

    /// Checks that there may be another record.
    ///
    /// # Errors
    /// [`StateError::Full`].
    pub fn check(&self, kind: Kind) -> Result<(), StateError> {
        match self.of[kind as usize].load(Relaxed) < i64::try_from(self.most).unwrap_or(i64::MAX) {
            true => Ok(()),
            false => Err(StateError::Full(kind, self.most)),
        }
    }

    /// Counts records that were added, or removed if the count is negative.
    pub fn add(&self, kind: Kind, count: i64) {
        self.of[kind as usize].fetch_add(count, Relaxed);
    }

    /// Sets what was counted, by the numbers of the kinds.
    pub fn set(&self, counted: &[(i64, i64)]) {
        for kind in Kind::ALL {
            let count = counted.iter().find(|(number, _)| *number == kind.number());
            self.of[kind as usize].store(count.map_or(0, |(_, count)| *count), Relaxed);
        }
    }
}
