// SPDX-License-Identifier: MIT OR Apache-2.0

//! Rate limits on expensive requests of strangers, so that one stranger cannot harm others.

use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota};

use crate::{error::OAuthError, failed::Failed};

/// The number of device logins that may begin per second, and in a burst.
const DEVICES: (NonZeroU32, NonZeroU32) = (NonZeroU32::new(20).unwrap(), NonZeroU32::new(200).unwrap());

/// The number of codes that one user may try per minute: too few to guess one of 20^8.
const CODES: NonZeroU32 = NonZeroU32::new(20).unwrap();

/// How often one attempt to log in may return from the provider per minute: once, but browsers may repeat the request.
const ATTEMPTS: NonZeroU32 = NonZeroU32::new(3).unwrap();

/// How often browsers may return per second, and in a burst: each return makes the agent contact the provider.
const RETURNS: (NonZeroU32, NonZeroU32) = (NonZeroU32::new(50).unwrap(), NonZeroU32::new(500).unwrap());

/// The number of users to count codes for, before old counts are removed.
const USERS: usize = 10_000;

/// The limits.
pub struct Limits {
    devices: DefaultDirectRateLimiter,
    codes: DefaultKeyedRateLimiter<String>,
    attempts: DefaultKeyedRateLimiter<String>,
    returns: DefaultDirectRateLimiter,
}

impl Limits {
    /// Returns limits with empty counts.
    pub fn new() -> Self {
        Self {
            devices: DefaultDirectRateLimiter::direct(Quota::per_second(DEVICES.0).allow_burst(DEVICES.1)),
            codes: DefaultKeyedRateLimiter::keyed(Quota::per_minute(CODES)),
            attempts: DefaultKeyedRateLimiter::keyed(Quota::per_minute(ATTEMPTS)),
            returns: DefaultDirectRateLimiter::direct(Quota::per_second(RETURNS.0).allow_burst(RETURNS.1)),
        }
    }

    /// Counts the beginning of a device login.
    ///
    /// # Errors
    /// [`OAuthError::SlowDown`].
    pub fn check_device(&self) -> Result<(), OAuthError> {
        self.devices.check().map_err(|_| OAuthError::SlowDown)
    }

    /// Counts the return of an attempt to log in, by its `state`, from the provider.
    ///
    /// # Errors
    /// [`Failed`].
    pub fn check_attempt(&self, state: &str) -> Result<(), Failed> {
        // Anybody can begin attempts, so this comes first and bounds the number of counted ones.
        self.returns.check().map_err(|_| Failed::Unavailable)?;
        if self.attempts.len() > USERS {
            self.attempts.retain_recent();
        }
        self.attempts.check_key(&state.to_owned()).map_err(|_| Failed::Stale)
    }

    /// Counts a code that a user typed.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns how often something may be done before it is refused.
    fn allowed<E>(mut check: impl FnMut() -> Result<(), E>) -> usize {
        // More than are allowed at once, and as many more as become allowed meanwhile on a slow machine.
        (0..100_000).take_while(|_| check().is_ok()).count()
    }

    #[test]
    fn nobody_tries_many_codes() {
        let limits = Limits::new();
        let tried = allowed(|| limits.check_code("alice"));
        assert!((20..100_000).contains(&tried), "{tried}");
        assert!(limits.check_code("bob").is_ok(), "others may");
    }

    #[test]
    fn an_attempt_to_log_in_comes_back_a_few_times() {
        let limits = Limits::new();
        let returned = allowed(|| limits.check_attempt("one"));
        assert!((3..100_000).contains(&returned), "{returned}");
        assert!(limits.check_attempt("two").is_ok(), "others may");
    }

    #[test]
    fn the_provider_is_asked_for_so_many_attempts() {
        let limits = Limits::new();
        let mut states = 0;
        let asked = allowed(|| {
            states += 1;
            limits.check_attempt(&states.to_string())
        });
        assert!((500..100_000).contains(&asked), "{asked}");
        assert_eq!(limits.attempts.len(), asked, "others are not remembered");
    }

    #[test]
    fn so_many_logins_of_devices_begin() {
        let limits = Limits::new();
        let begun = allowed(|| limits.check_device());
        assert!((200..100_000).contains(&begun), "{begun}");
    }
}
