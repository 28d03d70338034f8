//! API servers that rules name: whether they can be reached, and let Workflows and their Secrets be read.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use config::{Config, Kubernetes, Source};
use source::Examined;

use super::{Finding, fail, files, ok, warn};
use crate::within;

const CHECK: &str = "kubernetes";

/// For all questions to one server: less than this command has patience for.
const LIMIT: Duration = Duration::from_secs(8);

/// Asks all servers at the same time. `owner` is the instance owner.
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
    let helpers = helpers(config);
    let asked: Vec<_> = distinct
        .into_iter()
        .map(|(name, settings)| {
            let (settings, helpers) = (settings.clone(), helpers.clone());
            (name, thread::spawn(move || server(&settings, &helpers, owner)))
        })
        .collect();
    asked
        .into_iter()
        .flat_map(|(name, asked)| {
            let found = within::patience(move || asked.join().ok()).flatten();
            let found = found.unwrap_or_else(|| {
                vec![fail(
                    CHECK,
                    "the API server could not be asked within 10 seconds",
                    "see whether the file system of the kubeconfig file hangs",
                )]
            });
            found.into_iter().map(move |mut finding| {
                finding.what = format!("{name}: {}", finding.what);
                finding
            })
        })
        .collect()
}

fn server(settings: &Kubernetes, helpers: &[PathBuf], owner: u32) -> Vec<Finding> {
    let examined = source::examine(settings, helpers, LIMIT);
    let mut findings: Vec<_> = examined
        .into_iter()
        .map(|examined| match examined {
            Examined::Good(what) => ok(CHECK, what),
            Examined::Unwise { what, todo } => warn(CHECK, what, todo),
            Examined::Bad { what, todo } => fail(CHECK, what, todo),
        })
        .collect();
    if let Some(program) = source::exec_program(settings) {
        findings.push(files::exec_program(CHECK, &program, owner));
    }
    findings
}

/// This very program runs the commands of kubeconfig files, unless the configuration names another one.
fn helpers(config: &Config) -> Vec<PathBuf> {
    match &config.helper {
        Some(helper) => vec![helper.clone()],
        None => std::env::current_exe().into_iter().collect(),
    }
}
