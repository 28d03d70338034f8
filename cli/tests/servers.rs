//! `flux workflow-token doctor` with rules whose source is oauth2, and with issuers whose keys are asked for.

mod common;
#[path = "../../source/tests/support/login.rs"]
mod login;

use common::{Bench, Ran, doctor};
use login::{Fault, JWKS, Login, METADATA, TOKEN, key};

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
    says(&ran, "ok", "oauth2", &["rule 0: ", &url, "its metadata is good"]);
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
