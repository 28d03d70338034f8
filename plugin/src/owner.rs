//! Who the job owner is: names and groups, which only the name service knows, and which may take long to tell.

use std::{
    collections::{HashMap, HashSet},
    ffi::CString,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use config::{Config, Principal};
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

/// How long an answer counts. A new membership is seen after this time at the latest.
const FRESH: Duration = Duration::from_secs(60);

/// What the name service says of a job owner, as far as any rule asks.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    /// The user name, where the uid has one.
    pub name: Option<String>,
    groups: HashSet<Principal>,
}

impl Owner {
    pub fn is(&self, user: &Principal) -> bool {
        matches!(user, Principal::Name(name) if self.name.as_ref() == Some(name))
    }

    pub fn is_in(&self, group: &Principal) -> bool {
        self.groups.contains(group)
    }
}

/// Answers of the name service, by uid. Its lock is never held while the name service is asked.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    cache: Mutex<HashMap<u32, (Instant, Owner)>>,
    /// The groups that rules name.
    wanted: Vec<Principal>,
}

impl Owners {
    pub fn new(config: &Config) -> Self {
        let wanted = config
            .rules
            .iter()
            .filter_map(|rule| rule.conditions.group.clone())
            .collect();
        Self {
            wanted,
            ..Self::default()
        }
    }

    /// What is known already.
    pub fn known(&self, uid: u32) -> Option<Owner> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache
            .get(&uid)
            .filter(|(at, _)| at.elapsed() < FRESH)
            .map(|(_, owner)| owner.clone())
    }

    /// Asks the name service. Blocks.
    ///
    /// # Errors
    /// What failed, in words for the operator.
    pub fn look_up(&self, uid: u32) -> Result<Owner, String> {
        if let Some(owner) = self.known(uid) {
            return Ok(owner);
        }
        let user = User::from_uid(Uid::from_raw(uid)).map_err(|e| format!("uid {uid} could not be looked up: {e}"))?;
        let mut owner = Owner {
            name: user.as_ref().map(|user| user.name.clone()),
            groups: HashSet::new(),
        };
        if let (Some(user), false) = (user, self.wanted.is_empty()) {
            let name = CString::new(user.name).map_err(|_| format!("uid {uid} has a NUL in its name"))?;
            let gids = getgrouplist(&name, user.gid).map_err(|e| format!("the groups of uid {uid}: {e}"))?;
            for group in &self.wanted {
                let gid = match group {
                    Principal::Id(gid) => Some(Gid::from_raw(*gid)),
                    Principal::Name(name) => Group::from_name(name)
                        .map_err(|e| format!("group {name}: {e}"))?
                        .map(|group| group.gid),
                };
                if gid.is_some_and(|gid| gids.contains(&gid)) {
                    owner.groups.insert(group.clone());
                }
            }
        }
        if owner.name.is_none() {
            // Perhaps it is known in a moment.
            return Ok(owner);
        }
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.retain(|_, (at, _)| at.elapsed() < FRESH);
        cache.insert(uid, (Instant::now(), owner.clone()));
        Ok(owner)
    }
}
