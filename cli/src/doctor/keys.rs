// SPDX-License-Identifier: MIT OR Apache-2.0

//! Keys: those with which the instance signs, and those with which it verifies.

use config::{Config, KeyPath, Source, TrustedKeys};
use source::keys::{self, Keys, KeysError, Want};

use super::finding::{Finding, fail, ok, skip, warn};
use crate::{people, within};

const CHECK: &str = "keys";

/// Reads all keys as the instance does. `owner` is the uid of the instance owner.
pub(super) fn check(config: &Config, owner: u32) -> Vec<Finding> {
    let mut all: Vec<(String, &KeyPath, KeyUse)> = Vec::new();
    let issuers = config.rules.iter().filter_map(|rule| match &rule.source {
        Source::Issuer(issuer) => Some(&issuer.keys),
        _ => None,
    });
    // All rules use the same issuer.
    all.extend(issuers.take(1).map(|keys| ("issuer".to_owned(), keys, KeyUse::Signing)));
    all.extend(config.trusts.iter().filter_map(|trust| match &trust.keys {
        TrustedKeys::Path(path) => Some((format!("trust {}", trust.name), path, KeyUse::Verifying)),
        TrustedKeys::Secret(path) => Some((format!("trust {}", trust.name), path, KeyUse::Secret)),
        TrustedKeys::Discovered(_) => None,
    }));
    if !all.is_empty() && people::me() != owner {
        let place = if config.slurm.is_some() { "on a controller " } else { "" };
        let todo = format!(
            "run this {place}as {}, who must be able to read them",
            people::describe(owner)
        );
        return vec![skip(CHECK, "the keys of the instance were not read", todo)];
    }
    all.into_iter()
        .flat_map(|(name, path, what)| of(&name, path, what))
        .collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum KeyUse {
    Signing,
    Verifying,
    Secret,
}

fn of(name: &str, path: &KeyPath, what: KeyUse) -> Vec<Finding> {
    const REMEDY: &str = "see flux-workflow-token(1), KEY DIRECTORY";

    let path = match source::expand(path) {
        Ok(path) => path,
        Err(e) => return vec![fail(CHECK, format!("{name}: {e}"), REMEDY)],
    };
    let text = format!("{name}: {}", path.display());
    let read = within::timeout(move || match what {
        KeyUse::Signing => keys::read(&path, Want::Signing),
        KeyUse::Verifying => keys::read(&path, Want::Verifying),
        KeyUse::Secret => keys::read_secret(&path),
    });
    match read {
        None => vec![fail(
            CHECK,
            format!("{text}: it could not be read within 10 seconds"),
            "check whether the file system hangs",
        )],
        Some(read) => judge(name, &text, what, read),
    }
}

fn judge(name: &str, text: &str, what: KeyUse, read: Result<Keys, KeysError>) -> Vec<Finding> {
    let keys = match read {
        Ok(keys) => keys,
        Err(e) => {
            return vec![fail(
                CHECK,
                format!("{name}: {e}"),
                "correct it: an agent that starts before gets no keys, and jobs fail with [source-failed]",
            )];
        }
    };
    let notes = keys.notes().iter();
    let mut findings: Vec<_> = notes
        .map(|note| warn(CHECK, format!("{name}: {note}"), "remove it, or replace it"))
        .collect();
    let count = keys.verifying().len();
    findings.push(match (what, keys.signing()) {
        (KeyUse::Signing, None) => fail(
            CHECK,
            format!("{text}: no key is active"),
            "choose one with `[flux] workflow-token rotate promote`",
        ),
        (_, Some(key)) => ok(
            CHECK,
            format!(
                "{text}: {count} to verify with, {} ({}) signs",
                key.kid(),
                key.algorithm()
            ),
        ),
        (_, None) => ok(CHECK, format!("{text}: {count} to verify with")),
    });
    findings
}
