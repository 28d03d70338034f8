// SPDX-License-Identifier: MIT OR Apache-2.0

//! Decides whether a job has a record.
//!
//! The rules are the job manager's. A shell sees the jobspec that the user signed, without later changes, and the
//! groups that its node knows. So, by default, it looks up the record of every job. If the initrc names a copy of the
//! configuration on the node, a missing record is fatal for a job that a rule matches. A shell concludes that no record
//! exists only if no rule can match, whatever was changed. It decides this by the uid of the job owner and by the
//! user's own options.

use config::{AttributePath, Config, Facts, Principal, Property};
use ffi::Shell;
use nix::unistd::{Group, User, getegid, geteuid, getgroups};
use serde_json::Value;

/// The expectation of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expectation {
    /// No record can exist.
    No,
    /// Unknown: a missing record means that no rule matched.
    Maybe,
    /// A missing record is an error.
    Yes,
}

impl Expectation {
    /// Decides by the shell option `workflow-token`.
    pub fn by_option(option: Option<&Value>) -> Option<Self> {
        match option? {
            Value::Bool(false) => Some(Expectation::No),
            Value::Number(n) if n.as_i64() == Some(0) => Some(Expectation::No),
            _ => Some(Expectation::Yes),
        }
    }

    /// Decides by the rules. It does not matter which of them matches.
    pub fn by_rules(config: &Config, job: &dyn Facts) -> Self {
        let mut expectation = Expectation::No;
        for rule in &config.rules {
            match rule.conditions.hold(job) {
                Some(true) => return Expectation::Yes,
                None => expectation = Expectation::Maybe,
                Some(false) => {}
            }
        }
        expectation
    }
}

/// A job as seen by its shell, which runs as the job owner. Facts that may have changed since the user signed the
/// jobspec, or that may differ for the job manager, are unknown.
pub(crate) struct ShellFacts<'a>(pub &'a Shell<'a>);

/// Returns true or unknown: the job manager may know more than this node.
fn if_true(condition: bool) -> Option<bool> {
    condition.then_some(true)
}

impl Facts for ShellFacts<'_> {
    fn has_attribute(&self, path: &AttributePath) -> Option<bool> {
        if_true(self.0.has_attribute(path.components()))
    }

    fn property_is(&self, _: Property, _: &str) -> Option<bool> {
        None
    }

    fn project_is(&self, _: &str) -> Option<bool> {
        None
    }

    fn owner_is(&self, user: &Principal) -> Option<bool> {
        match user {
            Principal::Id(uid) => Some(*uid == geteuid().as_raw()),
            Principal::Name(name) => if_true(User::from_uid(geteuid()).ok()??.name == *name),
        }
    }

    fn owner_in(&self, group: &Principal) -> Option<bool> {
        let gid = match group {
            Principal::Id(gid) => *gid,
            Principal::Name(name) => Group::from_name(name).ok()??.gid.as_raw(),
        };
        let groups = getgroups().ok()?;
        if_true(getegid().as_raw() == gid || groups.iter().any(|group| group.as_raw() == gid))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A job of uid 1000 with one attribute. Nothing else is known about it.
    struct Job;

    impl Facts for Job {
        fn has_attribute(&self, path: &AttributePath) -> Option<bool> {
            if_true(path.components() == ["system", "dw"])
        }
        fn property_is(&self, _: Property, _: &str) -> Option<bool> {
            None
        }
        fn project_is(&self, _: &str) -> Option<bool> {
            None
        }
        fn owner_is(&self, user: &Principal) -> Option<bool> {
            Some(*user == Principal::Id(1000))
        }
        fn owner_in(&self, _: &Principal) -> Option<bool> {
            None
        }
    }

    fn of(rules: &[Value]) -> Expectation {
        let rules: Vec<_> = rules
            .iter()
            .cloned()
            .map(|mut rule| {
                rule["source"] = json!("file");
                rule["path"] = json!("/t");
                rule
            })
            .collect();
        let config = Config::from_json(&json!({"workflow-token": {"rule": rules}})).unwrap();
        Expectation::by_rules(&config, &Job)
    }

    #[test]
    fn only_immutable_facts_rule_out_a_record() {
        for (rules, expected) in [
            (vec![], Expectation::No),
            (vec![json!({"user": 1001})], Expectation::No),
            (vec![json!({"user": 1001, "attribute": "system.dw"})], Expectation::No),
            (vec![json!({"attribute": "system.other"})], Expectation::Maybe),
            (vec![json!({"group": "staff"})], Expectation::Maybe),
            (
                vec![json!({"queue": "debug"}), json!({"user": 1001})],
                Expectation::Maybe,
            ),
            (vec![json!({"group": "staff"}), json!({"user": 1000})], Expectation::Yes),
            (vec![json!({"attribute": "system.dw"})], Expectation::Yes),
        ] {
            assert_eq!(of(&rules), expected, "{rules:?}");
        }
    }

    #[test]
    fn the_shell_option_overrides_the_rules() {
        for (option, expected) in [
            (None, None),
            (Some(json!(false)), Some(Expectation::No)),
            (Some(json!(0)), Some(Expectation::No)),
            (Some(json!(1)), Some(Expectation::Yes)),
            (Some(json!("x")), Some(Expectation::Yes)),
        ] {
            assert_eq!(Expectation::by_option(option.as_ref()), expected, "{option:?}");
        }
    }
}
