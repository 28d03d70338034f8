//! How often strangers may do what costs something: not the rate of everybody, but what one can do to others.

use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota};

use crate::{error::OAuthError, failed::Failed};

/// The logins of devices that begin in a second, and at once.
const DEVICES: (NonZeroU32, NonZeroU32) = (NonZeroU32::new(20).unwrap(), NonZeroU32::new(200).unwrap());

/// The codes that one user tries in a minute: nobody guesses one of 20^8.
const CODES: NonZeroU32 = NonZeroU32::new(20).unwrap();

/// How often one attempt to log in comes back from the provider in a minute: once, but for a browser that repeats it.
const ATTEMPTS: NonZeroU32 = NonZeroU32::new(3).unwrap();

/// How often browsers come back in a second, and at once: the provider is asked each time.
const RETURNS: (NonZeroU32, NonZeroU32) = (NonZeroU32::new(50).unwrap(), NonZeroU32::new(500).unwrap());

/// The users whose tries are remembered, before old ones are forgotten.
const USERS: usize = 10_000;

/// The limits.
pub struct Limits {
    devices: DefaultDirectRateLimiter,
    codes: DefaultKeyedRateLimiter<String>,
    attempts: DefaultKeyedRateLimiter<String>,
    returns: DefaultDirectRateLimiter,
}

impl Limits {
    /// Returns limits that nobody has reached.
    pub fn new() -> Self {
        Self {
            devices: DefaultDirectRateLimiter::direct(Quota::per_second(DEVICES.0).allow_burst(DEVICES.1)),
            codes: DefaultKeyedRateLimiter::keyed(Quota::per_minute(CODES)),
            attempts: DefaultKeyedRateLimiter::keyed(Quota::per_minute(ATTEMPTS)),
            returns: DefaultDirectRateLimiter::direct(Quota::per_second(RETURNS.0).allow_burst(RETURNS.1)),
        }
    }

    /// Counts the login of a device that begins.
    ///
    /// # Errors
    /// [`OAuthError::SlowDown`].
    pub fn check_device(&self) -> Result<(), OAuthError> {
        self.devices.check().map_err(|_| OAuthError::SlowDown)
    }

    /// Counts an attempt to log in, by its `state`, that comes back from the provider.
    ///
    /// # Errors
    /// [`Failed`].
    pub fn check_attempt(&self, state: &str) -> Result<(), Failed> {
        if self.attempts.len() > USERS {
            self.attempts.retain_recent();
        }
        self.attempts.check_key(&state.to_owned()).map_err(|_| Failed::Stale)?;
        self.returns.check().map_err(|_| Failed::Unavailable)
    }

    /// Counts a code that a user types.
    ///
    /// # Errors
    /// [`Failed::Refused`].
    pub fn check_code(&self, user: &str) -> Result<(), Failed> {
        if self.codes.len() > USERS {
            self.codes.retain_recent();
        }
        let is_often = || Failed::Refused("you tried too many codes: wait a minute".to_owned());
        self.codes.check_key(&user.to_owned()).map_err(|_| is_often())
    }
}
