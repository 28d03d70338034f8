// SPDX-License-Identifier: MIT OR Apache-2.0

//! Lanes of rules: a job waits only in the lane of its own rule.

use std::{fs, os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use config::{Asked, Part};
use delivery::{Engine, Shared, Task, Variables};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use protocol::{Code, Configure};
use serde_json::json;

fn task(uid: u32, rules: &[usize], timeout: Duration) -> Task {
    Task {
        jobid: 1,
        f58: "f1".to_owned(),
        uid,
        asked: Asked::Nothing,
        limit: None,
        slurm: None,
        requests: Default::default(),
        generation: 0,
        timeout,
        variables: Variables::Rules(rules.to_vec()),
    }
}

/// A hung command takes the only slot of the first rule. A job whose owner is not known yet could match both rules, and
/// still reaches the source of the second one.
#[tokio::test]
async fn unknown_owner() {
    let dir = tempfile::tempdir().unwrap();
    let (supervisor, pid) = (dir.path().join("hung"), dir.path().join("pid"));
    let script = format!(
        "#!/bin/sh\necho $$ >{0}.new\nmv {0}.new {0}\nexec sleep 1000\n",
        pid.display()
    );
    fs::write(&supervisor, script).unwrap();
    fs::set_permissions(&supervisor, fs::Permissions::from_mode(0o755)).unwrap();
    let rules = json!([
        {"user": 4_000_001, "source": "command", "command": ["/bin/sh"]},
        {"user": 0, "source": "file", "path": dir.path().join("missing")},
    ]);
    let configure = Configure {
        generation: 1,
        conf: json!({"workflow-token": {"max-parallel": 1, "rule": rules}}).to_string(),
        overrides: "null".to_owned(),
        path: None,
        part: Part::Tokens,
        instance: "test".to_owned(),
    };
    let engine = Engine::new(&configure, &supervisor, &Arc::<Shared>::default(), Box::new(|_, _| {}));
    let engine = Arc::new(engine.unwrap());
    let hung = tokio::spawn(Arc::clone(&engine).deliver(task(4_000_001, &[0], Duration::from_secs(60))));
    let pid = loop {
        match fs::read_to_string(&pid) {
            Ok(pid) => break pid.trim().parse().unwrap(),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let outcome = engine.deliver(task(0, &[0, 1], Duration::from_secs(10))).await;
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    hung.abort();
    let failure = outcome.result.unwrap_err();
    assert_eq!(failure.code, Code::SourceFailed, "{failure:?}");
    assert!(failure.operator.contains("missing"), "{failure:?}");
}
