// SPDX-License-Identifier: MIT OR Apache-2.0

//! Job owners that the agent has looked up. Callbacks that decide on projects use them, because they cannot wait for a
//! look-up.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use config::{Person, Principal};
use protocol::Failure;

/// The number of users at which those with expired look-ups are removed.
const ROOM: usize = 1024;

/// A job owner.
pub(crate) struct Owner {
    uid: u32,
    owner: protocol::Owner,
    until: Instant,
    /// The time when the claims expire; none without claims.
    claims_until: Option<Instant>,
}

/// The known job owners, by uid, for the active configuration.
#[derive(Default)]
pub(crate) struct KnownOwners(HashMap<u32, Owner>);

impl KnownOwners {
    /// Forgets all users when the configuration changes.
    pub fn clear(&mut self) {
        self.0 = HashMap::new();
    }

    /// Adds a user.
    pub fn insert(&mut self, uid: u32, owner: protocol::Owner) {
        if self.0.len() >= ROOM {
            self.0.retain(|_, owner| owner.is_fresh());
        }
        let now = Instant::now();
        let left = owner.claims_ms.map(Duration::from_millis);
        let known = Owner {
            uid,
            until: now + Duration::from_millis(owner.fresh_ms.min(FRESHEST_MS)),
            claims_until: left.and_then(|left| now.checked_add(left)),
            owner,
        };
        self.0.insert(uid, known);
    }

    /// Returns a user whose look-up has not expired.
    pub fn known(&self, uid: u32) -> Option<&Owner> {
        self.0.get(&uid).filter(|owner| owner.is_fresh())
    }

    /// Returns the number of known users.
    pub fn count(&self) -> usize {
        self.0.values().filter(|owner| owner.is_fresh()).count()
    }
}

/// The longest time for which a look-up is valid: an hour.
const FRESHEST_MS: u64 = 3_600_000;

impl Owner {
    /// Returns the reason why the user's identity token is not used, if any.
    pub fn refused(&self) -> Option<&Failure> {
        self.owner.refused.as_ref()
    }

    /// Returns how long the claims of the identity token remain valid; none without claims.
    pub fn claims_left(&self) -> Option<Duration> {
        self.claims_until
            .map(|until| until.saturating_duration_since(Instant::now()))
    }

    fn is_fresh(&self) -> bool {
        Instant::now() < self.until
    }
}

impl Person for Owner {
    fn name(&self) -> String {
        match &self.owner.name {
            Some(name) => name.escape_debug().to_string(),
            None => format!("uid {}", self.uid),
        }
    }

    fn is(&self, user: &Principal) -> bool {
        match user {
            Principal::Id(uid) => *uid == self.uid,
            Principal::Name(name) => self.owner.name.as_ref() == Some(name),
        }
    }

    fn is_in(&self, group: &Principal) -> bool {
        self.owner.groups.contains(group)
    }

    fn has_claim(&self, value: &str) -> bool {
        self.owner.claims.iter().any(|claim| claim == value)
    }

    fn refusal(&self) -> Option<&str> {
        self.refused().map(|why| &*why.user)
    }
}
