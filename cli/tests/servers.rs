// SPDX-License-Identifier: MIT OR Apache-2.0

//! `flux workflow-token doctor` with rules with `source = "oauth2"`, and with issuers that publish their keys.

mod common;
#[path = "../../source/tests/support/login.rs"]
mod login;

use common::{Bench, Ran, doctor};
use login::{Fault, JWKS, Login, METADATA, TOKEN, key};
use serde_json::json;

fn bench(login: &Login) -> Bench {
    let bench = Bench::new();
    bench.write("secret", 0o600, "canary");
    bench.write("ca.pem", 0o644, login.authority.pem());
    let (url, ca, secret) = (login.url(), bench.path("ca.pem"), bench.path("secret"));
    let text = format!(
        "[workflow-token.trust.login]\nissuer = \"{url}\"\nca-file = \"{0}\"\naudience = \"a\"\n\
         [[workflow-token.rule]]\nsource = \"oauth2\"\nissuer = \"{url}\"\nca-file = \"{0}\"\nclient-id = \"flux\"\n\
         client-secret = \"{1}\"\n",
        ca.display(),
        secret.display()
    );
    bench.write("flux.toml", 0o644, text);
    bench
}

#[track_caller]
fn says(ran: &Ran, status: &str, check: &str, parts: &[&str]) {
    let found = ran.out.lines().any(|line| {
        line.starts_with(status) && line[6..].starts_with(check) && parts.iter().all(|part| line.contains(part))
    });
    assert!(found, "no {status} of {check} says {parts:?}:\n{}", ran.out);
}

#[test]
fn servers_that_are_well_are_told_and_what_is_wrong_with_others() {
    let login = Login::start();
    login.publish(&[&key()]);
    let bench = bench(&login);
    let url = login.url();
    let ran = doctor(&bench);
    says(&ran, "ok", "oauth2", &["rule 0: ", "closed to others"]);
    says(&ran, "ok", "oauth2", &["rule 0: ", &url, "its metadata is valid"]);
    says(&ran, "ok", "trust", &["trust login: ", &url, "1 usable key(s)"]);
    assert!(login.asked(TOKEN).is_empty(), "a token was asked for");

    bench.write("secret", 0o644, "canary");
    login.fail(JWKS, 1, Fault::Status(500, None));
    let ran = doctor(&bench);
    assert_eq!(ran.code, Some(1));
    says(&ran, "fail", "oauth2", &["client-secret", "mode 0644"]);
    says(&ran, "fail", "trust", &["status 500"]);

    login.metadata(METADATA, "https://evil.example.org");
    let ran = doctor(&bench);
    says(&ran, "fail", "oauth2", &["another issuer"]);
    says(&ran, "fail", "trust", &["another issuer"]);

    drop(login);
    let ran = doctor(&bench);
    says(&ran, "fail", "oauth2", &[&url, "refused the connection"]);
    says(&ran, "fail", "trust", &[&url, "refused the connection"]);
}

#[test]
fn a_token_is_verified_with_the_keys_that_its_issuer_publishes() {
    let login = Login::start();
    let bench = Bench::new();
    let (url, ca) = (login.url(), bench.write("ca.pem", 0o644, login.authority.pem()));
    let keys = bench.path("keys");
    let run = |args: &[&str]| {
        let ran = bench.run(args);
        ran.ok().out.clone()
    };
    run(&["keygen", keys.to_str().unwrap()]);
    let published = || serde_json::from_str(&run(&["jwks", keys.to_str().unwrap()])).unwrap();
    let by_key = ["--issuer", &url, "--audience", "service"];
    let issue = [
        "issue",
        "--keys",
        keys.to_str().unwrap(),
        "--sub",
        "alice",
        "--scope",
        "cluster",
    ];
    let token = run(&[&issue[..], &by_key].concat());
    let ca = ["--ca-file", ca.to_str().unwrap()];
    let verify = |more: &[&str]| {
        let all = [&["verify", "--discover", "--audience", "service"], more].concat();
        bench.run_with_stdin(&all, token.as_bytes())
    };

    let cannot_tell = |ran: Ran, says: &str| {
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{}", ran.err);
        assert!(ran.err.contains(says), "{:?} does not say {says:?}", ran.err);
    };
    let by_url = [&["--issuer", &url][..], &ca].concat();
    cannot_tell(verify(&by_url), "it has no usable key: it publishes none");
    let n = format!("{}AA", "A".repeat(342));
    let keys: Vec<_> = (0..6)
        .map(|i| json!({"kty": "oct", "kid": format!("secret-{i}"), "k": "AAAA"}))
        .collect();
    let others = vec![
        json!({"kty": "RSA", "kid": "rs512", "alg": "RS512", "n": "AQAB", "e": "AQAB"}),
        json!({"kty": "RSA", "kid": "padded", "n": format!("{n}=="), "e": "AQAB"}),
        json!({"kid": "certificate", "x5c": ["MIIB"]}),
    ];
    let keys = [keys, others].concat();
    login.document(JWKS, json!({"keys": keys}));
    for kid in ["secret-0", "secret-5", "rs512", "padded", "certificate"] {
        cannot_tell(verify(&by_url), &format!("`{kid}` ("));
    }
    login.document(JWKS, published());
    verify(&by_url).ok();
    cannot_tell(verify(&["--issuer", &url]), "certificate");
    cannot_tell(verify(&["--issuer", "http://login.example.org"]), "must be https");
    cannot_tell(verify(&["--any-issuer"]), "--discover");
    login.publish(&[&key()]);
    verify(&by_url).refused("the token is signed with the key");
}
