//! Projects: the tables `project` and `identity`, and which project a job is in.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{MAX_NAME, OAuth2, Principal, Template, UserTemplate, parse::field};

/// The end of a text that had to be cut.
const CUT: &str = " …";

/// The projects, and how claims of users are found.
#[derive(Debug, Clone, Default)]
pub struct Projects {
    /// The projects. Where there are none, jobs are in none, and whatever they ask for is not looked at.
    pub list: Vec<Project>,
    /// The location of users' identity tokens.
    pub identity: Option<Identity>,
}

/// One project, and who is in it: whoever is named, or in one of the groups, or has one of the claims.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct Project {
    /// Its name: a DNS label (RFC 1123), so that it can be part of a path and of an object's key.
    #[serde(deserialize_with = "field::label")]
    pub name: String,
    /// Users that are in it.
    #[serde(default, deserialize_with = "field::principals")]
    pub users: Vec<Principal>,
    /// Groups whose members are in it, by primary or supplementary membership.
    #[serde(default, deserialize_with = "field::principals")]
    pub groups: Vec<Principal>,
    /// Values of the claim of [`Identity`].
    #[serde(default)]
    pub claims: Vec<String>,
    /// Set if a job whose owner is in several is in this one where it asks for none.
    #[serde(default, deserialize_with = "field::flag")]
    pub default: bool,
}

/// The identity token of a user, a JWT that the user's login has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Where it is.
    pub token: IdentityToken,
    /// Against whom it is verified: the name of a table `trust`.
    pub trust: String,
    /// The claim that projects have values of: a string, or an array of strings.
    pub claim: String,
    /// The claim that names the user.
    pub user: String,
    /// The form of that claim.
    pub user_template: UserTemplate,
}

/// Where identity tokens are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityToken {
    /// In a file, by its absolute path.
    File(Template),
    /// With the login of the user, whose refresh token gets another one: this client of the provider.
    Login(Box<OAuth2>),
}

/// The project that a job requests in `attributes.system.project`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Asked {
    /// Nothing, or null.
    Nothing,
    /// This project.
    Project(String),
    /// Something that is no string.
    Malformed,
}

/// A user who may be in a project.
pub trait Person {
    /// The user name, or the uid where there is none.
    fn name(&self) -> String;
    /// Returns whether this is the user.
    fn is(&self, user: &Principal) -> bool;
    /// Returns whether the user is in the group.
    fn is_in(&self, group: &Principal) -> bool;
    /// Returns whether the claim of the user's identity token has the value.
    fn has_claim(&self, value: &str) -> bool;
    /// Returns why there are no claims though there is an identity token, for the user.
    fn refusal(&self) -> Option<&str>;
}

/// The reason why a job cannot be in the project that it asks for, or in none. The text is for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    start: String,
    /// A list after it, which may be cut short.
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

    /// The text in `room` bytes at most: with as much of its list as fits, and its end if that fits too.
    pub fn within(&self, room: usize) -> String {
        let (start, items, end) = (&self.start, &self.items, self.end.as_str());
        // Items are not empty: no more of them can fit.
        let count = items.len().min(room);
        // The length of the first so many of them.
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
    /// Returns whether there are any.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The groups that projects name.
    pub fn groups(&self) -> impl Iterator<Item = &Principal> {
        self.list.iter().flat_map(|project| &project.groups)
    }

    /// The users that projects name.
    pub fn users(&self) -> impl Iterator<Item = &Principal> {
        self.list.iter().flat_map(|project| &project.users)
    }

    /// Returns where identity tokens are, if any project asks for claims.
    pub fn identity(&self) -> Option<&Identity> {
        let any = self.list.iter().any(|project| !project.claims.is_empty());
        self.identity.as_ref().filter(|_| any)
    }

    /// The project that a job asks for, before it is known whether its owner is in it.
    ///
    /// # Errors
    /// It is none.
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

    /// The project that a job is in. One that asks for none is in the only one of its owner, or in the default one where its
    /// owner is in that; otherwise in none.
    ///
    /// # Errors
    /// The owner is not in the project that it asks for, or there is no such project.
    pub fn of_job<'a>(&'a self, asked: &Asked, person: &dyn Person) -> Result<Option<&'a Project>, Denied> {
        match self.asked(asked)? {
            Some(project) if project.has(person) => Ok(Some(project)),
            Some(project) => Err(self.not_in(project, person)),
            None => {
                let mut his = self.list.iter().filter(|project| project.has(person));
                Ok(match (his.next(), his.next()) {
                    (only, None) => only,
                    (first, second) => first
                        .into_iter()
                        .chain(second)
                        .chain(his)
                        .find(|project| project.default),
                })
            }
        }
    }

    /// Returns why a job that must be in a project is in none.
    pub fn needed(&self, person: &dyn Person) -> Denied {
        let his: Vec<_> = self
            .list
            .iter()
            .filter(|p| p.has(person))
            .map(|p| p.name.clone())
            .collect();
        let name = person.name();
        if his.is_empty() {
            let start = format!("this job needs a project, and {name} is in none: ask for access to one of ");
            let all = self.list.iter().map(|project| project.name.clone()).collect();
            return Denied::list(start, all, ", ", String::new());
        }
        let start = format!("this job needs a project, and {name} is in several: use -S project=NAME, one of ");
        Denied::list(start, his, ", ", String::new())
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
                "" => format!("{start}: ask its operators: it has no group to join"),
                claims => format!("{start}: needed is {claims}"),
            });
        }
        let groups = project.groups.iter().map(ToString::to_string).collect();
        start += ": needed is group ";
        let end = if claims.is_empty() {
            claims
        } else {
            format!(", or {claims}")
        };
        Denied::list(start, groups, " or ", end)
    }
}

impl Project {
    /// Returns whether a user is in it.
    pub fn has(&self, person: &dyn Person) -> bool {
        self.names(person) || self.claims.iter().any(|value| person.has_claim(value))
    }

    /// Returns whether a user is in it without an identity token.
    pub fn names(&self, person: &dyn Person) -> bool {
        self.users.iter().any(|user| person.is(user)) || self.groups.iter().any(|group| person.is_in(group))
    }
}

/// Shortens a text that there is no room for.
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
