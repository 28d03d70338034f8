//! Tokens that are issued here and verified here.

use std::time::{Duration, SystemTime};

use secrecy::ExposeSecret;
use token::{Algorithm, ClaimsToIssue, Grant, Job, KeySet, Kind, Scope, SigningKey, Verifier, mint};

#[test]
fn what_is_minted_is_verified_and_says_what_was_asked_for() {
    let now = SystemTime::now();
    for algorithm in Algorithm::ALL {
        let key = SigningKey::generate(algorithm);
        let token = mint(
            &key,
            &ClaimsToIssue {
                iss: "https://hpc.example.org".into(),
                sub: "alice".into(),
                aud: vec!["copy-offload".into()],
                iat: now,
                lifetime: Duration::from_secs(600),
                grant: Grant::Session {
                    workspace: "hydro".parse().unwrap(),
                    job: Job {
                        id: "ƒ4dVSvb".parse().unwrap(),
                        uid: 1000,
                        instance: "fluke \"1\"".into(),
                    },
                },
            },
        );
        let keys = KeySet::from(key.verifying_key());
        let verifier = Verifier::new(keys)
            .issuer("https://hpc.example.org")
            .audience("copy-offload");
        let claims = verifier.verify(token.expose_secret(), now).unwrap();
        assert_eq!(
            (claims.iss(), claims.sub()),
            (Some("https://hpc.example.org"), Some("alice"))
        );
        assert_eq!(
            (claims.scope(), claims.kind()),
            (Some(Scope::Session), Some(Kind::Workflow))
        );
        assert_eq!(claims.workspaces().collect::<Vec<_>>(), ["hydro"]);
        let job = claims.job().unwrap();
        assert_eq!((job.id, job.uid, job.instance), ("f4dVSvb", 1000, "fluke \"1\""));
        assert_eq!(claims.jti().unwrap().len(), 22);

        let again = SigningKey::from_jwk(key.to_jwk().expose_secret().as_bytes()).unwrap();
        assert_eq!(again.kid(), key.kid());
        if let Some(pem) = key.to_pem() {
            assert_eq!(
                SigningKey::from_pem(pem.expose_secret().as_bytes()).unwrap().kid(),
                key.kid()
            );
        }
    }
}
