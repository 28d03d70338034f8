// SPDX-License-Identifier: MIT OR Apache-2.0

//! The selection of rules.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Config, TABLE};

/// The conditions of a rule. All of them must hold; a rule without conditions matches every job.
#[derive(Debug, Clone, Default)]
pub struct Conditions {
    /// The jobspec contains this attribute, with any value but null.
    pub attribute: Option<AttributePath>,
    /// Properties of the job have these values.
    pub properties: Vec<(Property, String)>,
    /// The job is in this project. Without [`crate::Projects`], `attributes.system.project` has this value.
    pub project: Option<String>,
    /// The job owner is this user.
    pub user: Option<Principal>,
    /// The job owner is a primary or supplementary member of this group.
    pub group: Option<Principal>,
}

/// A scheduler, each with its own terms for the properties of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheduler {
    /// Flux.
    Flux,
    /// Slurm.
    Slurm,
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scheduler::Flux => "Flux",
            Scheduler::Slurm => "Slurm",
        })
    }
}

/// A property of a job that conditions compare with a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Property {
    /// Flux: `attributes.system.queue`.
    Queue,
    /// Flux: `attributes.system.bank`.
    Bank,
    /// Slurm: the partition in which the job runs.
    Partition,
    /// Slurm: the account that the job is charged to.
    Account,
    /// Slurm: the quality of service.
    Qos,
    /// Slurm: `ClusterName` of slurm.conf.
    Cluster,
    /// Slurm: the comment, which the user chooses.
    Comment,
}

impl Property {
    /// All properties.
    pub const ALL: [Property; 7] = [
        Property::Queue,
        Property::Bank,
        Property::Partition,
        Property::Account,
        Property::Qos,
        Property::Cluster,
        Property::Comment,
    ];

    /// Returns the key of the condition.
    pub fn key(self) -> &'static str {
        match self {
            Property::Queue => "queue",
            Property::Bank => "bank",
            Property::Partition => "partition",
            Property::Account => "account",
            Property::Qos => "qos",
            Property::Cluster => "cluster",
            Property::Comment => "comment",
        }
    }

    /// Returns the scheduler that defines the property.
    pub fn scheduler(self) -> Scheduler {
        match self {
            Property::Queue | Property::Bank => Scheduler::Flux,
            _ => Scheduler::Slurm,
        }
    }

    /// Returns the replacement for the other scheduler, as advice.
    pub(crate) fn equivalent(self) -> &'static str {
        match self {
            Property::Queue => "use partition",
            Property::Bank => "use account",
            Property::Partition => "use queue",
            Property::Account => "use bank",
            Property::Qos => "use queue, or attribute",
            Property::Cluster => "each instance has its own configuration",
            Property::Comment => "use attribute",
        }
    }
}

/// A path below `attributes` in the jobspec (RFC 14), such as `system.dw`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttributePath(Vec<String>);

impl AttributePath {
    /// The maximum number of components.
    pub const MAX: usize = 6;

    /// Parses a path whose components are separated by periods.
    ///
    /// # Errors
    /// Returns a description of the mistake.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text
            .strip_prefix("jobspec.")
            .unwrap_or(text)
            .strip_prefix("attributes.")
        {
            return Err(format!(
                "`{}` must be relative to `attributes`: write `{}`",
                text.escape_debug(),
                path.escape_debug()
            ));
        }
        let path: Vec<String> = text.split('.').map(str::to_owned).collect();
        // Flux rejects jobs with other top-level attributes.
        if !matches!(path[0].as_str(), "system" | "user") || path.len() < 2 {
            return Err(format!(
                "`{}` must begin with `system.` or `user.`, as in system.dw",
                text.escape_debug()
            ));
        }
        if path.iter().any(|part| part.is_empty() || part.contains('\0')) {
            return Err(format!(
                "`{}` is not a valid path below `attributes`: write it as in system.dw",
                text.escape_debug()
            ));
        }
        if path.len() > Self::MAX {
            return Err(format!("`{text}` has more than {} components", Self::MAX));
        }
        Ok(Self(path))
    }

    /// Returns the components.
    pub fn components(&self) -> &[String] {
        &self.0
    }
}

/// A user or a group, by name or number.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Principal {
    /// By name.
    Name(String),
    /// By uid or gid.
    Id(u32),
}

/// Writes the name or the number.
impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Principal::Name(name) => write!(f, "{}", name.escape_debug()),
            Principal::Id(id) => id.fmt(f),
        }
    }
}

/// The known facts of a job. `None` means that the answer is not known (yet).
pub trait Facts {
    /// Returns whether the attribute is present.
    fn has_attribute(&self, path: &AttributePath) -> Option<bool>;
    /// Returns whether the property has this value.
    fn property_is(&self, property: Property, value: &str) -> Option<bool>;
    /// Returns whether the job is in this project.
    fn project_is(&self, name: &str) -> Option<bool>;
    /// Returns whether the job owner is this user.
    fn owner_is(&self, user: &Principal) -> Option<bool>;
    /// Returns whether the job owner is in this group.
    fn owner_in(&self, group: &Principal) -> Option<bool>;
}

/// The rule that a job matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// The rule of this index.
    Rule(usize),
    /// No rule: the job gets no token.
    None,
    /// The selection depends on unknown facts.
    Unknown,
}

impl Config {
    /// Returns the first rule that a job matches, in the order of the configuration and regardless of names.
    pub fn select(&self, job: &dyn Facts) -> Selection {
        for (index, rule) in self.rules.iter().enumerate() {
            match rule.conditions.hold(job) {
                Some(false) => {}
                Some(true) => return Selection::Rule(index),
                None => return Selection::Unknown,
            }
        }
        Selection::None
    }

    /// Returns the rules that a job may match, in order. For each name, the list ends with the first rule that
    /// certainly matches.
    pub fn candidates(&self, job: &dyn Facts) -> Vec<usize> {
        let mut candidates = Vec::new();
        let mut decided: Vec<&Option<String>> = Vec::new();
        for (index, rule) in self.rules.iter().enumerate() {
            if decided.contains(&&rule.name) {
                continue;
            }
            match rule.conditions.hold(job) {
                Some(false) => {}
                None => candidates.push(index),
                Some(true) => {
                    candidates.push(index);
                    decided.push(&rule.name);
                }
            }
        }
        candidates
    }

    /// Returns rules grouped by the name of their token, each group in order.
    pub fn by_name(&self, rules: &[usize]) -> Vec<Vec<usize>> {
        let name = |index: usize| self.rules.get(index).map(|rule| &rule.name);
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for index in rules.iter().copied() {
            match groups.iter_mut().find(|group| name(group[0]) == name(index)) {
                Some(group) => group.push(index),
                None => groups.push(vec![index]),
            }
        }
        groups
    }
}

impl Config {
    /// Returns the names of users and groups that consist of digits, each with its key and `user` or `group`. Most of
    /// them are ids that were quoted by mistake.
    pub fn digit_names(&self) -> Vec<(String, &'static str, &str)> {
        let mut all = Vec::new();
        for (index, project) in self.projects.list.iter().enumerate() {
            for (kind, list) in [("user", &project.users), ("group", &project.groups)] {
                let keys = list.iter().enumerate();
                all.extend(keys.map(|(n, who)| (format!("{TABLE}.project[{index}].{kind}s[{n}]"), kind, who)));
            }
        }
        for (index, rule) in self.rules.iter().enumerate() {
            for (kind, who) in [("user", &rule.conditions.user), ("group", &rule.conditions.group)] {
                all.extend(
                    who.iter()
                        .map(|who| (format!("{TABLE}.rule[{index}].{kind}"), kind, who)),
                );
            }
        }
        let names = all.into_iter().filter_map(|(key, kind, who)| match who {
            Principal::Name(name) if name.bytes().all(|b| b.is_ascii_digit()) => Some((key, kind, name.as_str())),
            _ => None,
        });
        names.collect()
    }
}

impl Conditions {
    /// Returns whether all conditions hold; `None` if that depends on unknown facts.
    pub fn hold(&self, job: &dyn Facts) -> Option<bool> {
        let answers = [
            self.attribute.as_ref().map(|path| job.has_attribute(path)),
            self.project.as_ref().map(|name| job.project_is(name)),
            self.user.as_ref().map(|user| job.owner_is(user)),
            self.group.as_ref().map(|group| job.owner_in(group)),
        ];
        let properties = self.properties.iter();
        let properties = properties.map(|(property, value)| job.property_is(*property, value));
        let mut result = Some(true);
        for answer in answers.into_iter().flatten().chain(properties) {
            match answer {
                Some(false) => return Some(false),
                Some(true) => {}
                None => result = None,
            }
        }
        result
    }

    /// Returns whether there are no conditions, so that the rule matches every job.
    pub fn is_empty(&self) -> bool {
        let Self {
            attribute,
            properties,
            project,
            user,
            group,
        } = self;
        attribute.is_none() && properties.is_empty() && project.is_none() && user.is_none() && group.is_none()
    }
}
