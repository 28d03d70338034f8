// SPDX-License-Identifier: MIT OR Apache-2.0

//! Drives an instance of the simulator, or of Flux, from a test.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use serde_json::{Value, json};

use super::server::Server;

/// Returns the path of the simulator.
pub fn flux_sim() -> PathBuf {
    built("flux-sim")
}

/// Returns the path of a program or shared object that `cargo build --workspace` made.
pub fn built(name: &str) -> PathBuf {
    Build::Shipped.path(name)
}

/// A build of the product.
#[derive(Clone, Copy)]
pub enum Build {
    /// The shipped build.
    Shipped,
    /// With the feature `fault-injection`, built by `scripts/build-faults`.
    FaultInjection,
}

impl Build {
    /// Returns the path of a program or shared object.
    pub fn path(self, name: &str) -> PathBuf {
        let test = std::env::current_exe().expect("the path of this test");
        let profile = test.ancestors().nth(2).expect("the test is in target/PROFILE/deps");
        let (path, how) = match self {
            Build::Shipped => (profile.join(name), "cargo build --workspace"),
            Build::FaultInjection => (profile.join("fault-injection").join(name), "scripts/build-faults"),
        };
        assert!(path.exists(), "{} is missing: run `{how}`", path.display());
        path
    }
}

/// An instance of the simulator, or of Flux with the same commands.
pub struct Instance {
    server: Server,
    is_flux: bool,
    /// Responses that arrived before a test waited for them.
    early: Vec<Value>,
    next_id: u64,
}

/// A request whose response is outstanding.
#[derive(Clone, Copy)]
pub struct Request(u64);

impl Instance {
    /// Starts an instance in a state directory, with further arguments.
    pub fn start(statedir: &Path, args: &[&str]) -> Instance {
        let mut simulator = Command::new(flux_sim());
        Instance::of(simulator.arg("instance").arg("--statedir").arg(statedir).args(args))
    }

    /// Starts an instance of Flux with this number of nodes. The arguments are those of the simulator. The test needs
    /// Flux.
    pub fn flux(statedir: &Path, nodes: usize, args: &[&str]) -> Instance {
        let path = std::env::var("PATH").unwrap_or_default();
        let path = match std::env::var("FLUX_PREFIX") {
            Ok(prefix) => format!("{prefix}/bin:{path}"),
            Err(_) => path,
        };
        let control = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/flux-instance.py");
        // Use env(1): `flux` is found through the PATH of this process.
        let mut flux = Command::new("/usr/bin/env");
        flux.arg(format!("PATH={path}")).args(["flux", "python"]).arg(control);
        flux.arg("--statedir")
            .arg(statedir)
            .arg("--nodes")
            .arg(nodes.to_string());
        let mut instance = Instance::of(flux.args(args));
        instance.is_flux = true;
        instance
    }

    /// Starts an instance with a command that eventually runs the simulator.
    pub fn of(command: &mut Command) -> Instance {
        Instance {
            server: Server::start(command.stdin(Stdio::piped())),
            is_flux: false,
            early: Vec::new(),
            next_id: 0,
        }
    }

    /// Sends a command without waiting for its response.
    pub fn send(&mut self, cmd: &str, fields: Value) -> Request {
        let mut request = fields;
        self.next_id += 1;
        request["cmd"] = json!(cmd);
        request["id"] = json!(self.next_id);
        let stdin = self.server.child().stdin.as_mut().expect("a pipe");
        if writeln!(stdin, "{request}").is_err() {
            self.server.fail("no longer reads commands");
        }
        Request(self.next_id)
    }

    /// Waits for the response to a request, and returns it.
    pub fn response(&mut self, request: Request) -> Value {
        loop {
            if let Some(response) = self.answered(request) {
                return response;
            }
            let line = self.server.line();
            self.early.push(parse(&line));
        }
    }

    /// Returns the response to a request, if it has arrived.
    pub fn answered(&mut self, request: Request) -> Option<Value> {
        while let Some(line) = self.server.line_now() {
            self.early.push(parse(&line));
        }
        let at = self.early.iter().position(|response| response["id"] == request.0)?;
        Some(self.early.remove(at))
    }

    /// Returns the process id of the instance.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Runs a command, which must succeed.
    #[track_caller]
    pub fn ok(&mut self, cmd: &str, fields: Value) -> Value {
        let request = self.send(cmd, fields);
        let response = self.response(request);
        assert_eq!(response["ok"], true, "{cmd}: {response}");
        response
    }

    /// Runs a command, which must fail. Returns the simulator's error.
    #[track_caller]
    pub fn error(&mut self, cmd: &str, fields: Value) -> String {
        let request = self.send(cmd, fields);
        let response = self.response(request);
        assert_eq!(response["ok"], false, "{cmd}: {response}");
        response["error"].as_str().unwrap().to_owned()
    }

    /// Submits a command, and returns the job id.
    #[track_caller]
    pub fn submit(&mut self, command: &[&str], more: Value) -> String {
        let mut request = more;
        request["command"] = json!(command);
        self.ok("submit", request)["jobid"].as_str().unwrap().to_owned()
    }

    /// Waits for an event, and returns it.
    #[track_caller]
    pub fn wait(&mut self, jobid: &str, event: &str) -> Value {
        self.ok("wait", json!({"jobid": jobid, "event": event}))["event"].clone()
    }

    /// Returns the names of the events of a job.
    pub fn events(&mut self, jobid: &str) -> Vec<String> {
        let response = self.ok("eventlog", json!({"jobid": jobid}));
        let entries = response["events"].as_array().unwrap();
        entries
            .iter()
            .map(|entry| entry["name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Shuts the instance down, which must succeed.
    pub fn shutdown(mut self) {
        let status = self.end();
        assert!(status.success(), "{status}; its output:\n{}", self.server.output());
    }

    /// Kills the instance without a chance to save anything.
    pub fn kill(mut self) {
        let mut processes = json!([]);
        if self.is_flux {
            processes = self.ok("processes", json!({}))["processes"].take();
        }
        self.server.kill();
        for process in processes.as_array().expect("an array") {
            let pid = nix::unistd::Pid::from_raw(process.as_i64().expect("a process id") as i32);
            // The process may have noticed, and exited.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }

    fn end(&mut self) -> ExitStatus {
        drop(self.server.child().stdin.take());
        self.server.wait()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.end();
    }
}

fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))
}

/// Returns a command that runs an instance of the simulator under valgrind, which reports misused or lost memory as an
/// error. Arguments of the simulator follow.
pub fn watched() -> Command {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["-q", "--error-exitcode=99", "--leak-check=full"]);
    valgrind.args(["--errors-for-leak-kinds=definite", "--trace-children=no"]);
    valgrind.arg(flux_sim()).arg("instance");
    valgrind
}

/// Compiles a plugin of this directory. Other users may read the result.
pub fn plugin(dir: &Path, source: &str) -> PathBuf {
    let object = dir.join(source).with_extension("so");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"])
        .arg(&object)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support").join(source))
        .status()
        .expect("cc runs");
    assert!(status.success(), "{source} compiles");
    object
}
