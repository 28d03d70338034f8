// SPDX-License-Identifier: MIT OR Apache-2.0

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

/// Returns four projects, whose members are given by group, by another group, by name, and by claim. One of them may be
/// the default.
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
            token: IdentityToken::File(Template::parse("/run/{uid}.jwt").unwrap()),
            trust: "site".to_owned(),
            claim: "groups".to_owned(),
            user: "sub".to_owned(),
            user_template: UserTemplate::default(),
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
        // A group does not count as a claim of the same name, and a claim not as a group.
        (alice(&["astro-team", "fusion-team"], &["hydro"]), &[]),
        (
            User {
                name: "bob",
                ..alice(&[], &[])
            },
            &["climate"],
        ),
    ];
    for (user, joined) in &users {
        for project in &projects.list {
            let found = projects.of_job(&ask(&project.name), user);
            match joined.contains(&&*project.name) {
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
    // Without configured projects, the attribute may have another meaning and is ignored.
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
            "alice is not in project hydro: it requires group hydro or hydro-adm",
        ),
        (
            "fusion",
            "alice is not in project fusion: it requires group fusion, or fusion-team in claim groups of the identity \
             token (it has expired)",
        ),
        (
            "climate",
            "alice is not in project climate, which has no group to join: ask its operators",
        ),
        (
            "astro",
            "alice is not in project astro: it requires astro-team in claim groups of the identity token (it has \
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
    // The text is built on the scheduler's thread, so the time must not be quadratic in the length of the list.
    projects.list[1].groups = (0..1_000_000).map(Principal::Id).collect();
    let text = projects.of_job(&ask("fusion"), &user).unwrap_err().within(ROOM);
    assert!(text.contains("group 0 or 1 or 2 or ") && text.len() <= ROOM, "{text}");
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
