//! Whether tokens are still valid, as the agent says. An answer is used for half a second, so that a token whose job has ended is
//! inactive within a second, and services that ask thousands of times a second do not ask the scheduler as often.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use aws_lc_rs::digest::{SHA256, digest};
use protocol::{Answer, Question, TokenFacts, Validity};
use token::Claims;
use tokio::sync::OnceCell;

use crate::agent::AgentClient;

/// The time for which an answer is used.
const FRESH: Duration = Duration::from_millis(500);

/// The most tokens of which answers are kept for this time.
const MOST: usize = 100_000;

/// The answers about tokens.
pub struct Validities {
    agent: AgentClient,
    kept: Mutex<Kept>,
}

/// Answers of the last moments, by a digest of the claims, in two generations: the older one is dropped as a whole.
struct Kept {
    since: Instant,
    young: HashMap<[u8; 32], Arc<Entry>>,
    old: HashMap<[u8; 32], Arc<Entry>>,
}

/// An answer, which the first who needs it asks for.
struct Entry {
    asked: Instant,
    validity: OnceCell<Validity>,
}

impl Validities {
    /// Asks this agent.
    pub fn new(agent: AgentClient) -> Self {
        let kept = Kept {
            since: Instant::now(),
            young: HashMap::new(),
            old: HashMap::new(),
        };
        Self {
            agent,
            kept: Mutex::new(kept),
        }
    }

    /// Returns whether a token that was verified is still valid.
    pub async fn of(&self, claims: &Claims) -> Validity {
        let entry = self.entry(key(claims));
        let asked = entry.validity.get_or_init(|| self.ask(claims));
        asked.await.clone()
    }

    /// Forgets the answer about a token that was revoked.
    pub fn forget(&self, claims: &Claims) {
        let key = key(claims);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.young.remove(&key);
        kept.old.remove(&key);
    }

    fn entry(&self, key: [u8; 32]) -> Arc<Entry> {
        let now = Instant::now();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(kept.since) >= FRESH {
            kept.since = now;
            kept.old = mem::take(&mut kept.young);
        }
        let known = kept.young.get(&key).or_else(|| kept.old.get(&key));
        if let Some(entry) = known.filter(|entry| now.duration_since(entry.asked) < FRESH) {
            return Arc::clone(entry);
        }
        let entry = Arc::new(Entry {
            asked: now,
            validity: OnceCell::new(),
        });
        if kept.young.len() < MOST {
            kept.young.insert(key, Arc::clone(&entry));
        }
        entry
    }

    async fn ask(&self, claims: &Claims) -> Validity {
        let Some(facts) = TokenFacts::of(claims) else {
            return Validity::Unknown("the job id in the token is malformed".to_owned());
        };
        match self.agent.ask(|| Question::Check(facts.clone())).await {
            Ok(Answer::Validity(validity)) => validity,
            Ok(_) => Validity::Unknown("the agent answered another question".to_owned()),
            Err(e) => Validity::Unknown(e),
        }
    }
}

fn key(claims: &Claims) -> [u8; 32] {
    let mut key = [0; 32];
    key.copy_from_slice(digest(&SHA256, claims.as_json().as_bytes()).as_ref());
    key
}
