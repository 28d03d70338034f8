// SPDX-License-Identifier: MIT OR Apache-2.0

//! The API servers of rules: whether they reply, and grant access to Workflows and their Secrets.

use std::path::PathBuf;

use config::{Config, Kubernetes, Source};

use super::files;
use super::finding::Finding;
use super::servers::{LIMIT, Question, ask, findings};

const CHECK: &str = "kubernetes";

/// Queries all servers concurrently. `owner` is the uid of the instance owner.
pub(super) fn check(config: &Config, owner: u32) -> Vec<Finding> {
    let rules = config.rules.iter().enumerate();
    let of_rules = rules.filter_map(|(index, rule)| match &rule.source {
        Source::Kubernetes(settings) => Some((format!("rule {index}"), settings)),
        _ => None,
    });
    let of_dws = config.dws.iter().filter_map(|dws| dws.kubernetes.as_ref());
    let mut distinct: Vec<(String, &Kubernetes)> = Vec::new();
    for (name, settings) in of_rules.chain(of_dws.map(|settings| ("dws".to_owned(), settings))) {
        match distinct.iter_mut().find(|(_, other)| *other == settings) {
            Some((names, _)) => *names = format!("{names}, {name}"),
            None => distinct.push((name, settings)),
        }
    }
    // This program itself supervises the commands of kubeconfig files.
    let supervisor: Vec<PathBuf> = std::env::current_exe().into_iter().collect();
    let questions = distinct
        .into_iter()
        .map(|(name, settings)| -> Question {
            let (settings, supervisor) = (settings.clone(), supervisor.clone());
            (name, Box::new(move || server(&settings, &supervisor, owner)))
        })
        .collect();
    ask(
        CHECK,
        questions,
        "check whether the file system of the kubeconfig file hangs",
    )
}

fn server(settings: &Kubernetes, supervisor: &[PathBuf], owner: u32) -> Vec<Finding> {
    let mut findings = findings(CHECK, source::examine(settings, supervisor, LIMIT));
    if let Some(program) = source::exec_program(settings) {
        findings.push(files::exec_program(CHECK, &program, owner));
    }
    findings
}
