// SPDX-License-Identifier: MIT OR Apache-2.0

//! Event logs, as in RFC 18: one JSON object per line, with a timestamp, a name and an optional context.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// One event.
#[derive(Clone)]
pub struct Entry {
    /// Seconds since the epoch.
    pub timestamp: f64,
    /// The name of the event.
    pub name: String,
    /// An object, or null.
    pub context: Value,
}

impl Entry {
    /// Creates an event with the current time.
    pub fn now(name: &str, context: Value) -> Entry {
        Entry {
            timestamp: now(),
            name: name.to_owned(),
            context,
        }
    }

    /// Returns the line of the event, with its members in Flux's order.
    pub fn line(&self) -> String {
        let name = json!(self.name);
        match &self.context {
            Value::Null => format!("{{\"timestamp\":{},\"name\":{name}}}\n", self.timestamp),
            context => format!(
                "{{\"timestamp\":{},\"name\":{name},\"context\":{context}}}\n",
                self.timestamp
            ),
        }
    }

    /// Returns the event as a JSON object.
    pub fn object(&self) -> Value {
        match &self.context {
            Value::Null => json!({"timestamp": self.timestamp, "name": self.name}),
            context => json!({"timestamp": self.timestamp, "name": self.name, "context": context}),
        }
    }

    fn parse(line: &str) -> Option<Entry> {
        let Value::Object(mut object) = serde_json::from_str(line).ok()? else {
            return None;
        };
        let context = object.remove("context").unwrap_or(Value::Null);
        if !context.is_object() && !context.is_null() {
            return None;
        }
        let name = object.get("name")?.as_str()?.to_owned();
        Some(Entry {
            timestamp: object.get("timestamp")?.as_f64()?,
            name,
            context,
        })
    }
}

/// Returns the events of a log, or None if a line is malformed or truncated.
pub fn decode(text: &str) -> Option<Vec<Entry>> {
    if !text.is_empty() && !text.ends_with('\n') {
        return None;
    }
    text.lines().map(Entry::parse).collect()
}

/// Returns the seconds since the epoch.
pub fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}
