// SPDX-License-Identifier: MIT OR Apache-2.0

//! The examples of configurations that packages install are accepted by `doctor`.

mod common;

use std::fs;
use std::path::Path;

use common::{Bench, Munged, healthy, me};
use needs::needs;

/// Returns an example, with the paths and names of this machine in place of those of a site.
fn example(name: &str, replacements: &[(&str, &str)]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../packaging/examples")
        .join(name);
    let mut text = fs::read_to_string(path).unwrap();
    for (from, to) in replacements {
        assert!(text.contains(from), "no {from:?} in {name}");
        text = text.replace(from, to);
    }
    text
}

#[needs(munged)]
#[test]
fn flux() {
    let munged = Munged::start();
    let bench = healthy(&munged);
    let keys = bench.path("keys").display().to_string();
    bench.run(&["keygen", &keys]).ok();
    let text = example("flux.toml", &[("/etc/flux/workflow-token/keys", &keys)]);
    bench.write("flux.toml", 0o644, text);
    let config = bench.path("flux.toml").display().to_string();
    let ran = bench.run(&["doctor", "--config", &config, "--munge-socket", &munged.socket()]);
    ran.ok();
    assert!(ran.line("config").contains("valid, 1 rule"), "{}", ran.out);
}

#[test]
fn slurm() {
    let bench = Bench::new();
    bench.write("token", 0o600, "secret\n");
    let token = bench.path("token").display().to_string();
    let user = format!("user = {}\nservers", me());
    let text = example(
        "slurm.toml",
        &[("/etc/workflow-token/token", &token), ("servers", &user)],
    );
    bench.write("slurm.toml", 0o644, text);
    let config = bench.path("slurm.toml").display().to_string();
    let ran = bench.run(&["doctor", "--config", &config]);
    // No cluster runs here. t/packages/upgrade.t has one, in which nothing fails.
    assert!(ran.line("rule 0").starts_with("ok"), "{}", ran.out);
    assert!(!ran.out.contains("fail  config"), "{}", ran.out);
}
