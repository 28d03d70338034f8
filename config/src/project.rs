//! Projects: the tables `project` and `identity`, and which project a job is in.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{MAX_NAME, Principal, Template, parse::field};

/// The end of a text that had to be cut.
const CUT: &str = " …";

/// The projects, and how claims of users are found.
#[derive(Debug, Clone, Default)]
pub struct Projects {
    /// The projects. Where there are none, jobs are in none, and whatever they ask for is not looked at.
    pub list: Vec<Project>,
    /// Where the identity tokens of users are.
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
    /// Whether a job whose owner is in several is in this one where it asks for none.
    #[serde(default, deserialize_with = "field::flag")]
    pub default: bool,
}

/// The identity token of a user, a JWT that the user's login has left.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct Identity {
    /// The absolute path of its file.
    #[serde(deserialize_with = "field::absolute_template")]
    pub token: Template,
    /// Against whom it is verified: the name of a table `trust`.
    #[serde(deserialize_with = "field::text")]
    pub trust: String,
    /// The claim that projects have values of: a string, or an array of strings.
    #[serde(deserialize_with = "field::text")]
    pub claim: String,
    /// The claim that names the user, whose value must be the user's name.
    #[serde(default = "sub", deserialize_with = "field::text")]
    pub user: String,
}

fn sub() -> String {
    "sub".to_owned()
}

/// What a job asks for in `attributes.system.project`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Asked {
    /// Nothing, or null.
    Nothing,
    /// This project.
    Project(String),
    /// Something that is no string.
    Malformed,
}

/// Who may be in a project.
pub trait Person {
    /// The user name, or the uid where there is none.
    fn name(&self) -> String;
    /// Whether this is the user.
    fn is(&self, user: &Principal) -> bool;
    /// Whether the user is in the group.
    fn is_in(&self, group: &Principal) -> bool;
    /// Whether the claim of the user's identity token has the value.
    fn has_claim(&self, value: &str) -> bool;
    /// Why there are no claims though there is an identity token, for the user.
    fn refusal(&self) -> Option<&str>;
}

/// Why a job cannot be in the project that it asks for, or in none. The text is for the user.
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
        for end in [end, if end.is_empty() { "" } else { CUT }] {
            for count in (1..=items.len()).rev() {
                let more = if count < items.len() && end != CUT { CUT } else { "" };
                let text = format!("{start}{}{more}{end}", items[..count].join(self.between));
                if text.len() <= room {
                    return text;
                }
            }
        }
        cut(format!("{start}{}", items.join(self.between)), room)
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.within(usize::MAX))
    }
}

impl std::error::Error for Denied {}

impl Projects {
    /// Whether there are any.
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

    /// Where identity tokens are, if any project asks for claims.
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

    /// Why a job that must be in a project is in none.
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
    /// Whether a user is in it.
    pub fn has(&self, person: &dyn Person) -> bool {
        self.users.iter().any(|user| person.is(user))
            || self.groups.iter().any(|group| person.is_in(group))
            || self.claims.iter().any(|value| person.has_claim(value))
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
mod tests {
    use super::*;

    struct User {
        name: &'static str,
        groups: &'static [&'static str],
        claims: &'static [&'static str],
        refusal: Option<&'static str>,
    }

    impl Person for User {
        fn name(&self) -> String {
            self.name.to_owned()
        }
        fn is(&self, user: &Principal) -> bool {
            *user == Principal::Name(self.name.to_owned())
        }
        fn is_in(&self, group: &Principal) -> bool {
            self.groups
                .iter()
                .any(|name| *group == Principal::Name((*name).to_owned()))
        }
        fn has_claim(&self, value: &str) -> bool {
            self.claims.contains(&value)
        }
        fn refusal(&self) -> Option<&str> {
            self.refusal
        }
    }

    fn alice(groups: &'static [&'static str], claims: &'static [&'static str]) -> User {
        User {
            name: "alice",
            groups,
            claims,
            refusal: None,
        }
    }

    fn names(all: &[&str]) -> Vec<Principal> {
        all.iter().map(|name| Principal::Name((*name).to_owned())).collect()
    }

    /// Four projects: by group, by another group, by name, and by claim; one of them may be the default.
    fn projects(default: Option<&str>) -> Projects {
        let project = |name: &str, users: &[&str], groups: &[&str], claims: &[&str]| Project {
            name: name.to_owned(),
            users: names(users),
            groups: names(groups),
            claims: claims.iter().map(|value| (*value).to_owned()).collect(),
            default: default == Some(name),
        };
        Projects {
            list: vec![
                project("hydro", &[], &["hydro", "hydro-adm"], &[]),
                project("fusion", &[], &["fusion"], &["fusion-team"]),
                project("climate", &["bob"], &[], &[]),
                project("astro", &[], &[], &["astro-team"]),
            ],
            identity: Some(Identity {
                token: Template::parse("/run/{uid}.jwt").unwrap(),
                trust: "site".to_owned(),
                claim: "groups".to_owned(),
                user: "sub".to_owned(),
            }),
        }
    }

    fn ask(name: &str) -> Asked {
        Asked::Project(name.to_owned())
    }

    #[test]
    fn whoever_is_named_or_in_a_group_or_has_a_claim_is_in_the_project_and_nobody_else() {
        let projects = projects(None);
        let users = [
            (alice(&["hydro"], &[]), &["hydro"] as &[&str]),
            (alice(&["hydro-adm"], &[]), &["hydro"]),
            (alice(&[], &["fusion-team"]), &["fusion"]),
            (
                alice(&["fusion", "hydro"], &["astro-team"]),
                &["fusion", "hydro", "astro"],
            ),
            // A group is no claim, and a claim no group, though they have the same name.
            (alice(&["astro-team", "fusion-team"], &["hydro"]), &[]),
            (
                User {
                    name: "bob",
                    ..alice(&[], &[])
                },
                &["climate"],
            ),
        ];
        for (user, his) in &users {
            for project in &projects.list {
                let found = projects.of_job(&ask(&project.name), user);
                match his.contains(&&*project.name) {
                    true => assert_eq!(found.unwrap().unwrap().name, project.name),
                    false => {
                        let text = found.unwrap_err().to_string();
                        assert!(text.starts_with(&format!("{} is not in project {}", user.name, project.name)));
                    }
                }
            }
        }
    }

    #[test]
    fn a_job_that_asks_for_none_is_in_the_only_project_of_its_owner_or_in_the_default() {
        for (default, groups, expected) in [
            (None, &[] as &[&str], None),
            (None, &["hydro"], Some("hydro")),
            (None, &["hydro", "fusion"], None),
            (Some("fusion"), &[], None),
            (Some("fusion"), &["hydro"], Some("hydro")),
            (Some("fusion"), &["hydro", "fusion"], Some("fusion")),
            (Some("climate"), &["hydro", "fusion"], None),
        ] {
            let (projects, user) = (projects(default), alice(groups, &[]));
            let project = projects.of_job(&Asked::Nothing, &user).unwrap();
            assert_eq!(project.map(|p| &*p.name), expected, "{default:?} {groups:?}");
        }
    }

    #[test]
    fn what_there_is_not_is_refused_whoever_asks() {
        let projects = projects(None);
        let user = alice(&["hydro"], &[]);
        for (asked, says) in [
            (ask("Hydro"), "there is no project `Hydro`"),
            (ask(""), "there is no project ``"),
            (ask("hydro/x"), "there is no project `hydro/x`"),
            (ask("a\nb"), "there is no project `a\\nb`"),
            (Asked::Malformed, "must be a string"),
        ] {
            let text = projects.of_job(&asked, &user).unwrap_err().to_string();
            assert!(text.contains(says), "{asked:?}: {text}");
        }
        // Without projects, the attribute is somebody else's.
        let none = Projects::default();
        for asked in [ask("hydro"), Asked::Malformed, Asked::Nothing] {
            assert_eq!(none.of_job(&asked, &user), Ok(None));
        }
    }

    #[test]
    fn the_text_says_what_would_help_and_why_the_identity_token_did_not() {
        let projects = projects(None);
        let user = User {
            refusal: Some("it has expired"),
            ..alice(&[], &[])
        };
        for (name, text) in [
            (
                "hydro",
                "alice is not in project hydro: needed is group hydro or hydro-adm",
            ),
            (
                "fusion",
                "alice is not in project fusion: needed is group fusion, or fusion-team in claim groups of the identity \
                 token (it has expired)",
            ),
            (
                "climate",
                "alice is not in project climate: ask its operators: it has no group to join",
            ),
            (
                "astro",
                "alice is not in project astro: needed is astro-team in claim groups of the identity token (it has \
                 expired)",
            ),
        ] {
            let denied = projects.of_job(&ask(name), &user).unwrap_err();
            assert_eq!(denied.to_string(), text);
        }
        let text = projects.needed(&user).to_string();
        assert!(
            text.contains("alice is in none") && text.contains("hydro, fusion"),
            "{text}"
        );
        let text = projects.needed(&alice(&["hydro", "fusion"], &[])).to_string();
        assert!(text.contains("-S project=NAME, one of hydro, fusion"), "{text}");
    }

    #[test]
    fn no_text_is_longer_than_its_room() {
        const ROOM: usize = 159;
        let mut projects = projects(None);
        let many: Vec<String> = (0..40).map(|n| format!("group-number-{n}-ä")).collect();
        projects.list[1].groups = many.iter().map(|name| Principal::Name(name.clone())).collect();
        projects.list[1].claims = vec!["c".repeat(300)];
        projects.list[0].groups = names(&[&"ä".repeat(200)]);
        let user = alice(&[], &[]);
        for asked in [ask("fusion"), ask("hydro"), ask("astro"), ask(&"ö".repeat(500))] {
            let text = projects.of_job(&asked, &user).unwrap_err().within(ROOM);
            assert!(text.len() <= ROOM, "{} bytes: {text}", text.len());
            assert!(text.contains("project"), "{text}");
        }
        let text = projects.of_job(&ask("fusion"), &user).unwrap_err().within(ROOM);
        assert!(
            text.contains("group group-number-0-ä or group-number-1-ä") && text.ends_with('…'),
            "{text}"
        );
    }

    #[test]
    fn a_name_that_no_project_can_have_is_refused_without_being_compared_or_quoted() {
        let text = projects(None)
            .of_job(&ask(&"x".repeat(12_000_000)), &alice(&["hydro"], &[]))
            .unwrap_err()
            .to_string();
        assert!(text.contains("12000000 bytes") && !text.contains("xx"), "{text}");
        assert!(
            !projects(None)
                .asked(&ask(&"x".repeat(257)))
                .unwrap_err()
                .to_string()
                .contains("xx")
        );
    }
}
