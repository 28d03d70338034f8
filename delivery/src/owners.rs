// SPDX-License-Identifier: MIT OR Apache-2.0

//! Job owners: names, groups and claims, from the name service and from the user's identity token.

use std::{
    collections::{HashMap, HashSet},
    ffi::CString,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use config::{Config, Identity, Person, Principal, Values};
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use protocol::{Code, Failure};
use tokio::task::JoinSet;

use crate::lookups::Lookups;

/// The time after which a look-up expires. A new membership is effective after this time at the latest.
const FRESH: Duration = Duration::from_secs(60);

/// The same for an incomplete look-up.
const FRESH_IF_INCOMPLETE: Duration = Duration::from_secs(1);

/// The time after its last use during which a user is kept fresh.
const KEPT: Duration = Duration::from_secs(3600);

/// The interval of refreshes: shorter than [`FRESH`], so that no look-up expires between two of them.
pub(crate) const REFRESH: Duration = Duration::from_secs(30);

/// The most project members that are looked up in advance.
const AHEAD: usize = 1000;

/// The number of concurrent look-ups in advance.
const PARALLEL: usize = 8;

/// The job owner: the facts from the name service that rules and projects need, and the claims of the identity token.
#[derive(Debug, Clone)]
pub struct Owner {
    uid: u32,
    /// The time of the look-up.
    at: Instant,
    /// The user name, if the uid has one.
    pub name: Option<String>,
    groups: HashSet<Principal>,
    /// The groups in rules and projects that the name service does not know.
    pub unknown_groups: HashSet<Principal>,
    claims: HashSet<String>,
    /// The reason why the identity token is not accepted.
    pub refused: Option<Failure>,
    /// The time when the claims expire.
    until: Option<SystemTime>,
}

impl Owner {
    /// Returns the uid.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Returns whether the look-up is still valid.
    pub fn is_fresh(&self) -> bool {
        !self.fresh_for().is_zero()
    }

    /// Returns how long the look-up remains valid.
    fn fresh_for(&self) -> Duration {
        // A missing user may appear soon, and an identity token may be repaired soon.
        let is_whole = self.name.is_some() && self.refused.is_none();
        let fresh = if is_whole { FRESH } else { FRESH_IF_INCOMPLETE }.saturating_sub(self.at.elapsed());
        fresh.min(self.claims_left().unwrap_or(fresh))
    }

    /// Returns how long the claims remain valid; none without claims.
    fn claims_left(&self) -> Option<Duration> {
        self.until
            .map(|until| until.duration_since(SystemTime::now()).unwrap_or_default())
    }

    /// Returns the message for a plugin.
    pub fn to_message(&self) -> protocol::Owner {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        protocol::Owner {
            name: self.name.clone(),
            groups: self.groups.iter().cloned().collect(),
            claims: self.claims.iter().cloned().collect(),
            claims_ms: self.claims_left().map(millis),
            refused: self.refused.clone(),
            fresh_ms: millis(self.fresh_for()),
        }
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

/// A verified identity token: its claims, and its expiry.
pub(crate) struct Verified {
    pub claims: serde_json::Value,
    pub until: Option<SystemTime>,
}

/// Verifies identity tokens. An error contains nothing of the token.
pub(crate) type Verify = Box<dyn Fn(&str) -> Result<Verified, Failure> + Send + Sync>;

/// The users of one configuration, by uid. Its lock is never held during a look-up.
pub(crate) struct Owners {
    cache: Mutex<HashMap<u32, Entry>>,
    /// The groups that rules, projects and grants name.
    wanted: Vec<Principal>,
    identity: Option<(Identity, Verify)>,
    /// The timeout of a look-up.
    limit: Duration,
    lookups: Arc<Lookups>,
    tell: Tell,
}

/// Called with each user that was looked up.
pub type Tell = Box<dyn Fn(u32, &Owner) + Send + Sync>;

struct Entry {
    /// The time of the last use.
    used: Instant,
    owner: Arc<Owner>,
}

impl Owners {
    /// Returns the users of a configuration. `verify` verifies identity tokens, if projects need their claims.
    pub fn new(config: &Config, verify: Option<Verify>, lookups: Arc<Lookups>, tell: Tell) -> Self {
        let rules = config.rules.iter();
        let wanted: HashSet<&Principal> = rules
            .filter_map(|rule| rule.conditions.group.as_ref())
            .chain(config.projects.groups())
            .chain(
                config
                    .agent
                    .service
                    .iter()
                    .flat_map(|service| &service.grants)
                    .flat_map(|grant| &grant.groups),
            )
            .collect();
        Self {
            cache: Mutex::default(),
            wanted: wanted.into_iter().cloned().collect(),
            identity: config.projects.identity().cloned().zip(verify),
            limit: config.timeout,
            lookups,
            tell,
        }
    }

    /// Returns the user, from the cache or after a look-up.
    ///
    /// # Errors
    /// For the operator: what failed or timed out.
    pub async fn look_up(self: &Arc<Self>, uid: u32) -> Result<Arc<Owner>, String> {
        match self.used(uid) {
            Some(owner) => Ok(owner),
            None => self.run(uid, true).await,
        }
    }

    /// Looks up the users in the cache again before their look-ups expire.
    pub async fn refresh(self: &Arc<Self>) {
        let uids: Vec<u32> = {
            let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            let due = cache
                .iter()
                .filter(|(_, entry)| entry.owner.at.elapsed() >= REFRESH / 2);
            due.map(|(uid, _)| *uid).collect()
        };
        self.look_all_up(uids, false).await;
    }

    /// Looks up the users that projects name, and the members that the name service lists for their groups, so that
    /// they are known when they submit jobs.
    pub async fn look_ahead(self: &Arc<Self>, projects: &config::Projects) {
        let users: Vec<Principal> = projects.users().cloned().collect();
        let groups: Vec<Principal> = projects.groups().cloned().collect();
        // No job waits for this look-up, and it belongs to no user.
        let members = self.lookups.run(u32::MAX, self.limit, move || members(&users, &groups));
        let unknown = |uid: &u32| self.known(*uid).is_none();
        let uids = members.await.unwrap_or_default().into_iter().filter(unknown).collect();
        self.look_all_up(uids, true).await;
    }

    /// Looks up users concurrently. A hung look-up does not delay the others. A user whose look-up fails is looked up
    /// again when a job needs it.
    async fn look_all_up(self: &Arc<Self>, uids: Vec<u32>, used: bool) {
        let mut under_way = JoinSet::new();
        let mut uids = uids.into_iter();
        loop {
            while under_way.len() < PARALLEL
                && let Some(uid) = uids.next()
            {
                let owners = Arc::clone(self);
                under_way.spawn(async move { owners.run(uid, used).await });
            }
            if under_way.join_next().await.is_none() {
                return;
            }
        }
    }

    async fn run(self: &Arc<Self>, uid: u32, used: bool) -> Result<Arc<Owner>, String> {
        let owners = Arc::clone(self);
        let asked = Instant::now();
        let look_up = move || match owners.known(uid).filter(|owner| owner.at > asked) {
            // A look-up that began after this call has ended meanwhile.
            Some(owner) => Ok(owner),
            None => owners.ask(uid, used),
        };
        self.lookups.run(uid, self.limit, look_up).await?
    }

    /// Returns a user whose look-up is valid, and keeps the user fresh for another hour.
    fn used(&self, uid: u32) -> Option<Arc<Owner>> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.get_mut(&uid)?.used = Instant::now();
        drop(cache);
        self.known(uid)
    }

    /// Returns a user whose look-up is valid.
    fn known(&self, uid: u32) -> Option<Arc<Owner>> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let owner = &cache.get(&uid)?.owner;
        owner.is_fresh().then(|| Arc::clone(owner))
    }

    /// Queries the name service, and reads the identity token. Blocks.
    fn ask(&self, uid: u32, used: bool) -> Result<Arc<Owner>, String> {
        let user = User::from_uid(Uid::from_raw(uid)).map_err(|e| format!("uid {uid} could not be looked up: {e}"))?;
        let mut owner = Owner {
            uid,
            at: Instant::now(),
            name: user.as_ref().map(|user| user.name.clone()),
            groups: HashSet::new(),
            unknown_groups: HashSet::new(),
            claims: HashSet::new(),
            refused: None,
            until: None,
        };
        let Some(user) = user else {
            // Do not cache: the name service may know the user soon.
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
                match gid {
                    Some(gid) if gids.contains(&gid) => owner.groups.insert(group.clone()),
                    Some(_) => false,
                    // A name service that cannot reach its server may also report an unknown group.
                    None => owner.unknown_groups.insert(group.clone()),
                };
            }
        }
        self.identify(&mut owner, &user.name);
        // The time counts from the end: otherwise a slow look-up would expire before its callers use it, and be
        // repeated.
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
        drop(cache);
        (self.tell)(uid, &owner);
        Ok(owner)
    }

    /// Adds the claims of the identity token, or the reason why it cannot be used.
    fn identify(&self, owner: &mut Owner, name: &str) {
        let Some((identity, verify)) = &self.identity else {
            return;
        };
        let user = Values::of_user(owner.uid, Some(name.to_owned()));
        let verified = match source::read_identity(identity, &user) {
            Ok(None) => return,
            Ok(Some(token)) => verify(&token),
            Err(e) => Err(Failure::new(Code::SourceFailed, e.summary(), e.to_string())),
        };
        let claimed = verified.and_then(|verified| {
            let claimed = source::claimed(identity, name, &verified.claims);
            let refused = |why| Failure::new(Code::TokenRefused, format!("{why}"), format!("{why}, of user {name}"));
            Ok((claimed.map_err(refused)?, verified.until))
        });
        match claimed {
            Ok((values, until)) => {
                owner.claims = values.into_iter().collect();
                owner.until = until;
            }
            Err(why) => owner.refused = Some(why),
        }
    }
}

/// Returns the uids of these users and of the members of these groups. Blocks.
fn members(users: &[Principal], groups: &[Principal]) -> Vec<u32> {
    let by_name = |name: &str| User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
    let named = users.iter().filter_map(|user| match user {
        Principal::Id(uid) => Some(*uid),
        Principal::Name(name) => by_name(name),
    });
    let found = groups.iter().filter_map(|group| match group {
        Principal::Id(gid) => Group::from_gid(Gid::from_raw(*gid)).ok().flatten(),
        Principal::Name(name) => Group::from_name(name).ok().flatten(),
    });
    let listed = found.flat_map(|group| group.mem).filter_map(|name| by_name(&name));
    let mut seen = HashSet::new();
    named
        .chain(listed)
        .filter(|uid| seen.insert(*uid))
        .take(AHEAD)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owners() -> Owners {
        let config = Config::with_overrides(&serde_json::json!({}), &serde_json::json!({}));
        let config = config.expect("no table is a configuration");
        Owners::new(&config, None, Arc::default(), Box::new(|_, _| ()))
    }

    fn owner(uid: u32, until: Option<SystemTime>) -> Arc<Owner> {
        Arc::new(Owner {
            uid,
            at: Instant::now(),
            name: Some("alice".to_owned()),
            groups: HashSet::new(),
            unknown_groups: HashSet::new(),
            claims: HashSet::from(["fusion-team".to_owned()]),
            refused: None,
            until,
        })
    }

    /// Only jobs keep a user fresh for another hour. Refreshes do not, or they would never end.
    #[test]
    fn kept() {
        let owners = owners();
        let used = Instant::now();
        let owner = owner(1, None);
        owners.cache.lock().unwrap().insert(1, Entry { used, owner });
        let used_at = || owners.cache.lock().unwrap()[&1].used;
        assert!(owners.known(1).is_some() && used_at() == used);
        assert!(owners.used(1).is_some() && used_at() > used);
    }

    #[test]
    fn claims_count_until_their_token_expires_and_no_longer() {
        let now = SystemTime::now();
        let owners = owners();
        for (uid, until, counts) in [
            (1, None, true),
            (2, Some(now + FRESH), true),
            (3, Some(now), false),
            (4, Some(SystemTime::UNIX_EPOCH), false),
        ] {
            let (used, owner) = (Instant::now(), owner(uid, until));
            owners.cache.lock().unwrap().insert(uid, Entry { used, owner });
            assert_eq!(owners.known(uid).is_some(), counts, "{uid}");
        }
    }
}
