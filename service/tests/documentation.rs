// SPDX-License-Identifier: MIT OR Apache-2.0

//! The documentation: the service accepts the examples of its configuration, and its page is what its help says.

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use service::settings::Settings;
use toml::{Table, Value};

#[path = "../../tests/support/pages.rs"]
mod pages;

use pages::Page;

/// Checks each example as `--check` does, with files and users that exist here in place of those that it names.
#[test]
fn the_service_accepts_each_example() {
    let dir = tempfile::tempdir().unwrap();
    let files = Files::new(dir.path());
    let mut wrong = Vec::new();
    let mut count = 0;
    let examples = Page::all().into_iter().flat_map(|page| page.examples());
    for block in examples.filter(|block| !block.is_of_scheduler()) {
        let accepted = block.text.parse::<Table>().map_err(|e| e.to_string());
        let accepted = accepted.and_then(|mut table| {
            table.iter_mut().for_each(|(key, value)| files.replace(key, value));
            Settings::parse(&table.to_string())
        });
        wrong.extend(accepted.err().map(|e| format!("{}: {e}", block.place)));
        count += 1;
    }
    assert!(count > 3, "{count} examples were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_key_of_a_table_is_on_its_page_and_no_other() {
    for (page, starts, others) in [
        (
            "workflow-tokend.toml",
            &["", "[[listen]]", "[metrics]", "[[resource]]", "[legacy]", "[audit]"][..],
            &[
                "listen",
                "metrics",
                "client",
                "resource",
                "legacy",
                "audit",
                "public-client",
                "external",
                "state",
            ][..],
        ),
        (
            "workflow-tokend-client",
            &["[[client]]", "[public-client]", "[external]"],
            &[],
        ),
        ("workflow-tokend-state", &["[state]"], &[]),
    ] {
        let errors = starts
            .iter()
            .map(|start| Settings::parse(&format!("{start}\nunknown = 1")).unwrap_err());
        let mut known: BTreeSet<String> = errors.flat_map(|e| pages::expected(&e)).collect();
        known.retain(|key| !others.contains(&key.as_str()));
        let described = Page::read(&format!("doc/{page}.5.md")).keys();
        assert_eq!(described, known, "{page}");
    }
}

#[test]
fn the_page_of_the_service_has_the_options_of_its_help() {
    let program = Path::new(env!("CARGO_BIN_EXE_workflow-tokend"));
    let page = Page::read("doc/workflow-tokend.8.md");
    let differences = page.differences(program, "workflow-tokend");
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Files of each kind that an example can name.
struct Files<'a>(&'a Path);

impl<'a> Files<'a> {
    fn new(dir: &'a Path) -> Self {
        let certificate = rcgen::generate_simple_self_signed(["tokens.example.org".to_owned()]).unwrap();
        let pem = certificate.cert.pem();
        let digits = "0123456789abcdef".repeat(4);
        for (name, content) in [
            ("certificate", &pem),
            ("ca-file", &pem),
            ("key", &certificate.signing_key.serialize_pem()),
            ("key-file", &digits),
            ("secret-file", &digits),
            ("password-file", &digits),
        ] {
            let path = dir.join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        }
        Self(dir)
    }

    /// Puts what exists here in place of the value of a key, and of the keys in it.
    fn replace(&self, key: &str, value: &mut Value) {
        match value {
            Value::Table(table) => table.iter_mut().for_each(|(key, value)| self.replace(key, value)),
            Value::Array(values) => values.iter_mut().for_each(|value| self.replace(key, value)),
            Value::String(text) if self.0.join(key).exists() => {
                assert!(text.starts_with('/'), "{key} = {text:?} must be an absolute path");
                *text = self.0.join(key).to_str().unwrap().to_owned();
            }
            Value::String(_) if ["user", "agent-user"].contains(&key) => *value = Value::Integer(0),
            _ => {}
        }
    }
}
