// SPDX-License-Identifier: MIT OR Apache-2.0

//! The facts of a job that rules refer to, on the reactor thread.

use config::{Asked, AttributePath, Facts, Person, Principal, Projects, Property};
use ffi::Args;

use crate::owners::Owner;

/// A job, as the arguments of a callback describe it.
#[derive(Clone, Copy)]
pub(crate) struct JobFacts<'a> {
    pub args: &'a Args<'a>,
    pub uid: u32,
    pub projects: &'a Projects,
    pub asked: &'a Asked,
    /// The job owner; none if unknown.
    pub owner: Option<&'a Owner>,
}

impl Facts for JobFacts<'_> {
    fn has_attribute(&self, path: &AttributePath) -> Option<bool> {
        let mut keys = vec!["jobspec", "attributes"];
        keys.extend(path.components().iter().map(String::as_str));
        Some(self.args.has(&keys))
    }

    fn property_is(&self, property: Property, value: &str) -> Option<bool> {
        let path = ["jobspec", "attributes", "system", property.key()];
        Some(self.args.string_bounded(&path, config::MAX_NAME).as_deref() == Some(value))
    }

    fn project_is(&self, name: &str) -> Option<bool> {
        match self.asked {
            Asked::Project(asked) => Some(asked == name),
            Asked::Malformed => Some(false),
            Asked::Nothing if self.projects.is_empty() => Some(false),
            Asked::Nothing => {
                let project = self.projects.of_job(self.asked, self.owner?);
                Some(project.is_ok_and(|project| project.is_some_and(|project| project.name == name)))
            }
        }
    }

    fn owner_is(&self, user: &Principal) -> Option<bool> {
        match user {
            Principal::Id(uid) => Some(*uid == self.uid),
            Principal::Name(_) => self.owner.map(|owner| owner.is(user)),
        }
    }

    fn owner_in(&self, group: &Principal) -> Option<bool> {
        self.owner.map(|owner| owner.is_in(group))
    }
}
