//! Who the job owner is: names, groups and claims, which only the name service and the user's identity token tell, and
//! which may take long to know.

use std::{
    collections::{HashMap, HashSet},
    ffi::CString,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use config::{Config, Identity, Person, Principal, Values};
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use source::Claimed;

use crate::work::Failure;

/// How long an answer counts. A new membership is seen after this time at the latest.
const FRESH: Duration = Duration::from_secs(60);

/// How long answers are kept fresh for a user of whom nobody has asked.
const KEPT: Duration = Duration::from_secs(3600);

/// How often they are: often enough that none is too old in between.
pub(crate) const REFRESH: Duration = Duration::from_secs(30);

/// How many users of projects are looked up in advance.
const AHEAD: usize = 1000;

/// What is said of a job owner by the name service, as far as any rule or project asks, and by the identity token.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    uid: u32,
    /// When that was said.
    at: Instant,
    /// The user name, where the uid has one.
    pub name: Option<String>,
    groups: HashSet<Principal>,
    claims: HashSet<String>,
    /// Why the identity token that there is counts for nothing.
    pub refused: Option<Failure>,
    /// When the claims end.
    until: Option<SystemTime>,
}

impl Owner {
    /// Whether it counts still.
    pub fn is_fresh(&self) -> bool {
        self.at.elapsed() < FRESH && self.until.is_none_or(|until| until > SystemTime::now())
    }
}

impl Person for Owner {
    fn name(&self) -> String {
        match &self.name {
            Some(name) => name.escape_debug().to_string(),
            None => format!("uid {}", self.uid),
        }
    }

    fn is(&self, user: &Principal) -> bool {
        match user {
            Principal::Id(uid) => *uid == self.uid,
            Principal::Name(name) => self.name.as_ref() == Some(name),
        }
    }

    fn is_in(&self, group: &Principal) -> bool {
        self.groups.contains(group)
    }

    fn has_claim(&self, value: &str) -> bool {
        self.claims.contains(value)
    }

    fn refusal(&self) -> Option<&str> {
        self.refused.as_ref().map(|why| &*why.user)
    }
}

/// A verified identity token: its claims, and when it expires.
pub(crate) struct Verified {
    pub claims: serde_json::Value,
    pub until: Option<SystemTime>,
}

/// Verifies identity tokens. What it says of one that is refused has nothing of the token.
pub(crate) type Verify = Box<dyn Fn(&str) -> Result<Verified, Failure> + Send + Sync>;

/// Answers, by uid. Its lock is never held while somebody is asked.
#[derive(Default)]
pub(crate) struct Owners {
    cache: Mutex<HashMap<u32, Entry>>,
    /// The groups that rules and projects name.
    wanted: Vec<Principal>,
    identity: Option<(Identity, Verify)>,
}

struct Entry {
    /// When somebody last wanted to know.
    used: Instant,
    owner: Arc<Owner>,
}

impl Owners {
    /// For a configuration. `verify` is for the identity tokens, where projects ask for their claims.
    pub fn new(config: &Config, verify: Option<Verify>) -> Self {
        let rules = config.rules.iter();
        let wanted: HashSet<&Principal> = rules
            .filter_map(|rule| rule.conditions.group.as_ref())
            .chain(config.projects.groups())
            .collect();
        Self {
            cache: Mutex::default(),
            wanted: wanted.into_iter().cloned().collect(),
            identity: config.projects.identity().cloned().zip(verify),
        }
    }

    /// What is known already.
    pub fn known(&self, uid: u32) -> Option<Arc<Owner>> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = cache.get_mut(&uid)?;
        entry.used = Instant::now();
        entry.owner.is_fresh().then(|| Arc::clone(&entry.owner))
    }

    /// Of how many users something is known.
    pub fn count(&self) -> usize {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.values().filter(|entry| entry.owner.is_fresh()).count()
    }

    /// Finds out what is not known yet. Blocks.
    ///
    /// # Errors
    /// What failed, in words for the operator.
    pub fn look_up(&self, uid: u32) -> Result<Arc<Owner>, String> {
        match self.known(uid) {
            Some(owner) => Ok(owner),
            None => self.ask(uid, true),
        }
    }

    /// Asks again for the users about whom somebody wanted to know, before that is too old. Blocks. Ends early where `go_on`
    /// says so.
    pub fn refresh(&self, go_on: impl Fn() -> bool) {
        let uids: Vec<u32> = {
            let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            let due = cache
                .iter()
                .filter(|(_, entry)| entry.owner.at.elapsed() >= REFRESH / 2);
            due.map(|(uid, _)| *uid).collect()
        };
        for uid in uids {
            if !go_on() {
                return;
            }
            // One that fails is asked for again when it is needed.
            let _ = self.ask(uid, false);
        }
    }

    /// Looks the users up that projects name, and the members that the name service lists for their groups, so that it is
    /// known who they are when they submit jobs. Blocks. Ends early where `go_on` says so.
    pub fn look_ahead(&self, config: &Config, go_on: impl Fn() -> bool) {
        let mut left = AHEAD;
        let mut look_up = |uid: u32| {
            left = left.saturating_sub(1);
            let _ = self.look_up(uid);
            left > 0 && go_on()
        };
        let by_name = |name: &str| User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
        for user in config.projects.users() {
            let uid = match user {
                Principal::Id(uid) => Some(*uid),
                Principal::Name(name) => by_name(name),
            };
            if uid.is_some_and(|uid| !look_up(uid)) {
                return;
            }
        }
        for group in config.projects.groups() {
            let found = match group {
                Principal::Id(gid) => Group::from_gid(Gid::from_raw(*gid)),
                Principal::Name(name) => Group::from_name(name),
            };
            for name in found.ok().flatten().map(|group| group.mem).unwrap_or_default() {
                if by_name(&name).is_some_and(|uid| !look_up(uid)) {
                    return;
                }
            }
        }
    }

    /// Asks the name service, and reads the identity token. Blocks.
    fn ask(&self, uid: u32, used: bool) -> Result<Arc<Owner>, String> {
        let user = User::from_uid(Uid::from_raw(uid)).map_err(|e| format!("uid {uid} could not be looked up: {e}"))?;
        let mut owner = Owner {
            uid,
            at: Instant::now(),
            name: user.as_ref().map(|user| user.name.clone()),
            groups: HashSet::new(),
            claims: HashSet::new(),
            refused: None,
            until: None,
        };
        let Some(user) = user else {
            // Perhaps it is known in a moment.
            return Ok(Arc::new(owner));
        };
        if !self.wanted.is_empty() {
            let name = CString::new(&*user.name).map_err(|_| format!("uid {uid} has a NUL in its name"))?;
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
        self.identify(&mut owner, &user.name);
        // However long that took: who waits for it would have it asked again and again.
        owner.at = Instant::now();
        let owner = Arc::new(owner);
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        cache.retain(|_, entry| entry.used.elapsed() < KEPT);
        let former = cache.get(&uid).map(|entry| entry.used);
        let entry = Entry {
            used: former.filter(|_| !used).unwrap_or(now),
            owner: Arc::clone(&owner),
        };
        cache.insert(uid, entry);
        Ok(owner)
    }

    /// Adds what the identity token says. One that cannot be used says nothing, and why.
    fn identify(&self, owner: &mut Owner, name: &str) {
        let Some((identity, verify)) = &self.identity else {
            return;
        };
        let user = Values::of_user(owner.uid, Some(name.to_owned()));
        let verified = match source::read_identity(identity, &user) {
            Ok(None) => return,
            Ok(Some(token)) => verify(&token),
            Err(e) => Err(Failure::new(e.summary(), e.to_string())),
        };
        match verified.map(|verified| (source::claimed(identity, name, &verified.claims), verified.until)) {
            Ok((Claimed::Values(values), until)) => {
                owner.claims = values.into_iter().collect();
                owner.until = until;
            }
            Ok((Claimed::Other, _)) => {
                let claim = identity.user.escape_debug();
                let detail = format!("it is the token of another user: its claim {claim} is not {name}");
                owner.refused = Some(Failure::new("it is the token of another user", detail));
            }
            Err(why) => owner.refused = Some(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_count_until_their_token_expires_and_no_longer() {
        let now = SystemTime::now();
        let owners = Owners::default();
        for (uid, until, counts) in [
            (1, None, true),
            (2, Some(now + FRESH), true),
            (3, Some(now), false),
            (4, Some(SystemTime::UNIX_EPOCH), false),
        ] {
            let owner = Owner {
                uid,
                at: Instant::now(),
                name: Some("alice".to_owned()),
                groups: HashSet::new(),
                claims: HashSet::from(["fusion-team".to_owned()]),
                refused: None,
                until,
            };
            let used = Instant::now();
            owners.cache.lock().unwrap().insert(
                uid,
                Entry {
                    used,
                    owner: Arc::new(owner),
                },
            );
            assert_eq!(owners.known(uid).is_some(), counts, "{uid}");
        }
    }
}
