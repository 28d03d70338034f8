// SPDX-License-Identifier: MIT OR Apache-2.0

//! Templates in paths and arguments: text with placeholders such as `{jobid}` and `{user}`.

use std::{fmt, time::Duration};

use crate::{SlurmJob, TokenRequest};

/// Text with placeholders. `{{` and `}}` stand for braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Placeholder(Placeholder),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placeholder {
    F58,
    F58Plain,
    Decimal,
    User,
    Uid,
    Project,
}

/// The values of one job for placeholders and tokens.
#[derive(Debug, Clone)]
pub struct Values {
    /// The job id as users write it: F58 (Flux RFC 19), or the number of a Slurm job.
    pub f58: String,
    /// The job id as a number.
    pub jobid: u64,
    /// The uid of the job owner.
    pub uid: u32,
    /// The name of the job owner, if any.
    pub user: Option<String>,
    /// The project that the job is in.
    pub project: Option<String>,
    /// The time limit of the job, if any.
    pub limit: Option<Duration>,
    /// The name of the Flux instance or of the cluster.
    pub instance: String,
    /// Set for a Slurm job.
    pub slurm: Option<SlurmJob>,
    /// The user's request for the token.
    pub request: TokenRequest,
}

impl Values {
    /// Returns the values of a user without a job, for templates that depend only on the user.
    pub fn of_user(uid: u32, user: Option<String>) -> Self {
        Self {
            f58: String::new(),
            jobid: 0,
            uid,
            user,
            project: None,
            limit: None,
            instance: String::new(),
            slurm: None,
            request: TokenRequest::default(),
        }
    }

    /// Returns the values of an example job, to check templates.
    pub fn example() -> Self {
        Self {
            f58: "ƒ2oLkTLb1".to_owned(),
            jobid: 1,
            uid: 1,
            user: Some("alice".to_owned()),
            limit: None,
            project: Some("hydro".to_owned()),
            instance: "example".to_owned(),
            slurm: None,
            request: TokenRequest::default(),
        }
    }
}

/// The reason why a template is invalid or cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A placeholder that does not exist.
    #[error(
        "`{{{0}}}` is not a placeholder: use {{jobid}}, {{jobid.f58plain}}, {{jobid.dec}}, {{user}}, {{uid}} or {{project}}, and {{{{ for a literal brace"
    )]
    Unknown(String),
    /// A brace without its counterpart.
    #[error("a brace is unmatched: use {{{{ or }}}} for a literal brace")]
    Unclosed,
    /// The job owner has no name.
    #[error("{{user}} needs a user name, but uid {0} has none: add the user, or use {{uid}}")]
    NoUser(u32),
    /// The name of the job owner would change the path.
    #[error("the user name of uid {0} cannot be part of a path: use {{uid}}")]
    UnsafeUser(u32),
    /// The job is in no project.
    #[error("{{project}} needs a project, but the job is in none: use -S project=NAME")]
    NoProject,
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// [`TemplateError::Unknown`], [`TemplateError::Unclosed`].
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let brace = &rest[at..];
            if brace.starts_with("{{") || brace.starts_with("}}") {
                plain.push_str(&brace[..1]);
                rest = &brace[2..];
                continue;
            }
            let name = brace
                .strip_prefix('{')
                .and_then(|b| b.split_once('}'))
                .ok_or(TemplateError::Unclosed)?
                .0;
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(Part::Placeholder(Placeholder::parse(name)?));
            rest = &brace[name.len() + 2..];
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self { parts })
    }

    /// Returns whether it starts with the given text for every job.
    pub fn starts_with(&self, text: &str) -> bool {
        matches!(self.parts.first(), Some(Part::Text(first)) if first.starts_with(text))
    }

    /// Returns whether it needs the name of the job owner.
    pub fn needs_user(&self) -> bool {
        self.parts.contains(&Part::Placeholder(Placeholder::User))
    }

    /// Returns whether it needs the project of the job.
    pub fn needs_project(&self) -> bool {
        self.parts.contains(&Part::Placeholder(Placeholder::Project))
    }

    /// Returns whether it depends on the user and on nothing else.
    pub fn is_of_user(&self) -> bool {
        let mut placeholders = self
            .parts
            .iter()
            .filter(|part| matches!(part, Part::Placeholder(_)))
            .peekable();
        let is_user = |part| matches!(part, &Part::Placeholder(Placeholder::User | Placeholder::Uid));
        placeholders.peek().is_some() && placeholders.all(is_user)
    }

    /// Returns the text before the first placeholder.
    pub fn prefix(&self) -> &str {
        match self.parts.first() {
            Some(Part::Text(text)) => text,
            _ => "",
        }
    }

    /// Returns whether it contains no placeholder.
    pub fn is_constant(&self) -> bool {
        self.parts.iter().all(|part| matches!(part, Part::Text(_)))
    }

    /// Expands the template for a job. Rejects a user name that contains a `/` or begins with a `.`, which could change
    /// the path.
    ///
    /// # Errors
    /// [`TemplateError::NoUser`], [`TemplateError::UnsafeUser`], [`TemplateError::NoProject`].
    pub fn fill(&self, values: &Values) -> Result<String, TemplateError> {
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Placeholder(Placeholder::F58) => out.push_str(&values.f58),
                Part::Placeholder(Placeholder::F58Plain) => out.push_str(&values.f58.replace('ƒ', "f")),
                Part::Placeholder(Placeholder::Decimal) => out.push_str(&values.jobid.to_string()),
                Part::Placeholder(Placeholder::Uid) => out.push_str(&values.uid.to_string()),
                Part::Placeholder(Placeholder::User) => {
                    let user = values.user.as_deref().ok_or(TemplateError::NoUser(values.uid))?;
                    if user.is_empty() || user.starts_with('.') || user.contains(['/', '\0']) {
                        return Err(TemplateError::UnsafeUser(values.uid));
                    }
                    out.push_str(user);
                }
                // The name of a project is a DNS label, so it cannot change the path.
                Part::Placeholder(Placeholder::Project) => {
                    out.push_str(values.project.as_deref().ok_or(TemplateError::NoProject)?);
                }
            }
        }
        Ok(out)
    }
}

impl Placeholder {
    fn parse(name: &str) -> Result<Self, TemplateError> {
        match name {
            "jobid" | "jobid.f58" => Ok(Placeholder::F58),
            "jobid.f58plain" => Ok(Placeholder::F58Plain),
            "jobid.dec" => Ok(Placeholder::Decimal),
            "user" => Ok(Placeholder::User),
            "uid" => Ok(Placeholder::Uid),
            "project" => Ok(Placeholder::Project),
            _ => Err(TemplateError::Unknown(name.escape_debug().to_string())),
        }
    }
}

/// Writes the template as in the configuration, with escaped braces.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts {
            match part {
                Part::Text(text) => f.write_str(&text.replace('{', "{{").replace('}', "}}"))?,
                Part::Placeholder(Placeholder::F58) => f.write_str("{jobid}")?,
                Part::Placeholder(Placeholder::F58Plain) => f.write_str("{jobid.f58plain}")?,
                Part::Placeholder(Placeholder::Decimal) => f.write_str("{jobid.dec}")?,
                Part::Placeholder(Placeholder::User) => f.write_str("{user}")?,
                Part::Placeholder(Placeholder::Uid) => f.write_str("{uid}")?,
                Part::Placeholder(Placeholder::Project) => f.write_str("{project}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(user: &str) -> Values {
        Values {
            f58: "ƒ2u".to_owned(),
            jobid: 1234,
            uid: 1000,
            user: Some(user.to_owned()),
            ..Values::example()
        }
    }

    #[test]
    fn placeholders_are_filled_in() {
        let template = Template::parse("/t/{jobid}/{jobid.f58plain}/{jobid.dec}-{user}-{uid}-{project}{{x}}").unwrap();
        assert_eq!(
            template.fill(&values("alice")).unwrap(),
            "/t/ƒ2u/f2u/1234-alice-1000-hydro{x}"
        );
        assert_eq!(Template::parse(&template.to_string()).unwrap(), template);
    }

    #[test]
    fn mistakes_are_named() {
        for (bad, says) in [
            ("{job}", "`{job}`"),
            ("{", "unmatched"),
            ("}", "unmatched"),
            ("{jobid", "unmatched"),
        ] {
            let error = Template::parse(bad).unwrap_err().to_string();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }

    #[test]
    fn a_user_name_cannot_lead_to_another_directory() {
        let template = Template::parse("/t/{user}.jwt").unwrap();
        for bad in ["../root", "a/b", "..", ""] {
            assert_eq!(
                template.fill(&values(bad)),
                Err(TemplateError::UnsafeUser(1000)),
                "{bad}"
            );
        }
    }
}
