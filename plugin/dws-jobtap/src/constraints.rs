// SPDX-License-Identifier: MIT OR Apache-2.0

//! The constraints of a job's resources (RFC 31) when the service excludes rabbits that are down.

use serde_json::{Value, json};

/// Returns the constraints of a job combined with those that the service adds. If the job may also run on rabbits
/// themselves (`allow_rabbits`), rabbits are an alternative, because the service excludes the compute nodes of a
/// rabbit.
pub fn combine(old: Option<Value>, add: Value, allow_rabbits: bool) -> Value {
    let both = match old {
        None => add,
        Some(old) => json!({ "and": [old, add] }),
    };
    if allow_rabbits {
        json!({ "or": [{ "properties": ["rabbit"] }, both] })
    } else {
        both
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constraints_are_added_to_what_the_job_has() {
        let add = json!({ "not": [{ "properties": ["badrabbit"] }] });
        let old = json!({ "hostlist": ["a"] });
        assert_eq!(combine(None, add.clone(), false), add);
        assert_eq!(
            combine(Some(old.clone()), add.clone(), false),
            json!({ "and": [old, add] })
        );
        assert_eq!(
            combine(None, add.clone(), true),
            json!({ "or": [{ "properties": ["rabbit"] }, add] })
        );
    }
}
