// SPDX-License-Identifier: MIT OR Apache-2.0

//! The clock. Tokens and credentials live for minutes: a wrong clock makes them expired or not yet valid.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use token::NumericDate;

use super::finding::{Finding, fail, ok};

const CHECK: &str = "clock";

/// 2025-01-01T00:00:00Z, before the first release of this program.
const EARLIEST: Duration = Duration::from_secs(1_735_689_600);
/// 2100-01-01T00:00:00Z
const LATEST: Duration = Duration::from_secs(4_102_444_800);

pub(super) fn check() -> Finding {
    let now = SystemTime::now();
    // A clock that was set back is earlier than the installation of this program.
    let installed = std::env::current_exe()
        .and_then(std::fs::metadata)
        .and_then(|meta| meta.modified());
    judge(now, installed.ok())
}

fn judge(now: SystemTime, installed: Option<SystemTime>) -> Finding {
    const ADVICE: &str = "set the clock, and synchronize all nodes with NTP (chronyc tracking, timedatectl)";

    let date = NumericDate::from(now);
    if now < UNIX_EPOCH + EARLIEST || now > UNIX_EPOCH + LATEST {
        return fail(
            CHECK,
            format!("the clock of this node is wrong: it shows {date}"),
            ADVICE,
        );
    }
    match installed.filter(|installed| *installed > now + Duration::from_secs(60)) {
        Some(installed) => {
            let installed = NumericDate::from(installed);
            let what = format!("the clock of this node shows {date}, before this program was installed ({installed})");
            fail(CHECK, what, ADVICE)
        }
        None => ok(CHECK, format!("{date}, which is plausible")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::FindingStatus;

    #[test]
    fn tells_a_wrong_clock() {
        let day = Duration::from_secs(86_400);
        let installed = UNIX_EPOCH + EARLIEST + day * 100;
        for (now, status) in [
            (UNIX_EPOCH, FindingStatus::Fail),
            (UNIX_EPOCH + LATEST + day, FindingStatus::Fail),
            (installed - day, FindingStatus::Fail),
            (installed + day, FindingStatus::Ok),
        ] {
            let found = judge(now, Some(installed));
            assert!(found.status == status, "{}", found.what);
        }
        assert!(judge(installed, None).status == FindingStatus::Ok);
    }
}
