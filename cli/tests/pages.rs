// SPDX-License-Identifier: MIT OR Apache-2.0

//! The documentation: the parser accepts its examples, and the page of the command is what its help says.

use std::{collections::BTreeSet, fs, path::Path};

use config::{Config, TABLE};

#[path = "../../tests/support/pages.rs"]
mod pages;

use pages::{Block, Page};

/// Tables of Flux that an example may have beside ours.
const TABLES: [&str; 2] = [TABLE, "job-manager"];

/// Reads each example as doctor and the plugins read the configuration. Those of the token service have a test of its own.
#[test]
fn the_parser_accepts_each_example() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("workflow-token.toml");
    let mut wrong = Vec::new();
    let mut count = 0;
    let examples = Page::all().into_iter().flat_map(|page| page.examples());
    for block in examples.filter(Block::is_of_scheduler) {
        fs::write(&file, &block.text).unwrap();
        let accepted = accepted(&file);
        wrong.extend(accepted.err().map(|e| format!("{}: {e}", block.place)));
        count += 1;
    }
    assert!(count > 10, "{count} examples were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn accepted(file: &Path) -> Result<(), String> {
    let conf = config::read_files(file).map_err(|e| e.to_string())?.conf;
    let tables = conf.as_object().ok_or("it is no table")?;
    if let Some(table) = tables.keys().find(|table| !TABLES.contains(&table.as_str())) {
        return Err(format!("{table}: no table of this configuration"));
    }
    let config = Config::from_json(&conf).map_err(|e| e.to_string())?;
    match config.obsolete.first() {
        Some(obsolete) => Err(obsolete.clone()),
        None => Ok(()),
    }
}

/// Finds examples that no test would read.
#[test]
fn each_example_is_marked_as_toml() {
    for block in Page::all().iter().flat_map(Page::blocks) {
        let is_ours = block
            .text
            .lines()
            .any(|line| line.trim_start_matches('[').starts_with(TABLE) && line.starts_with('['));
        assert!(!is_ours || block.language == "toml", "{}: mark it as toml", block.place);
    }
}

#[test]
fn each_page_about_a_file_has_an_example() {
    for page in Page::all().iter().filter(|page| page.name.ends_with(".5.md")) {
        assert!(!page.examples().is_empty(), "{}", page.name);
    }
}

/// Compares the keys that the parser knows in each table with those of its page. The parser does not list the keys that all rules
/// have.
#[test]
fn each_key_of_a_table_is_on_its_page_and_no_other() {
    let rule = |source: &str| format!("[[workflow-token.rule]]\nsource = \"{source}\"\n");
    let tables = [
        "rule", "project", "identity", "issuer", "trust", "dws", "service", "slurm",
    ];
    for (page, starts, more, others) in [
        (
            "flux-config-workflow-token",
            vec!["[workflow-token]".to_owned()],
            &[][..],
            &tables[..],
        ),
        ("workflow-token-source", vec![rule("file"), rule("command")], &[], &[]),
        (
            "workflow-token-issuer",
            vec!["[workflow-token.issuer]".to_owned(), rule("issuer")],
            &[],
            &[],
        ),
        ("workflow-token-oauth2", vec![rule("oauth2"), rule("login")], &[], &[]),
        (
            "workflow-token-kubernetes",
            vec![rule("kubernetes")],
            &["source", "timeout"],
            &[],
        ),
        (
            "workflow-token-trust",
            vec!["[workflow-token.trust.a]".to_owned()],
            &[],
            &[],
        ),
        (
            "workflow-token-project",
            vec![
                "[[workflow-token.project]]".to_owned(),
                "[workflow-token.identity]".to_owned(),
            ],
            &[],
            &[],
        ),
        (
            "workflow-token-service",
            vec![
                "[workflow-token.service]".to_owned(),
                "[[workflow-token.service.grant]]".to_owned(),
                "[workflow-token.service.login]".to_owned(),
            ],
            &[],
            &["grant", "login"],
        ),
    ] {
        let mut known: BTreeSet<String> = starts.iter().flat_map(|start| known(start)).collect();
        known.extend(more.iter().map(ToString::to_string));
        known.retain(|key| !others.contains(&key.as_str()));
        let described = Page::read(&format!("doc/{page}.5.md")).keys();
        assert_eq!(described, known, "{page}");
    }
}

/// Returns the keys of a table.
fn known(start: &str) -> BTreeSet<String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("workflow-token.toml");
    fs::write(&file, format!("{start}\nunknown = 1\n")).unwrap();
    pages::expected(&accepted(&file).unwrap_err())
}

#[test]
fn the_page_of_the_command_has_the_options_of_its_help() {
    let program = Path::new(env!("CARGO_BIN_EXE_flux-workflow-token"));
    let page = Page::read("doc/flux-workflow-token.1.md");
    let differences = page.differences(program, "flux workflow-token");
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
