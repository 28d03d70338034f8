// SPDX-License-Identifier: MIT OR Apache-2.0

//! Decides on the node, without the agent, whether a job may receive a token.
//!
//! The rules are the agent's. With its copy of the rules, a node skips jobs that no rule can match, even if the agent
//! is unreachable. It decides only by facts that are the same everywhere: the uid of the job owner, and the cluster.
//! The agent may see other groups, accounts and values of a step's environment.

use config::{AttributePath, Facts, Principal, Property};
use nix::unistd::{Uid, User};
use slurm::Site;

/// Returns whether a rule may match a job of this user.
pub fn may_match(site: &Site, uid: u32) -> bool {
    !candidates(site, uid).is_empty()
}

/// Returns the rules that may match a job of this user.
pub fn candidates(site: &Site, uid: u32) -> Vec<usize> {
    site.config.candidates(&NodeFacts {
        uid,
        cluster: &site.slurm.cluster,
    })
}

struct NodeFacts<'a> {
    uid: u32,
    cluster: &'a str,
}

impl Facts for NodeFacts<'_> {
    fn has_attribute(&self, _: &AttributePath) -> Option<bool> {
        None
    }

    fn property_is(&self, property: Property, value: &str) -> Option<bool> {
        (property == Property::Cluster).then_some(value == self.cluster)
    }

    fn project_is(&self, _: &str) -> Option<bool> {
        None
    }

    fn owner_is(&self, user: &Principal) -> Option<bool> {
        match user {
            Principal::Id(uid) => Some(*uid == self.uid),
            // The agent may know a name that this node does not know.
            Principal::Name(name) => Some(User::from_name(name).ok()??.uid == Uid::from_raw(self.uid)),
        }
    }

    fn owner_in(&self, _: &Principal) -> Option<bool> {
        None
    }
}

#[cfg(test)]
mod tests {
    use config::Config;
    use serde_json::{Value, json};

    use super::*;

    fn may_match_of(rule: Value, uid: u32) -> bool {
        let slurm = json!({"cluster": "hpc", "servers": "ctl"});
        let mut rule = rule;
        rule["source"] = json!("file");
        rule["path"] = json!("/t");
        let config = Config::from_json(&json!({"workflow-token": {"slurm": slurm, "rule": [rule]}})).unwrap();
        let slurm = config.slurm.clone().unwrap();
        may_match(
            &Site {
                config,
                slurm,
                conf: Value::Null,
            },
            uid,
        )
    }

    #[test]
    fn only_facts_that_are_the_same_everywhere_rule_out_a_token() {
        for (rule, uid, expected) in [
            (json!({}), 1000, true),
            (json!({"user": 1000}), 1000, true),
            (json!({"user": 1000}), 1001, false),
            (json!({"user": "root"}), 0, true),
            (json!({"user": "root"}), 1001, false),
            (json!({"user": "nobody-here"}), 1001, true),
            (json!({"group": "root"}), 1001, true),
            (json!({"partition": "debug"}), 1001, true),
            (json!({"cluster": "hpc"}), 1001, true),
            (json!({"cluster": "other"}), 1001, false),
            (json!({"account": "a", "user": 1000}), 1001, false),
        ] {
            assert_eq!(may_match_of(rule.clone(), uid), expected, "{rule} {uid}");
        }
    }
}
