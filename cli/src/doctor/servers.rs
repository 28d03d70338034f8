// SPDX-License-Identifier: MIT OR Apache-2.0

//! Servers on the network, queried concurrently.

use std::thread;
use std::time::Duration;

use config::{Config, Source, TrustedKeys};
use source::{Examined, JwksClient};

use super::finding::{Finding, fail, ok, skip, warn};
use crate::{people, within};

/// The timeout of all queries to one server: shorter than that of this command.
pub(super) const LIMIT: Duration = Duration::from_secs(8);

/// A server: its name in the configuration, and the function that queries it.
pub(super) type Question = (String, Box<dyn FnOnce() -> Vec<Finding> + Send>);

/// Queries all servers. `hangs` is the remedy for a query that does not end.
pub(super) fn ask(check: &'static str, questions: Vec<Question>, hangs: &str) -> Vec<Finding> {
    let asked: Vec<_> = questions
        .into_iter()
        .map(|(name, ask)| (name, thread::spawn(ask)))
        .collect();
    asked
        .into_iter()
        .flat_map(|(name, asked)| {
            let found = within::timeout(move || asked.join().ok()).flatten();
            let found =
                found.unwrap_or_else(|| vec![fail(check, "the server could not be queried within 10 seconds", hangs)]);
            found.into_iter().map(move |mut finding| {
                finding.what = format!("{name}: {}", finding.what);
                finding
            })
        })
        .collect()
}

/// Converts results to findings.
pub(super) fn findings(check: &'static str, examined: Vec<Examined>) -> Vec<Finding> {
    let finding = |examined| match examined {
        Examined::Good(what) => ok(check, what),
        Examined::Unwise { what, todo } => warn(check, what, todo),
        Examined::Bad { what, todo } => fail(check, what, todo),
    };
    examined.into_iter().map(finding).collect()
}

/// Queries authorization servers, and issuers that publish keys. `owner` is the uid of the instance owner.
pub(super) fn check(config: &Config, owner: u32) -> Vec<Finding> {
    const HANGS: &str = "check whether the file system of ca-file or of the client's secret hangs";

    let rules = config.rules.iter().enumerate();
    let servers = rules.filter_map(|(index, rule)| match &rule.source {
        Source::OAuth2(settings) => Some((format!("rule {index}"), settings.clone())),
        _ => None,
    });
    let servers: Vec<Question> = servers
        .map(|(name, settings)| -> Question {
            let ask = move || findings("oauth2", source::examine_oauth2(&settings, LIMIT));
            (name, Box::new(ask))
        })
        .collect();
    let issuers = config.trusts.iter().filter_map(|trust| match &trust.keys {
        TrustedKeys::Discovered(discovery) => Some((trust, discovery.clone())),
        _ => None,
    });
    let issuers: Vec<Question> = issuers
        .map(|(trust, discovery)| -> Question {
            let issuer = trust.issuer.clone();
            let ask = move || findings("trust", vec![JwksClient::examine(&issuer, &discovery, LIMIT)]);
            (format!("trust {}", trust.name), Box::new(ask))
        })
        .collect();
    let mut found = if people::me() == owner || servers.is_empty() {
        ask("oauth2", servers, HANGS)
    } else {
        let todo = format!(
            "run this as {}, who must be able to read the secrets of clients",
            people::describe(owner)
        );
        vec![skip("oauth2", "the authorization servers were not queried", todo)]
    };
    found.extend(ask("trust", issuers, HANGS));
    found
}
