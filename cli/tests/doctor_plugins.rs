// SPDX-License-Identifier: MIT OR Apache-2.0

//! `flux workflow-token doctor`: the plugins that replace those of flux-coral2.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use common::{Bench, Munged, fails, healthy};
use needs::needs;

const CRAY_PMI: &str = "cray-pmi-bootstrap.so";

/// A node with all plugins of this project and cray_pals.so, which its initrc loads in the correct order.
fn with_all(munged: &Munged) -> Bench {
    let bench = healthy(munged);
    bench.write("shell/dws_environment.so", 0o755, "…dws-environment…");
    for name in [CRAY_PMI, "cray_pals.so"] {
        bench.write(&format!("shell/{name}"), 0o755, "");
    }
    let lines = format!("plugin.load {{ file = \"{CRAY_PMI}\" }}\nplugin.load {{ file = \"*.so\", conf = {{}} }}\n");
    let initrc = bench.write("initrc.lua", 0o644, lines);
    add(
        &bench,
        &format!(
            r#"
            "getattr conf.shell_initrc") echo {};;
            "jobtap query dws-jobtap.so") echo '{{"name":"dws-jobtap.so","path":"/lib/dws-jobtap.so","in-flight":7}}';;
            "jobtap query {CRAY_PMI}") echo '{{"name":"{CRAY_PMI}","path":"/lib/{CRAY_PMI}","ports-free":1000}}';;"#,
            initrc.display()
        ),
    );
    bench
}

/// Sets a reply of `flux` that takes precedence over all others.
fn add(bench: &Bench, cases: &str) {
    let all = fs::read_to_string(bench.path("bin/cases")).unwrap();
    bench.write("bin/cases", 0o644, all.replacen("in\n", &format!("in\n{cases}\n"), 1));
}

fn not_loaded(bench: &Bench, object: &str) {
    add(
        bench,
        &format!("\"jobtap query {object}\") echo 'flux-jobtap: ERROR: {object}: plugin not found' >&2; exit 1;;"),
    );
}

/// Replies like flux-coral2's own plugins, which report nothing.
fn theirs(bench: &Bench, object: &str) {
    add(
        bench,
        &format!("\"jobtap query {object}\") echo '{{\"name\":\"{object}\",\"path\":\"/lib/{object}\"}}';;"),
    );
}

#[needs(munged)]
#[test]
fn finds_nothing_wrong_where_nothing_is() {
    let munged = Munged::start();
    let ran = with_all(&munged).run(&["doctor"]);
    assert_eq!(
        ran.ok().out.lines().last(),
        Some("13 ok, 0 warn, 0 fail, 0 skip"),
        "{}",
        ran.out
    );
    for (mark, says) in [
        ("/lib/dws-jobtap.so", "in-flight=7"),
        ("/lib/cray-pmi-bootstrap.so", "ports-free=1000"),
        ("shell/dws_environment.so", "is installed"),
        ("shell/cray-pmi-bootstrap.so", "is installed"),
        ("initrc.lua", "loads cray-pmi-bootstrap.so before cray_pals.so"),
    ] {
        assert!(ran.line(mark).contains(says), "{mark}: {}", ran.out);
    }
}

#[needs(munged)]
#[test]
fn a_plugin_of_flux_coral2_in_the_place_of_ours_is_called_that() {
    let munged = Munged::start();
    for (object, in_clear) in [
        ("dws-jobtap.so", "the variables of rabbit jobs"),
        (CRAY_PMI, "the secret for Cray PMI"),
    ] {
        let bench = with_all(&munged);
        theirs(&bench, object);
        let ran = bench.run(&["doctor"]);
        let line = ran.ok().line("flux-coral2");
        assert!(line.starts_with("warn  plugin"), "{}", ran.out);
        assert!(
            line.contains(&format!("the loaded {object}, from /lib/{object}")) && line.contains(in_clear),
            "{}",
            ran.out
        );
        assert!(
            ran.out.contains(&format!(
                "flux jobtap load --remove={object} {object}; see doc/upgrade.md"
            )),
            "{}",
            ran.out
        );
    }

    let bench = with_all(&munged);
    bench.write("shell/dws_environment.so", 0o755, "…dws_environment…");
    fails(
        &bench.run(&["doctor"]),
        "shell",
        "shell/dws_environment.so does not belong to this project but to flux-coral2",
        "install the one of this project, on every node",
    );
    // If the job manager has loaded their plugin, too, their shell plugin is correct.
    theirs(&bench, "dws-jobtap.so");
    let ran = bench.run(&["doctor"]);
    assert!(!ran.ok().out.contains("shell/dws_environment.so"), "{}", ran.out);
}

#[needs(munged)]
#[test]
fn a_part_in_the_job_shell_that_is_missing_is_missed_where_it_is_needed() {
    let munged = Munged::start();
    for (object, part, without) in [
        (
            "dws-jobtap.so",
            "dws_environment.so",
            "jobs start without their variables",
        ),
        (CRAY_PMI, CRAY_PMI, "jobs on several nodes do not start"),
    ] {
        let bench = with_all(&munged);
        fs::remove_file(bench.path("shell").join(part)).unwrap();
        let ran = bench.run(&["doctor"]);
        let says = format!("{part} is in no directory of conf.shell_pluginpath");
        fails(&ran, "shell", &says, "install it there, on every node");
        assert!(ran.out.contains(without), "{}", ran.out);
        not_loaded(&bench, object);
        let ran = bench.run(&["doctor"]);
        assert!(!ran.ok().out.contains(part), "{}", ran.out);
    }

    let bench = with_all(&munged);
    fs::set_permissions(
        bench.path("shell/dws_environment.so"),
        fs::Permissions::from_mode(0o757),
    )
    .unwrap();
    fails(
        &bench.run(&["doctor"]),
        "shell",
        "can be changed by everyone",
        "chown root",
    );
}

#[needs(munged)]
#[test]
fn a_table_for_rabbit_jobs_without_the_plugin_is_found() {
    let munged = Munged::start();
    let bench = with_all(&munged);
    not_loaded(&bench, "dws-jobtap.so");
    let conf = fs::read_to_string(bench.path("bin/conf.json")).unwrap();
    let table = "{\"workflow-token\":{\"dws\":{\"source\":\"kubernetes\",\"kubeconfig\":\"/nonexistent\"},";
    bench.write("bin/conf.json", 0o644, conf.replacen("{\"workflow-token\":{", table, 1));
    let ran = bench.run(&["doctor"]);
    let line = ran.line("[workflow-token.dws]");
    assert!(
        line.starts_with("fail  plugin") && line.contains("dws-jobtap.so is not loaded"),
        "{}",
        ran.out
    );
    assert!(
        ran.out.contains("→ load it with `flux jobtap load dws-jobtap.so`"),
        "{}",
        ran.out
    );
}

#[needs(munged)]
#[test]
fn a_site_with_rabbits_alone_needs_no_plugin_for_rules() {
    let munged = Munged::start();
    let bench = with_all(&munged);
    not_loaded(&bench, "workflow-token.so");
    fs::remove_file(bench.path("shell/workflow-token.so")).unwrap();
    bench.write("bin/conf.json", 0o644, "{\"workflow-token\":{}}");
    let ran = bench.run(&["doctor", "--munge-socket", &munged.socket()]);
    assert!(
        ran.ok().line("no rule needs it").starts_with("ok    plugin"),
        "{}",
        ran.out
    );
}

#[needs(munged)]
#[test]
fn the_order_in_which_job_shells_load_plugins_is_checked() {
    let munged = Munged::start();
    let bench = with_all(&munged);
    let initrc = |text: &str| bench.write("initrc.lua", 0o644, text);

    initrc("-- plugin.load \"cray-pmi-bootstrap.so\"\nplugin.load { file = \"*.so\", conf = {} }\n");
    let ran = bench.run(&["doctor"]);
    let line = ran.ok().line("depends on the locale");
    assert!(line.starts_with("warn  shell"), "{}", ran.out);
    let first = "load it by name before all others, on every node: plugin.load { file = \"cray-pmi-bootstrap.so\" }";
    assert!(ran.out.contains(first), "{}", ran.out);

    initrc("plugin.load \"cray_pals.so\"\nplugin.load \"*.so\"\n");
    let ran = bench.run(&["doctor"]);
    fails(&ran, "shell", "loads cray-pmi-bootstrap.so after cray_pals.so", "make ");
    assert!(ran.out.contains(first), "{}", ran.out);

    // Directories are searched from the last to the first.
    initrc("plugin.load \"*.so\"\n");
    fs::create_dir(bench.path("other")).unwrap();
    bench.write("other/cray_pals.so", 0o755, "");
    fs::remove_file(bench.path("shell/cray_pals.so")).unwrap();
    let path = |dirs: [&str; 2]| {
        let dirs = dirs.map(|dir| bench.path(dir).display().to_string()).join(":");
        add(&bench, &format!("\"getattr conf.shell_pluginpath\") echo {dirs};;"));
    };
    path(["other", "shell"]);
    let ran = bench.run(&["doctor"]);
    assert!(
        ran.ok()
            .line("loads cray-pmi-bootstrap.so before cray_pals.so")
            .starts_with("ok "),
        "{}",
        ran.out
    );
    path(["shell", "other"]);
    fails(
        &bench.run(&["doctor"]),
        "shell",
        "loads cray-pmi-bootstrap.so after cray_pals.so",
        "make ",
    );

    initrc("plugin.load \"workflow-token.so\"\nplugin.load \"dws_environment.so\"\n");
    let ran = bench.run(&["doctor"]);
    let line = ran.ok().line("initrc.lua loads cray-pmi-bootstrap.so");
    assert!(
        line.starts_with("warn  shell") && line.contains("no line of "),
        "{}",
        ran.out
    );
    assert!(
        ran.out
            .contains("→ add plugin.load { file = \"cray-pmi-bootstrap.so\" } to it"),
        "{}",
        ran.out
    );
}
