// SPDX-License-Identifier: MIT OR Apache-2.0

//! The validity of tokens, as the agent reports it. Replies are cached for half a second: a token whose job has ended
//! becomes inactive within a second, and thousands of checks per second do not load the scheduler. The reply about an active
//! token is requested again before it is too old, so that no check waits for it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use protocol::{Answer, Question, TokenFacts, Validity};
use token::Claims;
use tokio::sync::OnceCell;

use crate::{
    agent::AgentClient,
    recent::{Recent, key},
};

/// How long a reply is cached.
const FRESH: Duration = Duration::from_millis(500);

/// The age at which the next reply is requested.
const AHEAD: Duration = Duration::from_millis(250);

/// The maximum number of cached replies.
const MOST: usize = 100_000;

/// The cached validity of tokens.
pub struct Validities {
    agent: AgentClient,
    kept: Recent<Arc<Entry>>,
}

/// A reply, which the first caller requests.
struct Entry {
    asked: Instant,
    validity: OnceCell<Validity>,
    /// When the previous reply was requested, if the token was active.
    active: Option<Instant>,
}

impl Entry {
    /// Returns the entry that replaces `former`.
    fn after(former: Option<&Arc<Self>>) -> Arc<Self> {
        let active = former.filter(|former| former.validity.get() == Some(&Validity::Active));
        Arc::new(Self {
            asked: Instant::now(),
            validity: OnceCell::new(),
            active: active.map(|former| former.asked),
        })
    }

    /// Returns whether the next reply need not be requested yet.
    fn is_recent(&self) -> bool {
        let limit = if self.validity.initialized() { AHEAD } else { FRESH };
        self.asked.elapsed() < limit
    }

    /// Returns the reply that can be used now, if any.
    fn answer(&self) -> Option<Validity> {
        let is_active = || self.active.is_some_and(|asked| asked.elapsed() < FRESH);
        let known = self.validity.get().cloned();
        known.or_else(|| is_active().then_some(Validity::Active))
    }
}

impl Validities {
    /// Returns an empty cache of an agent's replies.
    pub fn new(agent: AgentClient) -> Self {
        Self {
            agent,
            kept: Recent::new(FRESH, MOST),
        }
    }

    /// Returns whether a verified token is still valid.
    pub async fn of(&self, claims: &Claims) -> Validity {
        let mut made = false;
        let entry = self.kept.get_or_make(
            key(claims.as_json()),
            |entry| entry.is_recent(),
            |former| {
                made = true;
                Entry::after(former)
            },
        );
        let Some(answer) = entry.answer() else {
            return entry.validity.get_or_init(|| ask(&self.agent, claims)).await.clone();
        };
        if made {
            let (agent, claims) = (self.agent.clone(), claims.clone());
            tokio::spawn(async move {
                entry.validity.get_or_init(|| ask(&agent, &claims)).await;
            });
        }
        answer
    }

    /// Drops the cached reply about a token that was revoked.
    pub fn forget(&self, claims: &Claims) {
        self.kept.remove(&key(claims.as_json()));
    }
}

async fn ask(agent: &AgentClient, claims: &Claims) -> Validity {
    let Some(facts) = TokenFacts::of(claims) else {
        return Validity::Unknown("the job id in the token is malformed".to_owned());
    };
    match agent.ask(|| Question::Check(facts.clone())).await {
        Ok(Answer::Validity(validity)) => validity,
        Ok(_) => Validity::Unknown("the agent answered another question".to_owned()),
        Err(e) => Validity::Unknown(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(age: Duration, validity: Option<Validity>) -> Arc<Entry> {
        let asked = Instant::now().checked_sub(age).expect("a time before");
        Arc::new(Entry {
            asked,
            validity: OnceCell::new_with(validity),
            active: None,
        })
    }

    #[test]
    fn nobody_waits_for_the_next_answer_about_an_active_token() {
        let former = entry(AHEAD, Some(Validity::Active));
        assert!(!former.is_recent());
        let next = Entry::after(Some(&former));
        assert_eq!((next.is_recent(), next.answer()), (true, Some(Validity::Active)));
        next.validity.set(Validity::Revoked).expect("it was not set");
        assert_eq!(next.answer(), Some(Validity::Revoked));
    }

    #[test]
    fn an_answer_is_used_no_longer_than_half_a_second() {
        for validity in [Some(Validity::Revoked), Some(Validity::Unknown(String::new())), None] {
            assert_eq!(Entry::after(Some(&entry(AHEAD, validity))).answer(), None);
        }
        assert_eq!(Entry::after(Some(&entry(FRESH, Some(Validity::Active)))).answer(), None);
        assert_eq!(Entry::after(None).answer(), None);
        // Its use while the next one is requested does not extend it.
        let former = entry(AHEAD, Some(Validity::Active));
        let next = Entry::after(Some(&former));
        assert_eq!(Entry::after(Some(&next)).answer(), None);
    }
}
