// SPDX-License-Identifier: MIT OR Apache-2.0

//! `flux workflow-token doctor`: findings, remedies, and no hangs.

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};

use common::{Bench, Munged, Ran, fails, healthy, me};
use needs::needs;
use serde_json::Value;

#[needs(munged)]
#[test]
fn finds_nothing_wrong_where_nothing_is() {
    let munged = Munged::start();
    let bench = healthy(&munged);
    let ran = bench.run(&["doctor"]);
    assert_eq!(
        ran.ok().out.lines().last(),
        Some("8 ok, 0 warn, 0 fail, 0 skip"),
        "{}",
        ran.out
    );
    assert!(ran.line("config").contains("valid, 2 rules"), "{}", ran.out);
    assert!(
        ran.line("plugin")
            .contains("/lib/workflow-token.so: deliveries.done=3 deliveries.failed=1"),
        "{}",
        ran.out
    );
    assert!(ran.line("munge").contains(&munged.socket()), "{}", ran.out);
    assert!(ran.line("rule 0").contains("tokens/"), "{}", ran.out);
    assert!(ran.line("rule 1").contains("get-token"), "{}", ran.out);

    let json: Value = serde_json::from_str(&bench.run(&["doctor", "--json"]).ok().out).unwrap();
    assert_eq!(json["ok"], true);
    assert_eq!(json["findings"].as_array().unwrap().len(), 8);
    assert!(
        json["findings"]
            .as_array()
            .unwrap()
            .iter()
            .all(|f| f["status"] == "ok" && f["do"].is_null())
    );
}

#[needs(munged)]
#[test]
fn says_that_munged_is_not_there() {
    let munged = Munged::start();
    let bench = healthy(&munged);
    drop(munged);
    fails(&bench.run(&["doctor"]), "munge", "cannot be reached", "start munged");
    let other = bench.path("other.socket");
    let ran = bench.run(&["doctor", "--munge-socket", other.to_str().unwrap()]);
    assert!(
        ran.line("munge").contains("other.socket cannot be reached"),
        "{}",
        ran.out
    );
}

#[needs(munged)]
#[test]
fn does_not_wait_for_a_munged_that_is_stopped() {
    let munged = Munged::start();
    let bench = healthy(&munged);
    munged.stop();
    let ran = bench.run(&["doctor"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.line("munge").starts_with("fail"), "{}", ran.out);
}

#[needs(munged)]
#[test]
fn names_the_key_that_is_wrong() {
    let munged = Munged::start();
    let bench = healthy(&munged);
    let conf = fs::read_to_string(bench.path("bin/conf.json")).unwrap();
    bench.write("bin/conf.json", 0o644, conf.replace("\"command\":[", "\"comand\":["));
    let ran = bench.run(&["doctor", "--munge-socket", &munged.socket()]);
    fails(
        &ran,
        "config",
        "workflow-token.rule[1].comand",
        "correct the key; flux-config-workflow-token(5)",
    );
}

#[needs(munged)]
#[test]
fn checks_a_file_or_directory_before_it_is_used() {
    let munged = Munged::start();
    let bench = healthy(&munged);
    let good = bench.path("flux.toml");
    let ran = bench.run(&["doctor", "--config", good.to_str().unwrap()]);
    assert!(
        ran.ok().line("config").contains("flux.toml: valid, 2 rules"),
        "{}",
        ran.out
    );

    fs::create_dir(bench.path("conf.d")).unwrap();
    bench.write("conf.d/a.toml", 0o644, "[workflow-token]\ntimeout = \"soon\"\n");
    let dir = bench.path("conf.d");
    let ran = bench.run(&[
        "doctor",
        "--config",
        dir.to_str().unwrap(),
        "--munge-socket",
        &munged.socket(),
    ]);
    fails(&ran, "config", "workflow-token.timeout: ", "correct the key");
    bench.write("conf.d/a.toml", 0o644, "[workflow-token\n");
    let ran = bench.run(&[
        "doctor",
        "--config",
        dir.to_str().unwrap(),
        "--munge-socket",
        &munged.socket(),
    ]);
    fails(&ran, "config", "a.toml", "correct the file");
}

#[needs(munged)]
#[test]
fn reports_a_key_that_has_no_effect_any_more() {
    let munged = Munged::start();
    let bench = healthy(&munged);
    bench.write(
        "old.toml",
        0o644,
        "[workflow-token]\nhelper = \"/usr/libexec/flux-workflow-token\"\n",
    );
    let file = bench.path("old.toml");
    let ran = bench.run(&[
        "doctor",
        "--config",
        file.to_str().unwrap(),
        "--munge-socket",
        &munged.socket(),
    ]);
    let line = ran.out.lines().find(|line| line.contains("workflow-token.helper"));
    let line = line.unwrap_or_else(|| panic!("{}", ran.out));
    assert!(line.starts_with("warn"), "{}", ran.out);
    assert!(ran.out.contains("remove it"), "{}", ran.out);
}

#[needs(munged)]
#[test]
fn shows_an_error_of_toml_on_lines_of_its_own() {
    let munged = Munged::start();
    let bench = healthy(&munged);
    bench.write("bad.toml", 0o644, "[workflow-token]\ntimeout = = \"60s\"\n");
    let file = bench.path("bad.toml");
    let ran = bench.run(&[
        "doctor",
        "--config",
        file.to_str().unwrap(),
        "--munge-socket",
        &munged.socket(),
    ]);
    assert!(!ran.out.contains("\\u{a}"), "{}", ran.out);
    // The faulty line, and the mark below it.
    let lines: Vec<&str> = ran.out.lines().collect();
    let at = lines
        .iter()
        .position(|line| line.contains("timeout = ="))
        .unwrap_or_else(|| panic!("{}", ran.out));
    assert!(lines[at + 1].trim_end().ends_with('^'), "{}", ran.out);
}

#[needs(munged)]
#[test]
fn a_name_of_digits_that_nobody_has_is_a_mistake() {
    let munged = Munged::start();
    let bench = healthy(&munged);
    for (conditions, fault) in [
        (
            "user = \"4123456\"",
            Some("workflow-token.rule[0].user: no user has the name \"4123456\""),
        ),
        (
            "group = \"4123456\"",
            Some("workflow-token.rule[0].group: no group has the name \"4123456\""),
        ),
        ("user = 4123456\ngroup = 4123456", None),
    ] {
        let rule = format!("[[workflow-token.rule]]\nsource = \"file\"\npath = \"/t\"\n{conditions}\n");
        bench.write("digits.toml", 0o644, rule);
        let file = bench.path("digits.toml");
        let ran = bench.run(&[
            "doctor",
            "--config",
            file.to_str().unwrap(),
            "--munge-socket",
            &munged.socket(),
        ]);
        match fault {
            Some(fault) => {
                assert!(ran.out.contains(fault), "{}", ran.out);
                assert!(ran.out.contains("write 4123456 without quotes"), "{}", ran.out);
            }
            None => assert!(!ran.out.contains("has the name"), "{}", ran.out),
        }
    }
}

#[test]
fn warns_where_no_job_can_get_a_token() {
    let munged = Munged::start();
    let bench = healthy(&munged);
    for (conf, says) in [
        ("{}", "contains no table [workflow-token]"),
        (r#"{"workflow-token":{}}"#, "contains no rule"),
    ] {
        bench.write("bin/conf.json", 0o644, conf);
        let ran = bench.run(&["doctor", "--munge-socket", &munged.socket()]);
        assert!(ran.ok().line("config").starts_with("warn"), "{}", ran.out);
        assert!(ran.line("config").contains(says), "{}", ran.out);
    }
}

#[needs(munged)]
#[test]
fn says_that_a_plugin_is_missing() {
    let munged = Munged::start();
    let bench = healthy(&munged);
    fs::remove_file(bench.path("shell/workflow-token.so")).unwrap();
    fails(
        &bench.run(&["doctor"]),
        "shell",
        "in no directory of conf.shell_pluginpath",
        "install it there",
    );

    let bench = healthy(&munged);
    let answer = "echo '{\"name\"";
    bench.replace_in_flux(
        answer,
        "echo 'flux-jobtap: ERROR: workflow-token.so: plugin not found' >&2; exit 1; echo '{\"name\"",
    );
    fails(
        &bench.run(&["doctor"]),
        "plugin",
        "is not loaded",
        "load it with `flux jobtap load workflow-token.so`",
    );

    let bench = healthy(&munged);
    bench.replace_in_flux(
        answer,
        "echo 'flux-jobtap: ERROR: Request requires owner credentials' >&2; exit 1; echo '{\"name\"",
    );
    let ran = bench.run(&["doctor"]);
    assert!(ran.ok().line("plugin").starts_with("skip"), "{}", ran.out);
}

#[needs(munged)]
#[test]
fn finds_files_that_others_can_change() {
    let munged = Munged::start();
    let chmod = |bench: &Bench, name: &str, mode| {
        fs::set_permissions(bench.path(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    for (name, mode, check, says, todo) in [
        (
            "tokens",
            0o777,
            "rule",
            "can be changed by everyone (mode 0777)",
            "let only the instance owner",
        ),
        (
            "tokens",
            0o770,
            "rule",
            "can be changed by its group",
            "let only the instance owner",
        ),
        (
            "libexec/get-token",
            0o757,
            "rule",
            "can be changed by everyone",
            "let only the instance owner",
        ),
        ("libexec/get-token", 0o644, "rule", "is not executable", "chmod 0755"),
        (
            "libexec",
            0o777,
            "rule",
            "the path is not safe: others can write to the directory ",
            "let only the instance owner",
        ),
        (
            "shell/workflow-token.so",
            0o777,
            "shell",
            "can be changed by everyone",
            "chown root",
        ),
    ] {
        let bench = healthy(&munged);
        chmod(&bench, name, mode);
        fails(&bench.run(&["doctor"]), check, says, todo);
    }

    // In a sticky directory, such as /tmp, nobody can replace what others own.
    let bench = healthy(&munged);
    chmod(&bench, "", 0o777);
    let ran = bench.run(&["doctor"]);
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.line("rule 0").contains("others can write to the directory "),
        "{}",
        ran.out
    );
    chmod(&bench, "", 0o1777);
    bench.run(&["doctor"]).ok();

    let bench = healthy(&munged);
    fs::remove_dir(bench.path("tokens")).unwrap();
    fails(
        &bench.run(&["doctor"]),
        "rule",
        "No such file or directory",
        "create it, or correct the rule",
    );
}

#[needs(munged, root)]
#[test]
fn finds_a_token_directory_of_another_user() {
    let munged = Munged::start();
    let bench = healthy(&munged);
    chown(bench.path("tokens"), Some(54_321), None).unwrap();
    fails(
        &bench.run(&["doctor"]),
        "rule",
        "can be changed by uid 54321",
        "let only the instance owner",
    );
}

#[needs(munged)]
#[test]
fn checks_a_token_file_without_placeholders_as_the_source_does() {
    let munged = Munged::start();
    let bench = healthy(&munged);
    let conf = fs::read_to_string(bench.path("bin/conf.json")).unwrap();
    bench.write("bin/conf.json", 0o644, conf.replace("{jobid}.jwt", "shared.jwt"));
    bench.write("tokens/shared.jwt", 0o600, "");
    bench.run(&["doctor"]).ok();
    bench.write("tokens/shared.jwt", 0o640, "");
    fails(
        &bench.run(&["doctor"]),
        "rule",
        "mode 0640 gives others than its owner access",
        "chmod 0600",
    );
}

#[needs(munged)]
#[test]
fn a_token_file_that_is_a_link_is_refused() {
    let munged = Munged::start();
    let bench = healthy(&munged);
    let conf = fs::read_to_string(bench.path("bin/conf.json")).unwrap();
    bench.write("bin/conf.json", 0o644, conf.replace("{jobid}.jwt", "shared.jwt"));
    let file = bench.write("tokens/real.jwt", 0o600, "");
    symlink(file, bench.path("tokens/shared.jwt")).unwrap();
    fails(
        &bench.run(&["doctor"]),
        "rule",
        "shared.jwt: is a symbolic link",
        "name the file that the link leads to",
    );
}

#[needs(munged, root)]
#[test]
fn a_directory_that_holds_a_link_is_on_the_way_as_for_the_source() {
    let munged = Munged::start();
    let bench = healthy(&munged);
    // A link to a link: neither path contains the directory of the second link.
    fs::create_dir(bench.path("theirs")).unwrap();
    fs::rename(bench.path("tokens"), bench.path("real")).unwrap();
    symlink("../real", bench.path("theirs/tokens")).unwrap();
    symlink("theirs/tokens", bench.path("tokens")).unwrap();
    let run = || bench.run(&["doctor", "--munge-socket", &munged.socket()]);
    run().ok();
    fs::set_permissions(bench.path("theirs"), fs::Permissions::from_mode(0o777)).unwrap();
    let says = format!(
        "others can write to the directory {}: use chmod go-w (the symbolic link {} leads there)",
        bench.path("theirs").display(),
        bench.path("tokens").display()
    );
    fails(&run(), "rule", &says, "let only the instance owner");

    fs::set_permissions(bench.path("theirs"), fs::Permissions::from_mode(0o1777)).unwrap();
    run().ok();
    lchown(bench.path("theirs/tokens"), Some(54_321), None).unwrap();
    let says = format!(
        "the symbolic link {} belongs to uid 54321",
        bench.path("theirs/tokens").display()
    );
    fails(&run(), "rule", &says, "let only the instance owner");
}

/// Returns the finding about rule 0 whose file has this path below the token directory.
fn of_path(bench: &Bench, munged: &Munged, path: &str) -> Ran {
    let conf = fs::read_to_string(bench.path("bin/conf.json")).unwrap();
    bench.write("bin/conf.json", 0o644, conf.replace("{jobid}.jwt", path));
    let ran = bench.run(&["doctor", "--munge-socket", &munged.socket()]);
    bench.write("bin/conf.json", 0o644, conf);
    ran
}

#[needs(munged)]
#[test]
fn warns_of_a_directory_that_a_placeholder_names() {
    let munged = Munged::start();
    let bench = healthy(&munged);
    for (path, component) in [
        ("{user}/.dw/token.jwt", "directory {user} in"),
        ("a-{uid}/{jobid}", "directory a-{uid} in"),
    ] {
        let ran = of_path(&bench, &munged, path);
        let line = ran.ok().line("rule 0");
        assert!(line.starts_with("warn") && line.contains(component), "{}", ran.out);
        assert!(
            ran.out.contains("→ name the file, not a directory, after the job"),
            "{}",
            ran.out
        );
    }
    for path in ["{{user}}-{uid}.jwt", "{user}-{jobid}"] {
        let ran = of_path(&bench, &munged, path);
        assert!(ran.ok().line("rule 0").starts_with("ok"), "{}", ran.out);
    }
}

#[needs(munged, root)]
#[test]
fn finds_a_directory_of_the_user_it_is_named_after() {
    let munged = Munged::start();
    let bench = healthy(&munged);
    for name in ["of-54321", "of-0", "of-1"] {
        fs::create_dir(bench.path("tokens").join(name)).unwrap();
    }
    chown(bench.path("tokens/of-54321"), Some(54_321), None).unwrap();
    let ran = of_path(&bench, &munged, "of-{uid}/token.jwt");
    fails(
        &ran,
        "rule",
        "tokens/of-54321, which can be changed by uid 54321",
        "name the file",
    );
    let ran = of_path(&bench, &munged, "of-{jobid.dec}/token.jwt");
    assert!(ran.ok().line("rule 0").starts_with("warn"), "{}", ran.out);
}

#[needs(munged)]
#[test]
fn warns_of_a_secret_among_the_arguments_of_a_command() {
    let munged = Munged::start();
    let bench = healthy(&munged);
    let conf = fs::read_to_string(bench.path("bin/conf.json")).unwrap();
    let secret = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl";
    bench.write(
        "bin/conf.json",
        0o644,
        conf.replace("{user}", &format!("--key={secret}")),
    );
    let ran = bench.run(&["doctor"]);
    let line = ran.ok().line("looks like a secret");
    assert!(line.starts_with("warn") && line.contains("rule 1"), "{}", ran.out);
    assert!(line.contains("argument 1 of the command"), "{}", ran.out);
    assert!(!ran.out.contains(&secret[..10]), "{}", ran.out);
}

/// Flux merges the tables of several files, but replaces arrays.
#[needs(munged)]
#[test]
fn warns_of_arrays_in_more_than_one_file() {
    let munged = Munged::start();
    let bench = healthy(&munged);
    fs::create_dir(bench.path("conf.d")).unwrap();
    fs::rename(bench.path("flux.toml"), bench.path("conf.d/token.toml")).unwrap();
    let plugins = "[[job-manager.plugins]]\nload = \"some.so\"\n";
    let directory = bench.path("conf.d").display().to_string();
    for (name, text) in [
        ("conf.d/b.toml", plugins),
        ("conf.d/c.toml.old", plugins),
        ("conf.d/d.toml", "[job-manager]\n"),
        ("conf.d/e.toml", "[workflow-token]\nunlink = true\n"),
        ("conf.d/.hidden.toml", "[[workflow-token.rule]]\nsource = \"file\"\n"),
    ] {
        bench.write(name, 0o644, text);
    }
    let ran = bench.run(&["doctor", "--config", &directory]);
    assert!(ran.ok().out.contains(" 0 warn, "), "{}", ran.out);

    bench.write("conf.d/a.toml", 0o644, plugins);
    let rule = format!(
        "[[workflow-token.rule]]\nsource = \"file\"\npath = \"{}/{{jobid}}\"\n",
        bench.path("tokens").display()
    );
    bench.write("conf.d/site.toml", 0o644, &rule);
    let cases = fs::read_to_string(bench.path("bin/cases")).unwrap();
    let attribute = format!("in\n\"getattr config.path\") echo {directory};;");
    bench.write("bin/cases", 0o644, cases.replacen("in\n", &attribute, 1));
    for args in [&["doctor", "--config", &directory][..], &["doctor"]] {
        let ran = bench.run(args);
        for (key, later, earlier) in [
            ("job-manager.plugins", "b.toml", "a.toml"),
            ("workflow-token.rule", "token.toml", "site.toml"),
        ] {
            let line = ran.ok().line(&format!(
                "{key}: the array in {directory}/{later} replaces the one in {directory}/{earlier}"
            ));
            assert!(line.starts_with("warn"), "{}", ran.out);
            assert!(
                ran.out.contains(&format!("→ write all of {key} in one file")),
                "{}",
                ran.out
            );
        }
    }
}

#[needs(munged)]
#[test]
fn says_who_should_run_it() {
    let munged = Munged::start();
    let bench = healthy(&munged);
    bench.replace_in_flux(&format!("echo {};;", me()), &format!("echo {};;", me() + 54_321));
    let ran = bench.run(&["doctor"]);
    assert!(ran.line("instance").starts_with("warn"), "{}", ran.out);
    assert!(ran.out.contains("→ run this as the instance owner"), "{}", ran.out);
}

#[needs(munged)]
#[test]
fn without_an_instance_it_checks_what_it_can() {
    let munged = Munged::start();
    let bench = healthy(&munged);
    let shell = bench.path("shell").display().to_string();
    bench.flux(&format!(
        r#"
        "config builtin shell_pluginpath") echo {shell};;
        *) echo "flux: flux_open: No such file or directory" >&2; exit 1;;"#
    ));
    let ran = bench.run(&["doctor", "--munge-socket", &munged.socket()]);
    assert_eq!(
        ran.ok().out.lines().last(),
        Some("3 ok, 0 warn, 0 fail, 3 skip"),
        "{}",
        ran.out
    );
    assert!(
        ran.line("config").contains("does not run in a Flux instance"),
        "{}",
        ran.out
    );

    let ran = Ran::of(
        bench
            .command(&["doctor", "--munge-socket", &munged.socket()])
            .env("PATH", "/nonexistent"),
    );
    assert_eq!(
        ran.ok().out.lines().last(),
        Some("2 ok, 0 warn, 0 fail, 4 skip"),
        "{}",
        ran.out
    );
    assert!(ran.line("plugin").contains("flux is not on PATH"), "{}", ran.out);
}

#[needs(munged)]
#[test]
fn an_instance_that_hangs_is_one_finding() {
    let munged = Munged::start();
    let bench = healthy(&munged);
    bench.flux("\"config builtin\"*) echo /nonexistent;;\n*) exec sleep 300;;");
    let ran = bench.run(&["doctor", "--munge-socket", &munged.socket()]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.line("instance").starts_with("fail"), "{}", ran.out);
    assert!(ran.out.contains("did not answer within 10 seconds"), "{}", ran.out);
}

#[test]
fn the_version_and_help_are_there_and_supervise_is_not() {
    let bench = Bench::new();
    assert_eq!(
        bench.run(&["--version"]).ok().out,
        concat!("flux-workflow-token ", env!("CARGO_PKG_VERSION"), "\n")
    );
    let help = bench.run(&["--help"]);
    for name in ["issue", "inspect", "show", "doctor"] {
        assert!(help.ok().out.contains(name));
    }
    assert!(!help.out.contains("supervise"));
}
