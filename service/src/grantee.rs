// SPDX-License-Identifier: MIT OR Apache-2.0

//! A user who has allowed a program to act for them, for a limited time.

use protocol::{Evidence, SecretText};
use serde::{Deserialize, Serialize};

use crate::session::Session;

/// The user.
#[derive(Clone, Serialize, Deserialize)]
pub struct Grantee {
    /// The evidence with which the agent mints tokens of the user.
    ticket: SecretText,
    /// The owner of the user's records in the state.
    pub owner: String,
    /// The end of the login, in seconds since 1970-01-01T00:00:00Z.
    pub expires: u64,
}

impl Grantee {
    /// Returns the user of a session.
    pub fn of(session: &Session) -> Self {
        Self {
            ticket: session.ticket.clone(),
            owner: session.owner(),
            expires: session.expires,
        }
    }

    /// Returns the evidence with which the agent mints a token.
    pub fn evidence(&self) -> Evidence {
        Evidence::Login(self.ticket.clone())
    }
}
