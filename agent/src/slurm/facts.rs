// SPDX-License-Identifier: MIT OR Apache-2.0

//! The facts of a Slurm job that rules refer to. The engine looks up the job owner.

use config::{Asked, AttributePath, Facts, Principal, Projects, Property};
use protocol::slurm::Job;

/// A job as PrologSlurmctld describes it.
pub struct JobFacts<'a> {
    pub job: &'a Job,
    pub projects: &'a Projects,
}

impl Facts for JobFacts<'_> {
    fn has_attribute(&self, _: &AttributePath) -> Option<bool> {
        Some(false)
    }

    fn property_is(&self, property: Property, value: &str) -> Option<bool> {
        let own = match property {
            Property::Partition => Some(&self.job.partition),
            Property::Account => self.job.account.as_ref(),
            // Some releases do not pass it to the prolog.
            Property::Qos => Some(self.job.qos.as_ref()?),
            Property::Cluster => Some(&self.job.cluster),
            Property::Comment => Some(self.job.comment.as_ref()?),
            Property::Queue | Property::Bank => None,
        };
        Some(own.is_some_and(|own| own == value))
    }

    fn project_is(&self, name: &str) -> Option<bool> {
        match asked(self.job, self.projects) {
            Asked::Project(asked) => Some(asked == name),
            // Only the engine knows the projects of the owner.
            Asked::Nothing if !self.projects.is_empty() => None,
            Asked::Nothing | Asked::Malformed => Some(false),
        }
    }

    fn owner_is(&self, user: &Principal) -> Option<bool> {
        match user {
            Principal::Id(uid) => Some(*uid == self.job.uid),
            Principal::Name(_) => None,
        }
    }

    fn owner_in(&self, _: &Principal) -> Option<bool> {
        None
    }
}

/// Returns the project that a job requests: the one with the name of its account.
pub fn asked(job: &Job, projects: &Projects) -> Asked {
    let mut list = projects.list.iter();
    match list.find(|project| job.account.as_ref() == Some(&project.name)) {
        Some(project) => Asked::Project(project.name.clone()),
        None => Asked::Nothing,
    }
}
