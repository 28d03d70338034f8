// SPDX-License-Identifier: MIT OR Apache-2.0

//! Projects: the tables `project` and `identity`, and the choice of a job's project.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{MAX_NAME, OAuth2, Principal, Template, UserTemplate, parse::field};

/// The suffix of a truncated text.
const CUT: &str = " …";

/// The projects, and the source of users' claims.
#[derive(Debug, Clone, Default)]
pub struct Projects {
    /// The projects. If empty, jobs have no project and their requests for one are ignored.
    pub list: Vec<Project>,
    /// The location of users' identity tokens.
    pub identity: Option<Identity>,
}

/// One project. Its members are the named users, the members of its groups, and users with one of its claims.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct Project {
    /// Its name: a DNS label (RFC 1123), so that it can be part of a path and of an object's key.
    #[serde(deserialize_with = "field::label")]
    pub name: String,
    /// Users that are members.
    #[serde(default, deserialize_with = "field::principals")]
    pub users: Vec<Principal>,
    /// Groups whose primary and supplementary members are members of the project.
    #[serde(default, deserialize_with = "field::principals")]
    pub groups: Vec<Principal>,
    /// Values of [`Identity::claim`] that make a user a member.
    #[serde(default)]
    pub claims: Vec<String>,
    /// Set if a job that requests no project is in this one when its owner is a member of several.
    #[serde(default, deserialize_with = "field::flag")]
    pub default: bool,
}

/// The identity token of a user, a JWT that the login of the user stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its location.
    pub token: IdentityToken,
    /// The name of the table `trust` that it is verified against.
    pub trust: String,
    /// The claim that determines projects: a string, or an array of strings.
    pub claim: String,
    /// The claim that names the user.
    pub user: String,
    /// The form of that claim.
    pub user_template: UserTemplate,
}

/// The location of identity tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityToken {
    /// A file, by its absolute path.
    File(Template),
    /// The stored login of the user. This client of the provider renews the token with the refresh token.
    Login(Box<OAuth2>),
}

/// The project that a job requests in `attributes.system.project`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Asked {
    /// Nothing, or null.
    Nothing,
    /// This project.
    Project(String),
    /// A value that is not a string.
    Malformed,
}

/// A user who may be in a project.
pub trait Person {
    /// Returns the user name, or the uid if the user has no name.
    fn name(&self) -> String;
    /// Returns whether this is `user`.
    fn is(&self, user: &Principal) -> bool;
    /// Returns whether the user is in the group.
    fn is_in(&self, group: &Principal) -> bool;
    /// Returns whether the claim of the user's identity token contains the value.
    fn has_claim(&self, value: &str) -> bool;
    /// Returns the reason, for the user, why an existing identity token provides no claims.
    fn refusal(&self) -> Option<&str>;
}

/// The reason why a job cannot be in the project that it requests, or cannot be without a project. The text is for the
/// user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    start: String,
    /// A list after it, which may be truncated.
    items: Vec<String>,
    between: &'static str,
    end: String,
}

impl Denied {
    fn new(text: String) -> Self {
        Self::list(text, Vec::new(), "", String::new())
    }

    fn list(start: String, items: Vec<String>, between: &'static str, end: String) -> Self {
        Self {
            start,
            items,
            between,
            end,
        }
    }

    /// Returns the text in at most `room` bytes: as many items of the list as fit, and the end if it fits, too.
    pub fn within(&self, room: usize) -> String {
        let (start, items, end) = (&self.start, &self.items, self.end.as_str());
        // Items are not empty, so no more than `room` of them can fit.
        let count = items.len().min(room);
        // The total length of the first items, for each count.
        let mut length = 0;
        let lengths: Vec<usize> = items[..count]
            .iter()
            .map(|item| {
                length += item.len() + if length > 0 { self.between.len() } else { 0 };
                length
            })
            .collect();
        for end in [end, if end.is_empty() { "" } else { CUT }] {
            for count in (1..=count).rev() {
                let more = if count < items.len() && end != CUT { CUT } else { "" };
                if start.len() + lengths[count - 1] + more.len() + end.len() <= room {
                    return format!("{start}{}{more}{end}", items[..count].join(self.between));
                }
            }
        }
        cut(format!("{start}{}", items[..count].join(self.between)), room)
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.within(usize::MAX))
    }
}

impl std::error::Error for Denied {}

impl Projects {
    /// Returns whether no projects are configured.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Returns the groups that projects name.
    pub fn groups(&self) -> impl Iterator<Item = &Principal> {
        self.list.iter().flat_map(|project| &project.groups)
    }

    /// Returns the users that projects name.
    pub fn users(&self) -> impl Iterator<Item = &Principal> {
        self.list.iter().flat_map(|project| &project.users)
    }

    /// Returns the location of identity tokens, if any project uses claims.
    pub fn identity(&self) -> Option<&Identity> {
        let any = self.list.iter().any(|project| !project.claims.is_empty());
        self.identity.as_ref().filter(|_| any)
    }

    /// Returns the project that a job requests, without a check of its owner.
    ///
    /// # Errors
    /// The requested project does not exist.
    pub fn asked<'a>(&'a self, asked: &Asked) -> Result<Option<&'a Project>, Denied> {
        match asked {
            Asked::Nothing => Ok(None),
            _ if self.is_empty() => Ok(None),
            Asked::Malformed => Err(Denied::new(
                "the project must be a string: a number needs quotes, as in -S project='\"1\"'".to_owned(),
            )),
            Asked::Project(name) if name.len() > MAX_NAME => Err(Denied::new(format!(
                "there is no project with a name of {} bytes: use -S project=NAME",
                name.len()
            ))),
            Asked::Project(name) => match self.list.iter().find(|project| project.name == *name) {
                Some(project) => Ok(Some(project)),
                None => Err(Denied::new(format!("there is no project `{}`", name.escape_debug()))),
            },
        }
    }

    /// Returns the project that a job is in. A job that requests none is in the only project of its owner, or in the
    /// default project if its owner is a member of it; otherwise it is in none.
    ///
    /// # Errors
    /// The requested project does not exist, or the owner is not a member of it.
    pub fn of_job<'a>(&'a self, asked: &Asked, person: &dyn Person) -> Result<Option<&'a Project>, Denied> {
        match self.asked(asked)? {
            Some(project) if project.has(person) => Ok(Some(project)),
            Some(project) => Err(self.not_in(project, person)),
            None => {
                let mut joined = self.list.iter().filter(|project| project.has(person));
                Ok(match (joined.next(), joined.next()) {
                    (only, None) => only,
                    (first, second) => first
                        .into_iter()
                        .chain(second)
                        .chain(joined)
                        .find(|project| project.default),
                })
            }
        }
    }

    /// Returns the reason why a job that needs a project is in none.
    pub fn needed(&self, person: &dyn Person) -> Denied {
        let joined: Vec<_> = self
            .list
            .iter()
            .filter(|p| p.has(person))
            .map(|p| p.name.clone())
            .collect();
        let name = person.name();
        if joined.is_empty() {
            let start = format!("this job needs a project, and {name} is in none: ask for access to one of ");
            let all = self.list.iter().map(|project| project.name.clone()).collect();
            return Denied::list(start, all, ", ", String::new());
        }
        let start = format!("this job needs a project, and {name} is in several: use -S project=NAME, one of ");
        Denied::list(start, joined, ", ", String::new())
    }

    fn not_in(&self, project: &Project, person: &dyn Person) -> Denied {
        let mut start = format!("{} is not in project {}", person.name(), project.name);
        let identity = self.identity.as_ref().filter(|_| !project.claims.is_empty());
        let mut claims = identity.map_or_else(String::new, |identity| {
            format!(
                "{} in claim {} of the identity token",
                project.claims.join(" or "),
                identity.claim
            )
        });
        if let (Some(_), Some(why)) = (identity, person.refusal()) {
            claims += &format!(" ({why})");
        }
        if project.groups.is_empty() {
            return Denied::new(match claims.as_str() {
                "" => format!("{start}, which has no group to join: ask its operators"),
                claims => format!("{start}: it requires {claims}"),
            });
        }
        let groups = project.groups.iter().map(ToString::to_string).collect();
        start += ": it requires group ";
        let end = if claims.is_empty() {
            claims
        } else {
            format!(", or {claims}")
        };
        Denied::list(start, groups, " or ", end)
    }
}

impl Project {
    /// Returns whether a user is a member.
    pub fn has(&self, person: &dyn Person) -> bool {
        self.names(person) || self.claims.iter().any(|value| person.has_claim(value))
    }

    /// Returns whether a user is a member without an identity token.
    pub fn names(&self, person: &dyn Person) -> bool {
        self.users.iter().any(|user| person.is(user)) || self.groups.iter().any(|group| person.is_in(group))
    }
}

/// Truncates a text to `room` bytes.
fn cut(mut text: String, room: usize) -> String {
    if text.len() > room {
        let mut end = room.saturating_sub(CUT.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text += CUT;
    }
    text
}

#[cfg(test)]
mod tests;
