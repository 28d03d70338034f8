// SPDX-License-Identifier: MIT OR Apache-2.0

//! MUNGE: whether munged seals and opens records.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use config::Config;
use seal::{Expected, Munge, Owner, Record, Secret, Staleness, Variables};

use super::finding::{Finding, fail, ok, warn};
use crate::{people, within};

const CHECK: &str = "munge";

/// Seals a record for the caller, and opens it again.
pub(super) fn check(config: Option<&Config>, socket: Option<&Path>) -> Vec<Finding> {
    const START: &str =
        "start munged (systemctl start munge), and check the path of its socket, which all users must reach";

    let configured = config.map(|config| &config.munge);
    let socket = socket.or_else(|| configured.and_then(|munge| munge.socket.as_deref()));
    let place = socket.map_or_else(
        || "MUNGE's default socket".to_owned(),
        |path| path.display().to_string(),
    );
    let client = Munge::new(socket).map(|munge| match configured {
        Some(configured) => munge.cipher(configured.cipher).mac(configured.mac).ttl(configured.ttl),
        None => munge,
    });
    let client = match client {
        Ok(client) => client,
        Err(e) => return vec![fail(CHECK, format!("{place}: {e}"), "name another path")],
    };

    let begin = Instant::now();
    match within::timeout(move || round_trip(&client)) {
        None => {
            let seconds = within::TIMEOUT.as_secs();
            let what = format!("munged at {place} did not answer within {seconds} seconds");
            vec![fail(
                CHECK,
                what,
                "check whether it is stopped or overloaded, and restart it (systemctl restart munge)",
            )]
        }
        Some(Err(e)) if e.is_retryable() => {
            vec![fail(CHECK, format!("munged at {place} cannot be reached: {e}"), START)]
        }
        Some(Err(e)) => vec![fail(
            CHECK,
            format!("munged at {place} does not work: {e}"),
            "read the log of munged",
        )],
        Some(Ok(trip)) => {
            let took = begin.elapsed();
            let me = people::describe(people::me());
            let mut findings = vec![ok(
                CHECK,
                format!("munged at {place} sealed and opened for {me} in {took:.1?}"),
            )];
            findings.extend(judge(&trip));
            findings
        }
    }
}

struct Trip {
    /// The difference between munged's clock and the clock of this process.
    skew: Duration,
    staleness: Option<Staleness>,
}

fn round_trip(munge: &Munge) -> Result<Trip, seal::Error> {
    const NAME: &str = "WORKFLOW_TOKEN_DOCTOR";

    let uid = people::me();
    let owner = Owner { jobid: 0, uid };
    let mut variables = Variables::new();
    // The name is valid, and the value contains no NUL.
    let _ = variables.insert(NAME, Secret::from("this is no secret"));
    let sealed = Record::seal(munge, owner, uid, &variables, &Default::default())?;
    let now = SystemTime::now();
    let opened = sealed.open(
        munge,
        &Expected {
            owner,
            instance_owner: uid,
        },
    )?;
    let skew = now.duration_since(opened.sealed_at).unwrap_or_else(|e| e.duration());
    Ok(Trip {
        skew,
        staleness: opened.staleness,
    })
}

/// Reports wrong times. A record that is opened at once can be neither expired nor from the future.
fn judge(trip: &Trip) -> Option<Finding> {
    const ADVICE: &str = "check that the clock of this node does not jump (chronyc tracking), and restart munged";

    match trip.staleness {
        Some(Staleness::Expired) => Some(warn(CHECK, "munged reports a fresh credential as expired", ADVICE)),
        Some(Staleness::Rewound) => Some(warn(
            CHECK,
            "munged reports a fresh credential as one from the future",
            ADVICE,
        )),
        // A credential contains random bits, and this one was opened only once.
        Some(Staleness::Replayed) => Some(warn(
            CHECK,
            "munged reports a fresh credential as replayed",
            "restart munged",
        )),
        None if trip.skew > Duration::from_secs(5) => {
            let what = format!("munged dates a fresh credential {} seconds off", trip.skew.as_secs());
            Some(warn(CHECK, what, ADVICE))
        }
        None => None,
    }
}
