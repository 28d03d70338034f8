// SPDX-License-Identifier: MIT OR Apache-2.0

//! Checks what the agent uses on its host besides the rules: the directory of revocations, and the socket and user of the token service.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use config::{Config, Principal, Service};
use nix::unistd::User;

use super::finding::{Finding, fail, ok, warn};
use crate::people;

/// Checks the directory of revocations and the table `service`. `agent` is the uid of the agent's user.
pub(super) fn check(config: &Config, agent: u32) -> Vec<Finding> {
    let revocations = config.agent.revocations.as_deref();
    let found = revocations.map(|directory| judge_revocations(directory, agent));
    found
        .into_iter()
        .chain(config.agent.service.iter().flat_map(service))
        .collect()
}

fn judge_revocations(directory: &Path, agent: u32) -> Finding {
    const CHECK: &str = "revocations";

    let (shown, user) = (directory.display(), people::describe(agent));
    match fs::metadata(directory) {
        Ok(meta) if meta.is_dir() && [0, agent].contains(&meta.uid()) && meta.mode() & 0o022 == 0 => {
            ok(CHECK, shown.to_string())
        }
        Ok(_) => fail(
            CHECK,
            format!("{shown} is not a directory of {user} that nobody else can write to"),
            format!("make it a directory of {user} with mode 0700"),
        ),
        Err(e) if e.kind() == io::ErrorKind::NotFound && directory.parent().is_some_and(Path::is_dir) => {
            ok(CHECK, format!("the agent creates {shown}"))
        }
        Err(e) => fail(
            CHECK,
            format!("{shown}: {e}"),
            format!("create it as a directory of {user} with mode 0700"),
        ),
    }
}

fn service(service: &Service) -> Vec<Finding> {
    const CHECK: &str = "service";

    let mut findings = Vec::new();
    if let Principal::Name(name) = &service.user
        && !matches!(User::from_name(name), Ok(Some(_)))
    {
        findings.push(fail(
            CHECK,
            format!(
                "the user {}, as which the token service runs, does not exist",
                service.user
            ),
            "create the user, or correct the key user of the table service",
        ));
    }
    let socket = service.socket.display();
    findings.push(match fs::metadata(&service.socket) {
        Ok(meta) if meta.file_type().is_socket() => ok(CHECK, format!("the agent serves {socket}")),
        _ => warn(
            CHECK,
            format!("there is no socket {socket}, so the token service cannot ask the agent"),
            "start or reload the agent, and read its log",
        ),
    });
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::FindingStatus;

    #[test]
    fn a_directory_of_revocations_exists_or_can_be_created() {
        let dir = tempfile::tempdir().unwrap();
        let me = people::me();
        let status = |path: &Path| judge_revocations(path, me).status;
        assert!(status(dir.path()) == FindingStatus::Ok);
        assert!(status(&dir.path().join("new")) == FindingStatus::Ok);
        assert!(status(&dir.path().join("no/such")) == FindingStatus::Fail);
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(status(&dir.path().join("file")) == FindingStatus::Fail);
    }

    #[test]
    fn the_user_and_the_socket_of_the_service_exist() {
        let of = |user: &str, socket: &str| {
            service(&Service {
                socket: socket.into(),
                user: Principal::Name(user.to_owned()),
                grants: Vec::new(),
                login: None,
            })
        };
        let findings = of("no-such-user", "/no/such/socket");
        assert_eq!(findings.len(), 2);
        assert!(findings[0].status == FindingStatus::Fail && findings[0].what.contains("no-such-user"));
        assert!(findings[1].status == FindingStatus::Warn && findings[1].what.contains("/no/such/socket"));
        assert_eq!(of("root", "/no/such/socket").len(), 1);
    }
}
