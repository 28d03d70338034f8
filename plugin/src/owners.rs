//! Job owners, as far as the agent has told of them. The callbacks that decide about projects cannot wait for an answer.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use config::{Person, Principal};
use protocol::Failure;

/// How many users are kept before those are removed of whom nothing is known any more.
const ROOM: usize = 1024;

/// A job owner.
pub(crate) struct Owner {
    uid: u32,
    told: protocol::Owner,
    until: Instant,
}

/// The job owners that are known, by uid, for one configuration.
#[derive(Default)]
pub(crate) struct Owners(HashMap<u32, Owner>);

impl Owners {
    /// The agent has told of a user.
    pub fn insert(&mut self, uid: u32, told: protocol::Owner) {
        if self.0.len() >= ROOM {
            self.0.retain(|_, owner| owner.is_fresh());
        }
        let until = Instant::now() + Duration::from_millis(told.fresh_ms.min(FRESHEST_MS));
        self.0.insert(uid, Owner { uid, told, until });
    }

    /// Returns what is known of a user, unless it was told too long ago.
    pub fn known(&self, uid: u32) -> Option<&Owner> {
        self.0.get(&uid).filter(|owner| owner.is_fresh())
    }

    /// Returns of how many users something is known.
    pub fn count(&self) -> usize {
        self.0.values().filter(|owner| owner.is_fresh()).count()
    }
}

/// Nothing counts for longer than an hour.
const FRESHEST_MS: u64 = 3_600_000;

impl Owner {
    /// Returns why the identity token counts for nothing, if there is one that does.
    pub fn refused(&self) -> Option<&Failure> {
        self.told.refused.as_ref()
    }

    fn is_fresh(&self) -> bool {
        Instant::now() < self.until
    }
}

impl Person for Owner {
    fn name(&self) -> String {
        match &self.told.name {
            Some(name) => name.escape_debug().to_string(),
            None => format!("uid {}", self.uid),
        }
    }

    fn is(&self, user: &Principal) -> bool {
        match user {
            Principal::Id(uid) => *uid == self.uid,
            Principal::Name(name) => self.told.name.as_ref() == Some(name),
        }
    }

    fn is_in(&self, group: &Principal) -> bool {
        self.told.groups.contains(group)
    }

    fn has_claim(&self, value: &str) -> bool {
        self.told.claims.iter().any(|claim| claim == value)
    }

    fn refusal(&self) -> Option<&str> {
        self.refused().map(|why| &*why.user)
    }
}
