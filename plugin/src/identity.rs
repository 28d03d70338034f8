//! The verification of the identity tokens of users.

use config::Config;

use crate::{owner::Verify, work::Failure};

/// How the identity tokens of a configuration are verified, where it has any.
pub(crate) fn verify(config: &Config) -> Option<Verify> {
    config.projects.identity()?;
    Some(Box::new(|_| {
        Err(Failure::new("it cannot be verified", "there are no tables trust yet"))
    }))
}
