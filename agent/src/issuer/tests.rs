// SPDX-License-Identifier: MIT OR Apache-2.0

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use token::{Algorithm, Job, JobScheduler, KeySet};

use super::*;

pub const ISSUER: &str = "https://a.example.org";

/// Checks that know one ended job, 2, and one revoked token, `revoked`.
pub struct Known;

impl Checks for Known {
    async fn check(&self, token: TokenFacts) -> Validity {
        match token.job {
            Some(job) if job.jobid == 2 => Validity::Ended(protocol::JobEnd::default()),
            Some(job) if job.jobid == 3 => Validity::Unknown("nobody knows".to_owned()),
            _ => Validity::Active,
        }
    }

    async fn held(&self, uid: u32) -> Answer {
        let job = protocol::JobFacts {
            instance: "hpc".to_owned(),
            jobid: 7,
            uid,
        };
        let held = protocol::Held {
            job,
            name: "7".to_owned(),
            variables: Vec::new(),
            expires_at: None,
            renew_at: None,
        };
        Answer::Held(if uid == 0 { vec![held] } else { Vec::new() })
    }

    async fn revoke(&self, subject: Subject, _: u64) -> Answer {
        let instance = Some("hpc".to_owned());
        assert_eq!(subject, Subject::Job { instance, jobid: 7 });
        Answer::Revoked
    }
}

impl Ends for Known {
    async fn find_ended(&self, _: &Status) -> Result<(), String> {
        Ok(())
    }

    fn revocations_of(&self, _: &str) -> crate::revocations::Store {
        None
    }
}

/// An issuer with grants, and its engine.
fn issuer(directory: &Path, grants: Value) -> (Arc<Issuer>, Arc<Engine>) {
    site(directory, |table| {
        table["service"] = json!({"user": 0, "grant": grants});
    })
}

/// An issuer with a changed configuration, and its engine.
pub fn site(directory: &Path, change: impl FnOnce(&mut Value)) -> (Arc<Issuer>, Arc<Engine>) {
    let keys = directory.join("keys");
    source::keys::create(&keys, Algorithm::EdDsa).unwrap();
    let mut table = json!({"issuer": {"keys": keys, "name": ISSUER, "audience": "a"}});
    change(&mut table);
    let configure = protocol::Configure {
        generation: 0,
        conf: json!({"workflow-token": table}).to_string(),
        overrides: "null".to_owned(),
        path: None,
        part: config::Part::Tokens,
        instance: "hpc".to_owned(),
    };
    let engine = Engine::new(&configure, Path::new("/none"), &Arc::default(), Box::new(|_, _| {})).unwrap();
    (Issuer::of(&engine).unwrap().unwrap(), Arc::new(engine))
}

pub fn request(evidence: Evidence) -> MintRequest {
    MintRequest {
        evidence,
        client: None,
        audience: Vec::new(),
        scope: None,
        workspaces: Vec::new(),
        lifetime_secs: None,
    }
}

fn own(token: &str) -> MintRequest {
    request(Evidence::Token(SecretText(Zeroizing::new(token.to_owned()))))
}

pub async fn ask(known: &(Arc<Issuer>, Arc<Engine>), question: IssuerQuestion) -> Answer {
    answer(Some(known.clone()), &Known, ISSUER, question).await
}

/// Returns the claims of the requested token, or the denial.
pub async fn mint(known: &(Arc<Issuer>, Arc<Engine>), request: MintRequest) -> Result<Value, protocol::Denial> {
    match ask(known, IssuerQuestion::Mint(request)).await {
        Answer::Minted(SecretText(token)) => {
            let Ok(claims) = known.0.verify(&token) else {
                panic!("it is not valid");
            };
            Ok(serde_json::from_str(claims.as_json()).unwrap())
        }
        Answer::Denied(denial) => Err(denial),
        answer => panic!("{answer:?}"),
    }
}

/// A token of this issuer that expires after a minute.
pub fn token(issuer: &Issuer, grant: Grant) -> String {
    let claims = ClaimsToIssue {
        iss: ISSUER.to_owned(),
        sub: "alice".to_owned(),
        aud: vec!["a".to_owned(), "b".to_owned()],
        iat: SystemTime::now(),
        lifetime: Duration::from_secs(60),
        grant,
        status: None,
    };
    match issuer.mint(&claims) {
        Answer::Minted(SecretText(token)) => token.to_string(),
        answer => panic!("{answer:?}"),
    }
}

fn session(jobid: &str) -> Grant {
    Grant::Session {
        workspace: "hydro".parse().unwrap(),
        job: Job {
            id: jobid.parse().unwrap(),
            uid: 1000,
            instance: "hpc".to_owned(),
            scheduler: JobScheduler::Slurm {
                array: Some((1, 4)),
                restarts: 2,
            },
        },
    }
}

#[tokio::test]
async fn a_signed_response_is_not_a_token() {
    let directory = tempfile::tempdir().unwrap();
    let known = issuer(directory.path(), json!([]));
    let Answer::PublicKeys(jwks) = ask(&known, IssuerQuestion::PublicKeys).await else {
        panic!("no keys");
    };
    assert!(!jwks.contains("\"d\""));
    let question = |response: &str| IssuerQuestion::SignIntrospection {
        audience: "client".to_owned(),
        response: response.to_owned(),
    };
    // The service could try to get a token signed in this way.
    let claims = r#"{"iss":"https://a.example.org","aud":"client","sub":"root","exp":9e9}"#;
    let Answer::Signed(signed) = ask(&known, question(claims)).await else {
        panic!("not signed");
    };
    let part = |n| URL_SAFE_NO_PAD.decode(signed.split('.').nth(n).unwrap()).unwrap();
    let header: Value = serde_json::from_slice(&part(0)).unwrap();
    assert_eq!(header["typ"], "token-introspection+jwt");
    let payload: Value = serde_json::from_slice(&part(1)).unwrap();
    assert_eq!((&payload["aud"], &payload["exp"]), (&json!("client"), &Value::Null));
    assert_eq!(payload["token_introspection"]["sub"], "root");
    let (keys, _) = KeySet::from_jwks(jwks.as_bytes()).unwrap();
    let verifier = Verifier::new(keys).any_audience();
    assert!(verifier.clone().verify(&signed, SystemTime::now()).is_err());
    assert!(verifier.typ(INTROSPECTION).verify(&signed, SystemTime::now()).is_err());
    for wrong in ["", "[]", "{"] {
        assert!(matches!(ask(&known, question(wrong)).await, Answer::Failed(_)));
    }
    let Answer::Failed(why) = answer(None, &Known, "https://b\n", IssuerQuestion::PublicKeys).await else {
        panic!("somebody is known");
    };
    assert!(
        why.contains(r"https://b\n") && why.contains("[workflow-token.issuer]"),
        "{why}"
    );
}

#[tokio::test]
async fn an_exchange_never_widens_a_token() {
    let directory = tempfile::tempdir().unwrap();
    let known = issuer(directory.path(), json!([]));
    let workspaces = || Grant::Workspaces(vec!["hydro".parse().unwrap(), "fusion".parse().unwrap()]);
    let user = token(&known.0, workspaces());
    let exp = known.0.verify(&user).ok().unwrap().exp().seconds();
    let all = mint(&known, own(&user)).await.unwrap();
    assert_eq!(
        (&all["aud"], &all["workspace"], &all["sub"]),
        (&json!(["a", "b"]), &json!(["hydro", "fusion"]), &json!("alice"))
    );
    let narrow = MintRequest {
        audience: vec!["b".to_owned()],
        workspaces: vec!["fusion".to_owned()],
        scope: Some("workspace".to_owned()),
        lifetime_secs: Some(10),
        ..own(&user)
    };
    let narrow = mint(&known, narrow).await.unwrap();
    assert_eq!((&narrow["aud"], &narrow["workspace"]), (&json!("b"), &json!("fusion")));
    let life = |claims: &Value| claims["exp"].as_f64().unwrap() - claims["iat"].as_f64().unwrap();
    assert_eq!(life(&narrow), 10.0);
    let long = mint(
        &known,
        MintRequest {
            lifetime_secs: Some(u64::MAX),
            ..own(&user)
        },
    )
    .await
    .unwrap();
    assert!(long["exp"].as_f64().unwrap() <= exp);
    for (wider, code) in [
        (
            MintRequest {
                audience: vec!["a".to_owned(), "c".to_owned()],
                ..own(&user)
            },
            DenialCode::InvalidTarget,
        ),
        (
            MintRequest {
                workspaces: vec!["other".to_owned()],
                ..own(&user)
            },
            DenialCode::InvalidScope,
        ),
        (
            MintRequest {
                scope: Some("cluster".to_owned()),
                ..own(&user)
            },
            DenialCode::InvalidScope,
        ),
        (
            MintRequest {
                scope: Some("session".to_owned()),
                ..own(&user)
            },
            DenialCode::InvalidScope,
        ),
        (
            MintRequest {
                lifetime_secs: Some(0),
                ..own(&user)
            },
            DenialCode::InvalidGrant,
        ),
    ] {
        assert_eq!(mint(&known, wider).await.unwrap_err().code, code);
    }
    // From all workspaces to one, and not back.
    let cluster = token(&known.0, Grant::Cluster);
    let one = MintRequest {
        workspaces: vec!["hydro".to_owned()],
        ..own(&cluster)
    };
    assert_eq!(mint(&known, one).await.unwrap()["scope"], "workspace");
}

#[tokio::test]
async fn the_token_of_a_job_stays_one_and_is_none_when_the_job_has_ended() {
    let directory = tempfile::tempdir().unwrap();
    let known = issuer(directory.path(), json!([]));
    let of_job = token(&known.0, session("1"));
    let claims = mint(
        &known,
        MintRequest {
            audience: vec!["a".to_owned()],
            ..own(&of_job)
        },
    )
    .await
    .unwrap();
    let slurm = json!({"jobid": "1", "uid": 1000, "cluster": "hpc", "array-jobid": 1, "array-task": 4, "restarts": 2});
    assert_eq!((&claims["scope"], &claims["slurm"]), (&json!("session"), &slurm));
    let denial = mint(&known, own(&token(&known.0, session("2")))).await.unwrap_err();
    assert!(
        denial.code == DenialCode::InvalidGrant && denial.text.contains("has ended"),
        "{denial:?}"
    );
    let unknown = ask(&known, IssuerQuestion::Mint(own(&token(&known.0, session("3"))))).await;
    assert_eq!(unknown, Answer::Failed("nobody knows".to_owned()));
}

#[tokio::test]
async fn a_token_that_is_not_valid_gets_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let known = issuer(directory.path(), json!([]));
    let other = SigningKey::generate(Algorithm::EdDsa);
    let payload = format!(r#"{{"iss":"{ISSUER}","sub":"root","aud":"a","exp":9e9,"scope":"cluster"}}"#);
    let forged = other
        .sign(&[("typ", "JWT")], payload.as_bytes())
        .expose_secret()
        .to_owned();
    let stranger = forged.replace(
        &URL_SAFE_NO_PAD.encode(&payload),
        &URL_SAFE_NO_PAD.encode(payload.replace("a.example", "b.example")),
    );
    let valid = token(&known.0, Grant::Cluster);
    for bad in [forged.as_str(), &stranger, "", "x", &valid[..valid.len() - 2]] {
        assert_eq!(
            mint(&known, own(bad)).await.unwrap_err().code,
            DenialCode::InvalidGrant,
            "{bad}"
        );
    }
}

#[tokio::test]
async fn a_client_gets_what_its_grant_says() {
    let directory = tempfile::tempdir().unwrap();
    let grant = json!({"from": "client", "clients": ["portal"], "audience": ["a", "b"], "workspaces": ["hydro", "fusion"], "max-lifetime": 60});
    let known = issuer(directory.path(), json!([grant]));
    let portal = || MintRequest {
        client: Some("portal".to_owned()),
        ..request(Evidence::Client)
    };
    let claims = mint(&known, portal()).await.unwrap();
    assert_eq!(
        (&claims["sub"], &claims["scope"], &claims["aud"]),
        (&json!("portal"), &json!("system"), &json!(["a", "b"]))
    );
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 60);
    for (wrong, code) in [
        (
            MintRequest {
                client: Some("other".to_owned()),
                ..portal()
            },
            DenialCode::UnauthorizedClient,
        ),
        (
            MintRequest {
                client: None,
                ..portal()
            },
            DenialCode::UnauthorizedClient,
        ),
        (
            MintRequest {
                audience: vec!["c".to_owned()],
                ..portal()
            },
            DenialCode::InvalidTarget,
        ),
        (
            MintRequest {
                workspaces: vec!["c".to_owned()],
                ..portal()
            },
            DenialCode::InvalidScope,
        ),
        (
            MintRequest {
                scope: Some("cluster".to_owned()),
                ..portal()
            },
            DenialCode::InvalidScope,
        ),
    ] {
        assert_eq!(mint(&known, wrong).await.unwrap_err().code, code);
    }
    // This grant does not accept evidence of another kind.
    let munge = request(Evidence::Munge(SecretText(Zeroizing::new("MUNGE:x:".to_owned()))));
    assert!(!matches!(
        ask(&known, IssuerQuestion::Mint(munge)).await,
        Answer::Minted(_)
    ));
}
