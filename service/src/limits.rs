//! How often strangers may do what costs something: not the rate of everybody, but what one can do to others.

use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota};

use crate::{error::OAuthError, failed::Failed};

/// The logins of devices that begin in a second, and at once.
const DEVICES: (NonZeroU32, NonZeroU32) = (NonZeroU32::new(20).unwrap(), NonZeroU32::new(200).unwrap());

/// The codes that one user tries in a minute: nobody guesses one of 20^8.
const CODES: NonZeroU32 = NonZeroU32::new(20).unwrap();

/// The users whose tries are remembered, before old ones are forgotten.
const USERS: usize = 10_000;

/// The limits.
pub struct Limits {
    devices: DefaultDirectRateLimiter,
    codes: DefaultKeyedRateLimiter<String>,
}

impl Limits {
    /// Returns limits that nobody has reached.
    pub fn new() -> Self {
        Self {
            devices: DefaultDirectRateLimiter::direct(Quota::per_second(DEVICES.0).allow_burst(DEVICES.1)),
            codes: DefaultKeyedRateLimiter::keyed(Quota::per_minute(CODES)),
        }
    }

    /// Counts the login of a device that begins.
    ///
    /// # Errors
    /// [`OAuthError::SlowDown`].
    pub fn check_device(&self) -> Result<(), OAuthError> {
        self.devices.check().map_err(|_| OAuthError::SlowDown)
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
