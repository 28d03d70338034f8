// SPDX-License-Identifier: MIT OR Apache-2.0

//! Chooses the rule once the job owner is known. The current membership in projects decides; the one found at
//! submission or update does not count.

use config::{Asked, AttributePath, Denied, Facts, Person, Principal, Property, Rule, TokenRequest, Values};
use protocol::{Code, Failure};

use crate::{
    engine::{Engine, SourceId},
    owners::Owner,
    task::Task,
};

/// The possible sources of one token of a job.
pub(crate) enum Candidates {
    /// The sources of these rules. The first rule that matches the job owner is chosen.
    Rules(Vec<usize>),
    /// The source for rabbit jobs.
    Rabbit,
}

/// A source, and the job's values for it.
pub(crate) struct Chosen {
    pub which: SourceId,
    pub values: Values,
}

impl Engine {
    /// Returns whether the job owner must be looked up before a source is chosen and used.
    pub(crate) fn needs_owner(&self, candidates: &Candidates) -> bool {
        if !self.config.projects.is_empty() {
            return true;
        }
        match candidates {
            Candidates::Rules(rules) => match rules[..] {
                [rule] => {
                    self.config.rules.get(rule).is_some_and(asks_for_owner)
                        || self.sources.needs_user(SourceId::Rule(rule))
                }
                _ => true,
            },
            Candidates::Rabbit => self.sources.needs_user(SourceId::Rabbit),
        }
    }

    /// Chooses the source of a token; none if no rule matches the job owner. `owner` is set if [`Engine::needs_owner`]
    /// requires it.
    ///
    /// # Errors
    /// The job owner may not have the token, or is unknown.
    pub(crate) fn choose(
        &self,
        task: &Task,
        from: &Candidates,
        owner: Option<&Owner>,
    ) -> Result<Option<Chosen>, Failure> {
        let candidates: &[usize] = match from {
            Candidates::Rules(rules) => rules,
            Candidates::Rabbit => &[],
        };
        let Some(owner) = owner else {
            let which = candidates
                .first()
                .map_or(SourceId::Rabbit, |rule| SourceId::Rule(*rule));
            let mut values = self.values(task, None, None);
            self.request(which, task, &mut values)?;
            return Ok(Some(Chosen { which, values }));
        };
        let projects = &self.config.projects;
        let project = projects.of_job(&task.asked, owner);
        let project = project.map_err(|denied| denied_to(owner, &denied))?;
        let project = project.map(|project| &*project.name);
        let asks = |index: &usize| self.config.rules.get(*index).is_some_and(asks_for_owner);
        if owner.name.is_none() && candidates.iter().any(asks) {
            let why = format!(
                "uid {} is not in the user database, and a rule asks for its name or groups",
                task.uid
            );
            return Err(Failure::new(
                Code::OwnerUnknown,
                "its owner could not be looked up",
                why,
            ));
        }
        let which = match from {
            Candidates::Rabbit => SourceId::Rabbit,
            Candidates::Rules(_) => {
                let facts = OwnerFacts {
                    owner,
                    project: (!projects.is_empty()).then_some(project),
                };
                if let Some(doubt) = self.doubt(task, candidates, owner) {
                    return Err(doubt);
                }
                let holds = |index: usize| self.config.rules.get(index).map(|rule| rule.conditions.hold(&facts));
                let applies = |index: &&usize| holds(**index) != Some(Some(false));
                match candidates.iter().find(applies) {
                    Some(rule) if holds(*rule) == Some(Some(true)) => SourceId::Rule(*rule),
                    Some(rule) => return Err(self.unknown_group(*rule)),
                    None => return Ok(None),
                }
            }
        };
        if project.is_none() && self.needs_project(which) {
            return Err(denied_to(owner, &projects.needed(owner)));
        }
        let mut values = self.values(task, owner.name.clone(), project);
        self.admit(which, &values, owner)?;
        self.request(which, task, &mut values)?;
        Ok(Some(Chosen { which, values }))
    }

    /// Returns the failure if the projects of the job owner are unknown and decide whether the job gets a token: it
    /// requests no project, a rule that may match needs one, and the identity token could not be read or verified. A
    /// refused identity token puts its user into no project.
    fn doubt(&self, task: &Task, candidates: &[usize], owner: &Owner) -> Option<Failure> {
        let needs_project = |index: &usize| {
            let rule = self.config.rules.get(*index);
            rule.is_some_and(|rule| rule.conditions.project.is_some() || rule.source.needs_project())
        };
        let why = owner.refused.as_ref().filter(|why| why.code != Code::TokenRefused)?;
        let mut others = self.config.projects.list.iter().filter(|project| !project.has(owner));
        if task.asked != Asked::Nothing
            || !candidates.iter().any(needs_project)
            || !others.any(|project| !project.claims.is_empty())
        {
            return None;
        }
        let user = format!("its owner's identity token is not used: {}", why.user);
        Some(Failure::new(
            why.code,
            user,
            format!("the identity token: {}", why.operator),
        ))
    }

    /// Returns the failure for a rule whose group is unknown.
    fn unknown_group(&self, rule: usize) -> Failure {
        let group = self
            .config
            .rules
            .get(rule)
            .and_then(|rule| rule.conditions.group.as_ref());
        let group = group.map(ToString::to_string).unwrap_or_default();
        let why = format!(
            "group {group} is not in the group database, so its members are unknown: create it, or correct the \
             table workflow-token"
        );
        Failure::new(
            Code::OwnerUnknown,
            "the groups of its owner could not be looked up",
            why,
        )
    }

    /// Rejects a token whose workspace, as the rule forms it, is a project that the user is not in.
    fn admit(&self, which: SourceId, values: &Values, owner: &Owner) -> Result<(), Failure> {
        let SourceId::Rule(index) = which else { return Ok(()) };
        let config::Source::Issuer(settings) = &self.config.rules[index].source else {
            return Ok(());
        };
        let projects = &self.config.projects;
        // The source reports a template that it cannot fill in.
        let Some(Ok(workspace)) = settings.workspace.as_ref().map(|workspace| workspace.fill(values)) else {
            return Ok(());
        };
        if !projects.list.iter().any(|project| project.name == workspace) {
            return Ok(());
        }
        let admitted = projects.of_job(&Asked::Project(workspace), owner);
        admitted.map(|_| ()).map_err(|denied| denied_to(owner, &denied))
    }

    /// Adds the user's requests for the token, if its rule allows them.
    fn request(&self, which: SourceId, task: &Task, values: &mut Values) -> Result<(), Failure> {
        let SourceId::Rule(index) = which else { return Ok(()) };
        let rule = &self.config.rules[index];
        if let Some(request) = task.requests.get(rule.token_name()) {
            rule.admit(request)
                .map_err(|why| Failure::new(Code::RequestDenied, why.clone(), why))?;
            values.request = request.clone();
        }
        Ok(())
    }

    fn values(&self, task: &Task, user: Option<String>, project: Option<&str>) -> Values {
        Values {
            f58: task.f58.clone(),
            jobid: task.jobid,
            uid: task.uid,
            user,
            project: project.map(str::to_owned),
            limit: task.limit,
            instance: self.instance.clone(),
            slurm: task.slurm,
            request: TokenRequest::default(),
        }
    }

    fn needs_project(&self, which: SourceId) -> bool {
        match which {
            SourceId::Rule(rule) => self.config.rules[rule].source.needs_project(),
            SourceId::Rabbit => {
                let kubernetes = self.config.dws.as_ref().and_then(|dws| dws.kubernetes.as_ref());
                kubernetes.is_some_and(|settings| settings.object.needs_project())
            }
        }
    }
}

/// Returns whether a rule needs the name service to look up the job owner.
fn asks_for_owner(rule: &Rule) -> bool {
    matches!(rule.conditions.user, Some(Principal::Name(_))) || rule.conditions.group.is_some()
}

/// Returns the failure of a job whose owner may not have a token for a project.
fn denied_to(owner: &Owner, denied: &Denied) -> Failure {
    let detail = match &owner.refused {
        Some(why) => format!("{denied}: the identity token: {}", why.operator),
        None => denied.to_string(),
    };
    Failure::new(Code::ProjectDenied, denied.to_string(), detail)
}

/// Decides conditions on the owner, which the plugin left open. The plugin has decided all others.
struct OwnerFacts<'a> {
    owner: &'a Owner,
    /// The project of the job, if the configuration has projects. Otherwise the plugin has decided these conditions,
    /// too.
    project: Option<Option<&'a str>>,
}

impl Facts for OwnerFacts<'_> {
    fn has_attribute(&self, _: &AttributePath) -> Option<bool> {
        Some(true)
    }

    fn property_is(&self, _: Property, _: &str) -> Option<bool> {
        Some(true)
    }

    fn project_is(&self, name: &str) -> Option<bool> {
        Some(self.project.is_none_or(|project| project == Some(name)))
    }

    fn owner_is(&self, user: &Principal) -> Option<bool> {
        Some(self.owner.is(user))
    }

    fn owner_in(&self, group: &Principal) -> Option<bool> {
        (!self.owner.unknown_groups.contains(group)).then(|| self.owner.is_in(group))
    }
}
