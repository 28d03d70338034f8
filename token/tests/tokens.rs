// SPDX-License-Identifier: MIT OR Apache-2.0

//! Tokens that are minted, what they say, and which objects they open.

mod common;

use std::time::{Duration, UNIX_EPOCH};

use common::{AUDIENCE, ISSUER, NOW, claims, decode, key, now, payload, session, sign, verifier, with};
use proptest::prelude::*;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use token::{
    Algorithm, Claims, Denied, Grant, Job, JobScheduler, Name, ObjectKey, ObjectKeyError, Scope, Session, TokenKind,
    Tokens, authorize, mint, workflow_lifetime,
};

fn minted(grant: Grant) -> Claims {
    let token = mint(key(Algorithm::EdDsa), &claims(grant));
    verifier().verify(token.expose_secret(), now()).unwrap()
}

fn names(names: &[&str]) -> Vec<Name> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn object(key: &str) -> ObjectKey {
    ObjectKey::parse(key).unwrap()
}

#[test]
fn a_workflow_token_names_its_job_and_its_principal_once() {
    for algorithm in Algorithm::ALL {
        let token = mint(key(algorithm), &claims(session()));
        let parts: Vec<_> = token.expose_secret().split('.').collect();
        let header: Value = serde_json::from_slice(&decode(parts[0])).unwrap();
        assert_eq!(
            header,
            json!({"alg": algorithm.as_str(), "kid": key(algorithm).kid(), "typ": "JWT"})
        );
        let text = String::from_utf8(decode(parts[1])).unwrap();
        let mut payload: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(payload["jti"].as_str().unwrap().len(), 22);
        payload["jti"] = Value::Null;
        assert_eq!(
            payload,
            json!({"iss": ISSUER, "sub": "alice", "aud": AUDIENCE, "exp": NOW + 600, "nbf": NOW, "iat": NOW, "jti": null,
                "scope": "session", "workspace": "hydro",
                "flux": {"jobid": "f4dVSvb", "uid": 1000, "instance": "ƒ2u"}})
        );
        assert_eq!(text.matches("alice").count(), 1);

        let claims = verifier().verify(token.expose_secret(), now()).unwrap();
        assert_eq!((claims.iss(), claims.sub()), (Some(ISSUER), Some("alice")));
        assert_eq!(claims.aud().collect::<Vec<_>>(), [AUDIENCE]);
        assert_eq!(
            (claims.scope(), claims.kind()),
            (Some(Scope::Session), Some(TokenKind::Workflow))
        );
        assert_eq!(claims.exp().seconds(), (NOW + 600) as f64);
        let job = claims.job().unwrap();
        assert_eq!((job.id, job.uid, job.instance), ("f4dVSvb", 1000, "ƒ2u"));
    }
}

/// A service tells jobs of Slurm from those of Flux by the claim.
#[test]
fn jobs_of_slurm_have_a_claim_of_their_own() {
    let grant = |array| Grant::Session {
        workspace: "hydro".parse().unwrap(),
        job: Job {
            id: "7".parse().unwrap(),
            uid: 1000,
            instance: "hpc".into(),
            scheduler: JobScheduler::Slurm { array, restarts: 1 },
        },
    };
    let slurm = json!({"jobid": "7", "uid": 1000, "cluster": "hpc", "restarts": 1});
    let mut of_array = slurm.clone();
    of_array["array-jobid"] = json!(5);
    of_array["array-task"] = json!(2);
    for (array, expected) in [(None, slurm), (Some((5, 2)), of_array)] {
        let claims = minted(grant(array));
        assert_eq!(claims.get("slurm"), Some(expected));
        assert_eq!(claims.get("flux"), None);
        let job = claims.job().unwrap();
        assert_eq!((job.id, job.uid, job.instance, job.is_slurm), ("7", 1000, "hpc", true));
    }
    let flux = minted(session());
    assert!(!flux.job().unwrap().is_slurm);

    let payload = |more: &str| {
        format!(
            r#"{{"iss":"{ISSUER}","sub":"alice","aud":"{AUDIENCE}","exp":{},"scope":"session","workspace":"hydro"{more}}}"#,
            NOW + 600
        )
    };
    let slurm = r#","slurm":{"jobid":"7","uid":1000,"cluster":"hpc"}"#;
    let flux = r#","flux":{"jobid":"f1","uid":1000,"instance":"fluke"}"#;
    for (more, is_accepted) in [
        (slurm.to_owned(), true),
        (flux.to_owned(), true),
        (format!("{slurm}{flux}"), false),
        (slurm.replace("cluster", "instance"), false),
        (flux.replace("instance", "cluster"), false),
    ] {
        let token = sign(key(Algorithm::EdDsa), r#"{"alg":"EdDSA","typ":"JWT"}"#, payload(&more));
        assert_eq!(verifier().verify(&token, now()).is_ok(), is_accepted, "{more}");
    }
}

#[test]
fn user_tokens_say_what_they_are_for() {
    for (grant, scope, workspaces) in [
        (Grant::Cluster, Scope::Cluster, &[][..]),
        (Grant::Workspaces(names(&["hydro"])), Scope::Workspace, &["hydro"]),
        (
            Grant::Workspaces(names(&["hydro", "fusion"])),
            Scope::Workspace,
            &["hydro", "fusion"],
        ),
        (Grant::System(names(&["a", "b"])), Scope::System, &["a", "b"]),
    ] {
        let claims = minted(grant);
        assert_eq!((claims.scope(), claims.kind()), (Some(scope), Some(TokenKind::User)));
        assert_eq!(claims.workspaces().collect::<Vec<_>>(), workspaces);
        assert_eq!(claims.job(), None);
    }
}

#[test]
fn no_two_tokens_have_the_same_jti() {
    let (one, other) = (minted(Grant::Cluster), minted(Grant::Cluster));
    assert_ne!(one.jti(), other.jti());
}

#[test]
fn a_workflow_token_lives_as_long_as_its_job_and_a_margin() {
    let [minute, hour, day] = [60, 3600, 86_400].map(Duration::from_secs);
    assert_eq!(workflow_lifetime(Some(hour), minute, day), hour + minute);
    assert_eq!(workflow_lifetime(Some(day), minute, day), day);
    assert_eq!(workflow_lifetime(Some(day - minute), minute, day), day);
    assert_eq!(workflow_lifetime(Some(day * 30), minute, day), day);
    assert_eq!(workflow_lifetime(Some(Duration::MAX), minute, day), day);
    // Jobs without a limit.
    assert_eq!(workflow_lifetime(None, minute, day), day);
    assert_eq!(workflow_lifetime(Some(Duration::ZERO), minute, day), day);
}

#[test]
fn times_that_cannot_be_are_no_reason_to_panic() {
    let mut claims = claims(Grant::Cluster);
    claims.iat = UNIX_EPOCH - Duration::from_secs(1);
    claims.lifetime = Duration::MAX;
    let token = mint(key(Algorithm::EdDsa), &claims);
    assert!(verifier().verify(token.expose_secret(), UNIX_EPOCH).is_ok());
}

/// Which of some objects a token opens.
fn opened(claims: &Claims, tokens: Tokens) -> Vec<&'static str> {
    [
        "hydro/f4dVSvb/out",
        "hydro/f4dVSvb/a/b.h5",
        "hydro/f999/out",
        "fusion/f4dVSvb/out",
        "fusion/f999/out",
    ]
    .into_iter()
    .filter(|key| authorize(claims, &object(key), tokens).is_ok())
    .collect()
}

#[test]
fn each_scope_opens_its_own_objects_only() {
    let all = [
        "hydro/f4dVSvb/out",
        "hydro/f4dVSvb/a/b.h5",
        "hydro/f999/out",
        "fusion/f4dVSvb/out",
        "fusion/f999/out",
    ];
    assert_eq!(opened(&minted(Grant::Cluster), Tokens::Any), all);
    assert_eq!(
        opened(&minted(Grant::Workspaces(names(&["hydro"]))), Tokens::Any),
        all[..3]
    );
    assert_eq!(
        opened(&minted(Grant::System(names(&["fusion"]))), Tokens::Any),
        all[3..]
    );
    assert_eq!(
        opened(&minted(Grant::Workspaces(names(&["hydro", "fusion"]))), Tokens::Any),
        all
    );
    assert_eq!(
        opened(&minted(Grant::Workspaces(names(&["hydr", "hydro2"]))), Tokens::Any),
        [""; 0]
    );
    for tokens in [Tokens::Any, Tokens::SessionOnly] {
        assert_eq!(opened(&minted(session()), tokens), all[..2]);
    }
}

#[test]
fn user_tokens_are_refused_where_a_job_acts() {
    for grant in [
        Grant::Cluster,
        Grant::Workspaces(names(&["hydro"])),
        Grant::System(names(&["hydro"])),
    ] {
        let claims = minted(grant.clone());
        assert_eq!(opened(&claims, Tokens::SessionOnly), [""; 0]);
        assert_eq!(
            authorize(&claims, &object("hydro/f4dVSvb/out"), Tokens::SessionOnly),
            Err(Denied::UserToken(grant.scope()))
        );
    }
}

#[test]
fn a_refusal_says_what_is_missing() {
    let refused = |claims: &Claims, key: &str| authorize(claims, &object(key), Tokens::Any).unwrap_err().to_string();
    let session = minted(session());
    assert_eq!(
        refused(&session, "fusion/f4dVSvb/out"),
        "the token is not for the workspace fusion: use one of a member of it"
    );
    assert_eq!(
        refused(&session, "hydro/f1/out"),
        "the token is of another job than f1: use that job's own"
    );
    let key = key(Algorithm::EdDsa);
    let foreign = sign(
        key,
        common::header(key).to_string(),
        with(payload(), json!({"scope": "openid"})),
    );
    let foreign = verifier().verify(&foreign, now()).unwrap();
    assert!(refused(&foreign, "hydro/f4dVSvb/out").contains("none of cluster, workspace, system and session"));
}

#[test]
fn keys_of_objects_are_three_parts() {
    let key = object("hydro/ƒ4dVSvb/a/b c.h5");
    assert_eq!(
        (key.workspace.as_str(), key.session.as_str(), key.object()),
        ("hydro", "f4dVSvb", "a/b c.h5")
    );
    assert_eq!(key.to_string(), "hydro/f4dVSvb/a/b c.h5");
    for (text, error) in [
        ("", ObjectKeyError::Parts),
        ("hydro", ObjectKeyError::Parts),
        ("hydro/f1", ObjectKeyError::Parts),
        ("hydro/f1/", ObjectKeyError::Object),
        ("hydro/f1//x", ObjectKeyError::Object),
        ("hydro/f1/x/", ObjectKeyError::Object),
        ("hydro/f1/../../fusion/f2/x", ObjectKeyError::Object),
        ("hydro/f1/./x", ObjectKeyError::Object),
        ("hydro/f1/..\\x", ObjectKeyError::Object),
        ("hydro/f1/x\0", ObjectKeyError::Object),
        ("hydro/f1/x\n", ObjectKeyError::Object),
        ("/f1/x", ObjectKeyError::Workspace(token::NameError)),
        ("Hydro/f1/x", ObjectKeyError::Workspace(token::NameError)),
        ("../f1/x", ObjectKeyError::Workspace(token::NameError)),
        ("hydro//x", ObjectKeyError::Session(token::SessionError)),
        ("hydro/../x", ObjectKeyError::Session(token::SessionError)),
        ("hydro/f 1/x", ObjectKeyError::Session(token::SessionError)),
    ] {
        assert_eq!(ObjectKey::parse(text), Err(error), "{text:?}");
    }
    let long = format!("hydro/f1/{}", "x".repeat(ObjectKey::MAX_LEN));
    assert_eq!(ObjectKey::parse(&long), Err(ObjectKeyError::TooLong));
}

#[test]
fn names_are_labels() {
    for name in ["a", "0", "hydro", "a-b", "a--b", "0-9", &"x".repeat(63)] {
        assert_eq!(name.parse::<Name>().unwrap().as_str(), name);
    }
    for name in [
        "",
        "-",
        "-a",
        "a-",
        "A",
        "a/b",
        "a.b",
        "a_b",
        "é",
        "a b",
        "a\n",
        &"x".repeat(64),
    ] {
        assert!(name.parse::<Name>().is_err(), "{name:?}");
    }
    for (id, session) in [("ƒ4dVSvb", "f4dVSvb"), ("f4dVSvb", "f4dVSvb"), ("1234", "1234")] {
        assert_eq!(id.parse::<Session>().unwrap().as_str(), session);
    }
    for id in ["", "ƒƒ1", "aƒ", ".", "..", "-x", "a/b", "a b", &"x".repeat(64)] {
        assert!(id.parse::<Session>().is_err(), "{id:?}");
    }
}

/// Any string that a claim may be, and that is not empty.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC{1,30}",
        any::<String>().prop_filter("not empty", |text| !text.is_empty())
    ]
}

proptest! {
    #[test]
    fn what_is_minted_is_what_is_read(
        iss in text(), sub in text(), aud in prop::collection::vec(text(), 1..4), instance in any::<String>(),
        uid in any::<u32>(), workspaces in prop::collection::vec("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", 1..4),
        id in "[ƒf][1-9A-Za-z]{1,11}", lifetime in 1..1u64 << 40, offset in any::<u32>(), algorithm in 0..3usize,
    ) {
        // All but RSA, which takes too long without optimization.
        let algorithm = [Algorithm::EdDsa, Algorithm::Es256, Algorithm::Hs256][algorithm];
        let iat = UNIX_EPOCH + Duration::from_secs(offset.into());
        let grants = [
            Grant::Workspaces(workspaces.iter().map(|name| name.parse().unwrap()).collect()),
            Grant::Session {
                workspace: workspaces[0].parse().unwrap(),
                job: Job { id: id.parse().unwrap(), uid, instance: instance.clone(), scheduler: JobScheduler::default() },
            },
        ];
        for grant in grants {
            let mut to_issue = claims(grant.clone());
            (to_issue.iss, to_issue.sub, to_issue.aud) = (iss.clone(), sub.clone(), aud.clone());
            (to_issue.iat, to_issue.lifetime) = (iat, Duration::from_secs(lifetime));
            let token = mint(key(algorithm), &to_issue);
            let verifier = verifier().issuer(&iss).audience(aud.last().unwrap()).leeway(Duration::ZERO);
            let read = verifier.verify(token.expose_secret(), iat).unwrap();
            prop_assert_eq!((read.iss(), read.sub()), (Some(iss.as_str()), Some(sub.as_str())));
            prop_assert_eq!(read.aud().collect::<Vec<_>>(), aud.iter().map(String::as_str).collect::<Vec<_>>());
            prop_assert_eq!(read.scope(), Some(grant.scope()));
            prop_assert_eq!(read.workspaces().next(), Some(workspaces[0].as_str()));
            if let Some(job) = read.job() {
                prop_assert_eq!((job.uid, job.instance), (uid, instance.as_str()));
                prop_assert_eq!(job.id, id.replace('ƒ', "f"));
            }
            let last = iat + Duration::from_secs(lifetime);
            prop_assert!(verifier.verify(token.expose_secret(), last - Duration::from_millis(500)).is_ok());
            prop_assert!(verifier.verify(token.expose_secret(), last).is_err());
        }
    }

    #[test]
    fn any_altered_byte_is_refused(at in any::<prop::sample::Index>(), to in "[-_A-Za-z0-9.=]", algorithm in 0..3usize) {
        let algorithm = [Algorithm::EdDsa, Algorithm::Es256, Algorithm::Hs256][algorithm];
        let token = mint(key(algorithm), &claims(session()));
        let at = at.index(token.expose_secret().len());
        let mut altered = token.expose_secret().to_owned();
        altered.replace_range(at..=at, &to);
        prop_assume!(altered != token.expose_secret());
        prop_assert!(verifier().verify(&altered, now()).is_err());
    }

    #[test]
    fn nothing_panics_on_any_text(text in any::<String>(), now in any::<u32>()) {
        let _ = verifier().verify(&text, UNIX_EPOCH + Duration::from_secs(now.into()));
        let _ = ObjectKey::parse(&text);
        let _ = token::KeySet::from_jwks(text.as_bytes());
        let _ = token::VerifyingKey::from_jwk(text.as_bytes());
        let _ = token::SigningKey::from_jwk(text.as_bytes());
    }

    #[test]
    fn nothing_panics_on_any_json_that_is_signed(header in "\\PC{0,40}", claims in "\\PC{0,60}", value in "\\PC{0,12}") {
        let key = key(Algorithm::Hs256);
        let _ = verifier().verify(&sign(key, &header, &claims), now());
        for claim in ["exp", "aud", "scope", "workspace", "flux", "iss"] {
            let text = with(payload(), json!({claim: null})).replacen('{', &format!("{{\"{claim}\":{value},"), 1);
            let _ = verifier().verify(&sign(key, common::header(key).to_string(), text), now());
        }
    }

    #[test]
    fn a_key_of_an_object_prints_as_it_was_read(text in "[a-z]{1,3}/f[1-9]{1,3}/[a-z./]{1,6}") {
        if let Ok(key) = ObjectKey::parse(&text) {
            prop_assert_eq!(key.to_string(), text);
        }
    }
}

#[test]
fn what_is_shared_between_threads_can_be() {
    fn shared<T: Send + Sync>() {}

    shared::<token::SigningKey>();
    shared::<token::VerifyingKey>();
    shared::<token::KeySet>();
    shared::<token::Verifier>();
    shared::<Claims>();
}
