// SPDX-License-Identifier: MIT OR Apache-2.0

//! Services that a test plays in place of services beside Flux: their requests, and their responses.
//!
//! The stage answers a topic immediately, or holds its requests until the test responds to each. It also records
//! requests of topics that nobody serves, so that a test can see them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::CString;

use serde_json::Value;

use crate::future::{Done, Failure, Outcome};

/// The treatment of a request.
#[derive(Clone)]
pub enum Act {
    /// The request receives this response.
    Answer(Result<Value, Failure>),
    /// The request waits for a response.
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
    /// Held requests, by number. The first number is 1.
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

    /// Returns the current treatment of a request, if its topic is served.
    pub fn act(&self, topic: &str) -> Option<Act> {
        self.acts.borrow().get(topic).cloned()
    }

    /// Records a request and, if it is held, the function that receives the response.
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

    /// Returns the payloads of all requests so far, by topic.
    pub fn requests(&self) -> BTreeMap<String, Vec<Value>> {
        let topics = self.topics.borrow();
        let requests = topics
            .iter()
            .map(|(name, topic)| (name.clone(), topic.payloads.clone()));
        requests.collect()
    }

    /// Returns the payload of the n-th request of a topic, if there were as many.
    pub fn request(&self, topic: &str, n: usize) -> Option<Value> {
        let topics = self.topics.borrow();
        topics.get(topic)?.payloads.get(n.checked_sub(1)?).cloned()
    }

    /// Responds to a held request: the n-th of its topic, or the first that is held. Returns its payload, or None if it
    /// is not held.
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

    /// Fails all held requests, so that nobody waits for ever.
    pub fn close(&self) {
        let topics = self.topics.take();
        for done in topics.into_values().flat_map(|topic| topic.held.into_values()) {
            done(Err(Failure::new(libc::ENOSYS, "the instance was shut down")));
        }
    }
}
