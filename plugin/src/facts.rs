//! What a callback's arguments and the cache of job owners tell of a job, for the choice of its rule.

use config::{AttributePath, Facts, Principal};
use ffi::Args;

use crate::owner::Owner;

/// A job as its callback shows it.
pub(crate) struct JobFacts<'a> {
    pub args: &'a Args<'a>,
    pub uid: u32,
    /// What is known of the job owner, if that was looked up not long ago.
    pub owner: Option<Owner>,
}

impl Facts for JobFacts<'_> {
    fn has_attribute(&self, path: &AttributePath) -> Option<bool> {
        let mut keys = vec!["jobspec", "attributes"];
        keys.extend(path.components().iter().map(String::as_str));
        Some(self.args.has(&keys))
    }

    fn system_is(&self, key: &str, value: &str) -> Option<bool> {
        Some(self.args.string(&["jobspec", "attributes", "system", key]).as_deref() == Some(value))
    }

    fn owner_is(&self, user: &Principal) -> Option<bool> {
        match user {
            Principal::Id(uid) => Some(*uid == self.uid),
            Principal::Name(_) => self.owner.as_ref().map(|owner| owner.is(user)),
        }
    }

    fn owner_in(&self, group: &Principal) -> Option<bool> {
        self.owner.as_ref().map(|owner| owner.is_in(group))
    }
}

/// A job of which everything is known, but by way of what was asked before: for the rules that were left open.
pub(crate) struct OwnerFacts<'a> {
    pub uid: u32,
    pub owner: &'a Owner,
}

impl Facts for OwnerFacts<'_> {
    fn has_attribute(&self, _: &AttributePath) -> Option<bool> {
        Some(true)
    }

    fn system_is(&self, _: &str, _: &str) -> Option<bool> {
        Some(true)
    }

    fn owner_is(&self, user: &Principal) -> Option<bool> {
        match user {
            Principal::Id(uid) => Some(*uid == self.uid),
            Principal::Name(_) => Some(self.owner.is(user)),
        }
    }

    fn owner_in(&self, group: &Principal) -> Option<bool> {
        Some(self.owner.is_in(group))
    }
}
