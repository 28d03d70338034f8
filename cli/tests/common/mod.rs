// SPDX-License-Identifier: MIT OR Apache-2.0

//! Common parts of the command's tests: they run it with a `flux` that is a script, and start a munged.

#![allow(dead_code, reason = "each test file is a separate program, and uses a part of this")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

#[path = "../../../tests/support/server.rs"]
mod server;

use server::Server;

/// The longest time of a command, in seconds: more than all of its timeouts take.
const LIMIT: &str = "120";

/// The command in an isolated environment: no token, no Flux instance, and a `flux` on PATH that runs `script`.
pub struct Bench {
    pub dir: TempDir,
}

/// The result of a run.
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        let flux = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/flux");
        std::os::unix::fs::symlink(flux, dir.path().join("bin/flux")).unwrap();
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Defines the replies of `flux` on PATH, as branches of a shell `case` over its arguments.
    pub fn flux(&self, cases: &str) -> &Self {
        let unknown = "*) echo \"flux: no such test case: $*\" >&2; exit 99;;";
        self.write(
            "bin/cases",
            0o644,
            format!("case \"$*\" in\n{cases}\n{unknown}\nesac\n"),
        );
        self
    }

    /// Replaces text in the replies of `flux`.
    pub fn replace_in_flux(&self, from: &str, to: &str) {
        let cases = fs::read_to_string(self.path("bin/cases")).unwrap();
        assert!(cases.contains(from), "no {from:?} in {cases}");
        self.write("bin/cases", 0o644, cases.replace(from, to));
    }

    pub fn write(&self, name: &str, mode: u32, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    pub fn command(&self, args: &[&str]) -> Command {
        // A command that hangs is killed, and has status 124.
        let mut command = Command::new("/usr/bin/timeout");
        command
            .args(["--kill-after=5", LIMIT, env!("CARGO_BIN_EXE_flux-workflow-token")])
            .args(args)
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", self.path("bin").display()))
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::of(&mut self.command(args))
    }

    pub fn run_with_stdin(&self, args: &[&str], stdin: &[u8]) -> Ran {
        let mut command = self.command(args);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The command may end without reading all input.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        Ran::from(child.wait_with_output().unwrap())
    }
}

impl Ran {
    pub fn of(command: &mut Command) -> Self {
        Self::from(command.output().unwrap())
    }

    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Asserts that the command failed, printed nothing, and wrote one line that contains `says`.
    #[track_caller]
    pub fn refused(&self, says: &str) {
        assert_eq!(self.code, Some(1), "{}{}", self.out, self.err);
        assert_eq!(self.out, "");
        assert_eq!(self.err.lines().count(), 1, "{}", self.err);
        assert!(self.err.starts_with("flux-workflow-token: "), "{}", self.err);
        assert!(self.err.contains(says), "{:?} does not say {says:?}", self.err);
    }

    #[track_caller]
    pub fn ok(&self) -> &Self {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        self
    }

    /// Returns the line that contains `mark`.
    #[track_caller]
    pub fn line(&self, mark: &str) -> &str {
        self.out
            .lines()
            .find(|line| line.contains(mark))
            .unwrap_or_else(|| panic!("no {mark:?} in\n{}", self.out))
    }
}

/// A munged with a separate key and socket. Dropping it ends the process.
pub struct Munged {
    server: Server,
    dir: TempDir,
}

impl Munged {
    /// Starts one. The test needs munged.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Clients of any uid must be able to reach the socket in the directory.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = |name: &str| dir.path().join(name).into_os_string().into_string().unwrap();
        let mut key = vec![0; 128];
        std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").unwrap(), &mut key).unwrap();
        fs::write(path("key"), key).unwrap();
        fs::set_permissions(path("key"), fs::Permissions::from_mode(0o600)).unwrap();

        let mut munged = Command::new("munged");
        munged
            .env("PATH", "/usr/sbin:/usr/local/sbin:/usr/bin")
            .args(["--foreground", "--force"])
            .arg(format!("--socket={}", path("socket")))
            .arg(format!("--key-file={}", path("key")))
            .arg(format!("--pid-file={}", path("pid")))
            .arg(format!("--seed-file={}", path("seed")))
            .stdin(Stdio::null());
        let mut server = Server::start(&mut munged);
        server.until(|| UnixStream::connect(path("socket")).is_ok());
        Self { server, dir }
    }

    pub fn socket(&self) -> String {
        self.dir.path().join("socket").into_os_string().into_string().unwrap()
    }

    pub fn stop(&self) {
        self.signal(nix::sys::signal::SIGSTOP);
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.server.pid() as i32), signal).unwrap();
    }
}

/// Returns the findings of doctor about the file `flux.toml`, and asserts that they do not contain the canary.
pub fn doctor(bench: &Bench) -> Ran {
    let ran = bench.run(&["doctor", "--config", bench.path("flux.toml").to_str().unwrap()]);
    assert!(
        !format!("{}{}", ran.out, ran.err).contains("canary"),
        "a secret was told: {}",
        ran.out
    );
    ran
}

pub fn me() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// A correctly configured node: an instance, both plugins, a token directory and a command.
pub fn healthy(munged: &Munged) -> Bench {
    let bench = Bench::new();
    for dir in ["shell", "tokens", "libexec"] {
        fs::create_dir(bench.path(dir)).unwrap();
    }
    bench.write("shell/workflow-token.so", 0o755, "");
    bench.write("libexec/get-token", 0o755, "#!/bin/sh\n");
    bench.write(
        "flux.toml",
        0o644,
        format!(
            r#"
            [workflow-token]
            munge-socket = "{}"
            [[workflow-token.rule]]
            attribute = "system.dw"
            source = "file"
            path = "{}/{{jobid}}.jwt"
            [[workflow-token.rule]]
            queue = "debug"
            source = "command"
            command = ["{}", "{{user}}"]
            "#,
            munged.socket(),
            bench.path("tokens").display(),
            bench.path("libexec/get-token").display(),
        ),
    );
    let toml = config::read_files(&bench.path("flux.toml")).unwrap().conf;
    bench.write("bin/conf.json", 0o644, toml.to_string());
    bench.flux(&format!(
        r#"
        "getattr security.owner") echo {};;
        "getattr conf.shell_pluginpath") echo /nonexistent:{};;
        "config get") cat "$(dirname "$0")"/conf.json;;
        "jobtap query workflow-token.so") echo '{{"name":"workflow-token.so","path":"/lib/workflow-token.so",
            "deliveries":{{"done":3,"failed":1}}}}';;"#,
        me(),
        bench.path("shell").display()
    ));
    bench
}

/// Asserts that exactly one finding failed, and that it contains this fact and this remedy.
#[track_caller]
pub fn fails(ran: &Ran, check: &str, says: &str, todo: &str) {
    assert_eq!(ran.code, Some(1), "{}{}", ran.out, ran.err);
    let mut lines = ran.out.lines().skip_while(|line| !line.starts_with("fail"));
    let found = lines.next().unwrap();
    // A fact may consist of several lines.
    let advice = lines.find(|line| line.trim_start().starts_with('→')).unwrap();
    assert!(
        found.starts_with(&format!("fail  {check}")) && found.contains(says),
        "{}",
        ran.out
    );
    assert!(advice.contains(&format!("→ {todo}")), "{}", ran.out);
    assert!(ran.out.lines().last().unwrap().contains(", 1 fail, "), "{}", ran.out);
}
