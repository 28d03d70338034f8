// SPDX-License-Identifier: MIT OR Apache-2.0

//! `flux workflow-token doctor` with rules with `source = "kubernetes"`.

#[path = "../../source/tests/support/api.rs"]
mod api;
mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use api::{Api, Authority, Fault};
use base64::{Engine, engine::general_purpose::STANDARD};
use common::{Bench, Ran, doctor};
use serde_json::{Value, json};

const BEARER: &str = "canary-bearer";

/// Returns a configuration with a rule for this server.
fn bench(api: &Api) -> Bench {
    let bench = Bench::new();
    configure(&bench, api, json!({"token": BEARER}));
    let kubeconfig = bench.path("kubeconfig");
    bench.write(
        "flux.toml",
        0o644,
        format!(
            "[workflow-token.dws]\nsource = \"kubernetes\"\nkubeconfig = \"{0}\"\n\
             [[workflow-token.rule]]\nattribute = \"system.dw\"\nsource = \"kubernetes\"\nkubeconfig = \"{0}\"\n",
            kubeconfig.display()
        ),
    );
    bench
}

/// Writes the kubeconfig file, with this user.
fn configure(bench: &Bench, api: &Api, user: Value) {
    let kubeconfig = json!({
        "current-context": "rabbits",
        "contexts": [{"name": "rabbits", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {
            "server": api.url(), "certificate-authority-data": STANDARD.encode(api.authority.pem()),
        }}],
        "users": [{"name": "u", "user": user}],
    });
    bench.write("kubeconfig", 0o600, kubeconfig.to_string());
}

/// Returns the findings about servers, with their remedies.
fn findings(ran: &Ran) -> Vec<String> {
    let lines: Vec<_> = ran.out.lines().collect();
    let about = lines
        .iter()
        .enumerate()
        .filter(|(_, line)| line[6..].starts_with("kubernetes"));
    about
        .map(|(at, line)| match lines.get(at + 1) {
            Some(todo) if todo.trim_start().starts_with('→') => format!("{line} {}", todo.trim_start()),
            _ => (*line).to_owned(),
        })
        .collect()
}

#[track_caller]
fn fails(ran: &Ran, says: &[&str]) {
    assert_eq!(ran.code, Some(1), "{}", ran.out);
    let found = findings(ran);
    let failed = found
        .iter()
        .find(|line| line.starts_with("fail"))
        .unwrap_or_else(|| panic!("{}", ran.out));
    for part in says.iter().chain(&["rule 0, dws: ", "→ "]) {
        assert!(failed.contains(part), "{failed} does not say {part}");
    }
}

fn healthy() -> (Api, Bench) {
    let api = Api::start();
    api.accept(BEARER);
    let bench = bench(&api);
    (api, bench)
}

#[test]
fn what_is_well_is_said_to_be() {
    let (api, bench) = healthy();
    let found = findings(&doctor(&bench));
    assert!(found.iter().all(|line| line.starts_with("ok")), "{found:?}");
    for says in [
        "/kubeconfig: can be used",
        "serves dataworkflowservices.github.io in version v1alpha7",
        "may get workflows in the namespace default",
        "may get secrets in the namespace default",
    ] {
        assert!(
            found.iter().any(|line| line.contains(says)),
            "{found:?} do not say {says}"
        );
    }
    assert_eq!(found.len(), 4, "{found:?}");
    assert_eq!(
        api.accepted(),
        1,
        "one server was asked once for the rule and the table"
    );
}

#[test]
fn what_the_credential_may_not_do_is_told_and_what_it_should_not_be_able_to() {
    let (api, bench) = healthy();
    api.deny("get secrets");
    fails(
        &doctor(&bench),
        &[
            "may not get secrets in the namespace default",
            "doc/kubernetes-rbac.yaml",
        ],
    );

    let (api, bench) = healthy();
    api.permit_all();
    let found = findings(&doctor(&bench));
    let warned: Vec<_> = found.iter().filter(|line| line.starts_with("warn")).collect();
    assert!(
        warned.len() == 1 && warned[0].contains("may do everything"),
        "{found:?}"
    );
}

#[test]
fn what_is_wrong_with_the_way_there_is_told() {
    let (api, bench) = healthy();
    api.accept("another");
    fails(
        &doctor(&bench),
        &["did not accept the credential (401)", "renew the token"],
    );
    api.accept(BEARER);
    api.versions(&[]);
    fails(&doctor(&bench), &["does not serve the API group", "DWS is installed"]);
    api.versions(&["v1alpha7"]);
    fs::set_permissions(bench.path("kubeconfig"), fs::Permissions::from_mode(0o644)).unwrap();
    fails(
        &doctor(&bench),
        &["kubeconfig", "was refused", "nobody else to read secrets"],
    );
    fs::remove_file(bench.path("kubeconfig")).unwrap();
    fails(&doctor(&bench), &["kubeconfig", "could not be read"]);

    let (api, bench) = healthy();
    drop(api);
    fails(
        &doctor(&bench),
        &["refused the connection", "check that the server runs"],
    );
}

#[test]
fn a_server_of_another_authority_is_told() {
    let (api, bench) = healthy();
    let text = fs::read_to_string(bench.path("kubeconfig")).unwrap();
    let other = text.replace(
        &STANDARD.encode(api.authority.pem()),
        &STANDARD.encode(Authority::new("another").pem()),
    );
    fs::write(bench.path("kubeconfig"), other).unwrap();
    fails(&doctor(&bench), &["UnknownIssuer", "certificate-authority"]);
}

#[test]
fn a_server_that_hangs_does_not_hang_the_command() {
    let (api, bench) = healthy();
    api.fail("/apis/", 10, Fault::Hang);
    let ran = doctor(&bench);
    fails(&ran, &["did not answer within 5 s", "check that the server works"]);
}

#[test]
fn the_command_that_gives_the_credential_is_run_and_is_nobody_elses() {
    let (api, bench) = healthy();
    let credential = json!({
        "kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1", "status": {"token": BEARER},
    });
    bench.write("get-credential", 0o755, format!("#!/bin/cat\n{credential}\n"));
    let exec = json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never",
        "command": "/bin/sh", "args": ["-c", format!("tail -n 1 {}", bench.path("get-credential").display())]}});
    configure(&bench, &api, exec);
    let found = findings(&doctor(&bench));
    assert!(found.iter().all(|line| line.starts_with("ok")), "{found:?}");
    assert!(
        found.iter().any(|line| line.contains("the exec command /bin/sh")),
        "{found:?}"
    );

    let text = fs::read_to_string(bench.path("kubeconfig")).unwrap();
    fs::write(bench.path("kubeconfig"), text.replace("/bin/sh", "./get-credential")).unwrap();
    fs::set_permissions(bench.path("get-credential"), fs::Permissions::from_mode(0o777)).unwrap();
    let ran = doctor(&bench);
    assert!(
        findings(&ran)
            .iter()
            .any(|line| line.starts_with("fail") && line.contains("get-credential: can be changed by everyone")),
        "{}",
        ran.out
    );
}
