//! Services that a test plays in place of those that run beside Flux: what was asked of them, and what they answer.
//!
//! A topic is answered at once, or its requests are held until each is responded to. What was asked of topics that
//! nobody serves is kept as well, so that a test sees that it was asked.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::CString;

use serde_json::Value;

use crate::future::{Done, Failure, Outcome};

/// What becomes of a request.
#[derive(Clone)]
pub enum Act {
    /// It is answered so.
    Answer(Result<Value, Failure>),
    /// It waits to be responded to.
    Hold,
}

/// The services.
#[derive(Default)]
pub struct Stage {
    acts: RefCell<BTreeMap<String, Act>>,
    topics: RefCell<BTreeMap<String, Topic>>,
}

#[derive(Default)]
struct Topic {
    payloads: Vec<Value>,
    /// Requests that wait, by their number; the first is number 1.
    held: BTreeMap<usize, Done>,
}

impl Stage {
    /// Serves a topic from now on, or no longer.
    pub fn play(&self, topic: String, act: Option<Act>) {
        let mut acts = self.acts.borrow_mut();
        match act {
            Some(act) => acts.insert(topic, act),
            None => acts.remove(&topic),
        };
    }

    /// What becomes of a request now, if its topic is served.
    pub fn act(&self, topic: &str) -> Option<Act> {
        self.acts.borrow().get(topic).cloned()
    }

    /// Keeps what was asked and, if the request is held, what is told of the answer.
    pub fn record(&self, topic: &str, payload: Option<&CString>, done: Option<Done>) {
        let text = payload.map(|payload| payload.to_string_lossy().into_owned());
        let payload = text.map_or(Value::Null, |text| {
            serde_json::from_str(&text).unwrap_or(Value::String(text))
        });
        let mut topics = self.topics.borrow_mut();
        let topic = topics.entry(topic.to_owned()).or_default();
        topic.payloads.push(payload);
        topic.held.extend(done.map(|done| (topic.payloads.len(), done)));
    }

    /// The payloads of all requests so far, by topic.
    pub fn requests(&self) -> BTreeMap<String, Vec<Value>> {
        let topics = self.topics.borrow();
        let requests = topics
            .iter()
            .map(|(name, topic)| (name.clone(), topic.payloads.clone()));
        requests.collect()
    }

    /// The payload of the n-th request of a topic, if there were so many.
    pub fn request(&self, topic: &str, n: usize) -> Option<Value> {
        let topics = self.topics.borrow();
        topics.get(topic)?.payloads.get(n.checked_sub(1)?).cloned()
    }

    /// Responds to a request that is held: the n-th of its topic, or the first of those. Returns its payload, or nothing
    /// if it is not held.
    pub fn respond(&self, topic: &str, n: Option<usize>, outcome: Outcome) -> Option<Value> {
        let (done, payload) = {
            let mut topics = self.topics.borrow_mut();
            let topic = topics.get_mut(topic)?;
            let n = n.or_else(|| topic.held.keys().next().copied())?;
            (topic.held.remove(&n)?, topic.payloads[n - 1].clone())
        };
        done(outcome);
        Some(payload)
    }

    /// Ends all that is held: nobody waits for an answer that does not come.
    pub fn close(&self) {
        let topics = self.topics.take();
        for done in topics.into_values().flat_map(|topic| topic.held.into_values()) {
            done(Err(Failure::new(libc::ENOSYS, "the instance was shut down")));
        }
    }
}
