// SPDX-License-Identifier: MIT OR Apache-2.0

//! Commands of rules under their supervisor, in particular commands that do not end in time.

use std::{
    fs,
    future::Future,
    io::Read,
    os::{
        fd::AsFd,
        unix::fs::{PermissionsExt, chown},
    },
    path::PathBuf,
    time::Duration,
};

use config::{Config, Values};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use source::{Fetched, Slot, Source};
use tempfile::TempDir;
use tokio::sync::oneshot;

use needs::needs;

/// Longer than any test takes.
const LONG: &str = "1h";

struct Site {
    dir: TempDir,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, mode: u32, text: &str) -> PathBuf {
        let path = self.at(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// Returns a rule with a script of this name, which runs in the directory of the site.
    fn rule(&self, name: &str, script: &str, timeout: &str) -> Value {
        let script = format!("#!/bin/sh\ncd {}\n{script}\n", self.dir.path().display());
        let path = self.write(name, 0o755, &script);
        json!({"source": "command", "command": [path], "check": "none", "timeout": timeout})
    }

    fn source(&self, rule: &Value, supervisor: PathBuf) -> Box<dyn Source> {
        let table = json!({"timeout": LONG, "rule": [rule]});
        let config = Config::from_json(&json!({"workflow-token": table})).unwrap();
        source::of_rule(&config.rules[0], &[supervisor]).unwrap()
    }

    /// Runs a script as the command of a rule. Returns the result of the fetch.
    async fn run(&self, script: &str) -> Fetched {
        let rule = self.rule("script", script, LONG);
        self.source(&rule, supervisor())
            .fetch(&Values::example(), Slot::default())
            .await
    }

    /// Returns the process whose id a script has written.
    async fn pid(&self, name: &str) -> Pid {
        Pid::from_raw(self.line(name).await.parse().unwrap())
    }

    /// Returns a line that a script has written.
    async fn line(&self, name: &str) -> String {
        loop {
            let text = fs::read_to_string(self.at(name)).unwrap_or_default();
            if let Some(line) = text.strip_suffix('\n') {
                return line.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Returns the path of this crate's example, which cargo builds with its tests.
fn supervisor() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("examples/supervise");
    assert!(
        program.exists(),
        "build the examples of this crate: {}",
        program.display()
    );
    program
}

/// Returns a slot, and a receiver that fails when nothing holds the slot.
fn slot() -> (Slot, oneshot::Receiver<()>) {
    struct Guard(#[expect(dead_code, reason = "its end closes the channel")] oneshot::Sender<()>);
    let (sender, receiver) = oneshot::channel();
    (Slot::new(Guard(sender)), receiver)
}

fn is_gone(pid: Pid) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state
        .rsplit(')')
        .next()
        .is_none_or(|rest| rest.is_empty() || rest.starts_with(" Z"))
}

/// Drives a fetch until another future is ready.
async fn until<T>(fetch: impl Future<Output = Fetched>, event: impl Future<Output = T>) -> T {
    tokio::select! {
        biased;
        happened = event => happened,
        fetched = fetch => panic!("it ended: {fetched:?}"),
    }
}

fn failure(fetched: Fetched) -> String {
    fetched.result.unwrap_err().to_string()
}

/// Starts processes in their own session, orphaned processes, and processes that ignore signals.
const ESCAPING: &str = "\
    setsid sleep 1000 & echo $! >session
    (setsid sh -c 'echo $$ >orphan; trap \"\" TERM HUP INT; sleep 1000 & wait' &)
    echo $$ >command
    exec sleep 1000";

const ESCAPED: [&str; 3] = ["session", "orphan", "command"];

#[tokio::test]
async fn a_canceled_command_leaves_no_process_wherever_it_went() {
    let site = Site::new();
    let (slot, released) = slot();
    let rule = site.rule("script", ESCAPING, LONG);
    let source = site.source(&rule, supervisor());
    let job = Values::example();
    let started = async {
        let mut all = Vec::new();
        for name in ESCAPED {
            all.push(site.pid(name).await);
        }
        all
    };
    let all = until(source.fetch(&job, slot), started).await;
    assert!(released.await.is_err());
    for (pid, name) in all.into_iter().zip(ESCAPED) {
        assert!(is_gone(pid), "{name} is left");
    }
}

#[tokio::test]
async fn a_command_that_takes_too_long_leaves_no_process_wherever_it_went() {
    let site = Site::new();
    let rule = site.rule("script", ESCAPING, "2s");
    let fetched = site
        .source(&rule, supervisor())
        .fetch(&Values::example(), Slot::default())
        .await;
    let error = failure(fetched);
    assert!(
        error.contains("took longer than 2 s") && error.contains("all processes that it had started"),
        "{error}"
    );
    for name in ESCAPED {
        assert!(is_gone(site.pid(name).await), "{name} is left");
    }
}

/// A supervisor that is not root cannot kill a process that has become root.
#[needs(root, setpriv)]
#[tokio::test]
async fn an_unkillable_command_is_abandoned_and_holds_its_slot() {
    const USER: u32 = 61_001;
    let setpriv = PathBuf::from("/usr/bin/setpriv");
    let site = Site::new();
    fs::copy(&setpriv, site.at("become")).unwrap();
    fs::set_permissions(site.at("become"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::copy(supervisor(), site.at("supervise")).unwrap();
    let as_user = format!(
        "#!/bin/sh\nexec {} --reuid {USER} --regid {USER} --clear-groups {} \"$@\"\n",
        setpriv.display(),
        site.at("supervise").display()
    );
    let supervisor = site.write("supervise-as-user", 0o755, &as_user);
    fs::create_dir(site.at("of-user")).unwrap();
    chown(site.at("of-user"), Some(USER), Some(USER)).unwrap();
    let script = "echo $$ >of-user/pid\nexec ./become --reuid 0 --regid 0 --clear-groups sleep 1000";
    let rule = site.rule("script", script, "3s");

    let (slot, mut released) = slot();
    let error = failure(site.source(&rule, supervisor).fetch(&Values::example(), slot).await);
    assert!(
        error.contains("took longer than 3 s") && error.contains("except for 1 that cannot be killed"),
        "{error}"
    );
    let pid = site.pid("of-user/pid").await;
    // Another command has run and ended since, so the supervisor of this one had enough time to end.
    site.run("echo token").await.result.unwrap();
    assert!(!is_gone(pid) && released.try_recv() == Err(oneshot::error::TryRecvError::Empty));
    kill(pid, Signal::SIGKILL).unwrap();
    assert!(released.await.is_err());
}

#[tokio::test]
async fn a_supervisor_that_does_not_answer_is_abandoned_and_holds_its_slot() {
    let site = Site::new();
    let script = format!("#!/bin/sh\necho $$ >{}\nexec sleep 1000\n", site.at("pid").display());
    let hung = site.write("hung", 0o755, &script);
    let rule = site.rule("script", "echo token", "100ms");
    let (slot, mut released) = slot();
    let error = failure(site.source(&rule, hung).fetch(&Values::example(), slot).await);
    assert!(error.contains("did not answer in time"), "{error}");
    assert_eq!(released.try_recv(), Err(oneshot::error::TryRecvError::Empty));
    kill(site.pid("pid").await, Signal::SIGKILL).unwrap();
    assert!(released.await.is_err());
}

#[tokio::test]
async fn a_command_that_leaves_a_noisy_process_behind_is_not_waited_for() {
    let site = Site::new();
    let fetched = site
        .run("setsid sh -c 'echo $$ >noisy; exec yes >&2' &\nuntil test -s noisy; do :; done\necho token")
        .await;
    let noisy = site.pid("noisy").await;
    kill(noisy, Signal::SIGKILL).ok();
    assert_eq!(fetched.result.unwrap().len(), 1);
}

/// The process that starts the supervisor may have inheritable descriptors open.
#[tokio::test]
async fn neither_the_supervisor_nor_a_command_keeps_a_descriptor() {
    let site = Site::new();
    // Unlike descriptors of the standard library, these are inherited.
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let rule = site.rule("script", "echo $$ >started\nexec sleep 1000", LONG);
    let source = site.source(&rule, supervisor());
    let job = Values::example();
    let fetch = source.fetch(&job, Slot::default());
    let closed = async {
        site.pid("started").await;
        drop(writer);
        let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(10_000_u16)).unwrap();
        fds[0].any().unwrap()
    };
    assert!(until(fetch, closed).await, "somebody still has the pipe open");
    let mut rest = Vec::new();
    fs::File::from(reader).read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
}

#[tokio::test]
async fn a_program_that_others_can_change_is_not_run() {
    let site = Site::new();
    let rule = site.rule("script", "echo run >run; echo token", LONG);
    let run = async |supervisor| {
        site.source(&rule, supervisor)
            .fetch(&Values::example(), Slot::default())
            .await
    };
    for (mode, says) in [(0o775, "lets others write to it"), (0o757, "chmod go-w")] {
        fs::set_permissions(site.at("script"), fs::Permissions::from_mode(mode)).unwrap();
        let error = failure(run(supervisor()).await);
        assert!(
            error.contains("could not be started") && error.contains(says),
            "{error}"
        );
    }
    fs::set_permissions(site.at("script"), fs::Permissions::from_mode(0o755)).unwrap();

    fs::create_dir(site.at("open")).unwrap();
    fs::copy(supervisor(), site.at("open/supervise")).unwrap();
    fs::set_permissions(site.at("open"), fs::Permissions::from_mode(0o777)).unwrap();
    let error = failure(run(site.at("open/supervise")).await);
    assert!(
        error.contains("its supervisor") && error.contains("others can write to the directory"),
        "{error}"
    );
    assert!(!site.at("run").exists());
    run(supervisor()).await.result.unwrap();
    assert!(site.at("run").exists());
}

#[tokio::test]
async fn standard_error_is_logged_only_where_the_rule_says_so() {
    let site = Site::new();
    let script = "echo a-secret-token; echo no such user: a-secret-token >&2; exit 3";
    let mut rule = site.rule("script", script, LONG);
    let fetched = site
        .source(&rule, supervisor())
        .fetch(&Values::example(), Slot::default())
        .await;
    assert!(fetched.notes.is_empty(), "{:?}", fetched.notes);
    let error = failure(fetched);
    assert!(
        error.contains("exit code 3") && error.contains("wrote 29 bytes"),
        "{error}"
    );
    assert!(error.contains("log-stderr = true"), "{error}");

    rule["log-stderr"] = json!(true);
    let fetched = site
        .source(&rule, supervisor())
        .fetch(&Values::example(), Slot::default())
        .await;
    assert!(
        fetched.notes[0].ends_with("no such user: [redacted]"),
        "{:?}",
        fetched.notes
    );
}
