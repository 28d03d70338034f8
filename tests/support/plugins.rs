// SPDX-License-Identifier: MIT OR Apache-2.0

//! The product's plugins on the simulator, set up as on a site: with munged, secrets, programs and a configuration.

use std::{
    fs::{self, Permissions},
    io::Read,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    munged::Munged,
    simulator::{Build, Instance, plugin},
};

/// The timeout of each wait. It measures nothing; it only ends a test that would hang.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A user that is neither root nor the user who runs the tests.
pub const GUEST: &str = "nobody";

/// The events of an ordinary job.
pub const PLAIN: [&str; 10] = [
    "submit", "validate", "depend", "priority", "alloc", "start", "finish", "release", "free", "clean",
];

/// A command that prints the token of a job, and fails if there is none.
pub const PRINT: &[&str] = &["printenv", "DW_WORKFLOW_TOKEN"];

/// The scheduler that runs the instances of a site.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scheduler {
    Simulator,
    Flux,
}

/// The requirements of an instance, and a directory for its files.
pub struct Site {
    pub munged: Munged,
    /// The nodes of an instance of Flux. The simulator provides as many as a job requests.
    pub nodes: usize,
    /// The configuration of Flux itself, such as queues.
    pub flux: Value,
    dir: TempDir,
    build: Build,
    scheduler: Scheduler,
}

impl Site {
    /// Sets up a site for the simulator. The test needs munged.
    pub fn new() -> Site {
        Site::on(Scheduler::Simulator)
    }

    /// Sets up a site for the simulator or for Flux.
    pub fn on(scheduler: Scheduler) -> Site {
        Site::of(Build::Shipped, scheduler)
    }

    /// Sets up a site with plugins that panic on demand and count their memory.
    pub fn with_faults() -> Site {
        Site::of(Build::FaultInjection, Scheduler::Simulator)
    }

    fn of(build: Build, scheduler: Scheduler) -> Site {
        let munged = Munged::start();
        // Guests read the shell's plugin and the configuration in this directory.
        let dir = tempfile::tempdir().expect("a temporary directory");
        open(dir.path(), 0o755);
        for place in ["job-manager", "shell"] {
            fs::create_dir(dir.path().join(place)).expect("a directory");
            open(&dir.path().join(place), 0o755);
        }
        let site = Site {
            munged,
            nodes: 1,
            flux: json!({}),
            dir,
            build,
            scheduler,
        };
        site.install("libjobtap_workflow_token.so", "job-manager", "workflow-token.so");
        site.install("libshell_workflow_token.so", "shell", "workflow-token.so");
        site
    }

    /// Returns a path in this site.
    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns a path in this site as text.
    pub fn path(&self, name: &str) -> String {
        self.at(name).to_str().expect("a path in UTF-8").to_owned()
    }

    /// Returns the path of the plugin for the job manager.
    pub fn jobtap(&self) -> String {
        self.path("job-manager/workflow-token.so")
    }

    /// Installs another object of the product for `job-manager` or `shell`, and returns its path.
    pub fn install(&self, object: &str, whose: &str, name: &str) -> String {
        let path = format!("{whose}/{name}");
        place(&self.build.path(object), &self.at(&path));
        self.path(&path)
    }

    /// Returns the state directory of the instance.
    pub fn statedir(&self) -> PathBuf {
        self.at("state")
    }

    /// Writes a file, and returns its path.
    pub fn write(&self, name: &str, mode: u32, content: impl AsRef<[u8]>) -> String {
        fs::write(self.at(name), content).expect("a file is written");
        open(&self.at(name), mode);
        self.path(name)
    }

    /// Returns a rule for jobs with the attribute `system.NAME`, which receive the content of a file.
    pub fn file_rule(&self, name: &str, content: impl AsRef<[u8]>) -> Value {
        let path = self.write(&format!("{name}.secret"), 0o600, content);
        json!({"attribute": format!("system.{name}"), "source": "file", "path": path})
    }

    /// Returns a rule for jobs with the attribute `system.NAME`, which receive the output of a shell script. The script
    /// runs in this site.
    pub fn command_rule(&self, name: &str, script: &str, args: &[&str]) -> Value {
        let script = format!("cd {}\n{script}\n", self.path(""));
        let path = self.write(&format!("{name}.sh"), 0o600, script);
        let command: Vec<&str> = ["/bin/sh", &path].into_iter().chain(args.iter().copied()).collect();
        json!({"attribute": format!("system.{name}"), "source": "command", "command": command})
    }

    /// Returns the configuration of an instance, with the plugin's table.
    pub fn config(&self, table: Value) -> Value {
        let mut whole = json!({
            "munge-socket": self.munged.socket(),
            "agent-program": self.build.path("workflow-token-agent"),
        });
        merge(&mut whole, table);
        let mut config = self.flux.clone();
        config["workflow-token"] = whole;
        config
    }

    /// Writes the configuration to a file. The configuration also loads the plugin into the instance.
    pub fn configure(&self, table: Value) -> String {
        let mut config = self.config(table);
        config["job-manager"] = json!({"plugins": [{"load": self.jobtap()}]});
        // Replaces the file atomically, because a starting instance may read it at any moment.
        let new = self.write("flux.toml.new", 0o644, toml::to_string(&config).expect("it is TOML"));
        fs::rename(new, self.at("flux.toml")).expect("the configuration is replaced");
        self.path("flux.toml")
    }

    /// Starts an instance with both plugins and this table.
    pub fn instance(&self, table: Value) -> Instance {
        self.configure(table);
        self.start(json!({}), &[])
    }

    /// Starts an instance with the plugins, the configuration that was last written, and this configuration for its
    /// shells.
    pub fn start(&self, shell_conf: Value, args: &[&str]) -> Instance {
        let config = self.path("flux.toml");
        let all = [&["--config", &config], args].concat();
        self.without_jobtap(shell_conf, &all)
    }

    /// Starts an instance that has only the plugin for the job shells.
    pub fn without_jobtap(&self, shell_conf: Value, args: &[&str]) -> Instance {
        let mut conf = json!({"munge-socket": self.munged.socket()});
        merge(&mut conf, shell_conf);
        let (shell, conf) = (self.path("shell/workflow-token.so"), conf.to_string());
        self.launch(&[&["--shell-plugin", &shell, "--shell-conf", &conf], args].concat())
    }

    /// Starts an instance with these options of the simulator.
    pub fn launch(&self, args: &[&str]) -> Instance {
        match self.scheduler {
            Scheduler::Simulator => Instance::start(&self.statedir(), args),
            Scheduler::Flux => Instance::flux(&self.statedir(), self.nodes, args),
        }
    }

    /// Removes the plugin and loads it again.
    #[track_caller]
    pub fn reload(&self, instance: &mut Instance) {
        instance.ok("remove", json!({"name": "workflow-token.so"}));
        instance.ok("load", json!({"path": self.jobtap()}));
    }

    /// Returns the configuration of a plugin that holds every job in its own prolog until its service
    /// `job-manager.test.go` is called.
    pub fn hold(&self) -> Value {
        json!({"path": plugin(self.dir.path(), "jobtap.c"), "conf": {"manual": 1}})
    }

    /// Returns the live agents that instances of this site have started.
    pub fn agents(&self) -> Vec<nix::unistd::Pid> {
        let socket = format!("--socket\0{}/", self.path(""));
        let socket = socket.replace("//", "/");
        let mut agents = Vec::new();
        let processes = fs::read_dir("/proc").expect("the processes of this machine");
        for process in processes.map_while(Result::ok) {
            let arguments = fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
            let pid = process.file_name().to_string_lossy().parse();
            if let (true, Ok(pid)) = (
                arguments.contains("workflow-token-agent") && arguments.contains(&socket),
                pid,
            ) {
                agents.push(nix::unistd::Pid::from_raw(pid));
            }
        }
        agents
    }

    /// Waits for the agent, and returns it.
    #[track_caller]
    pub fn agent(&self) -> nix::unistd::Pid {
        let mut agents = Vec::new();
        until("there is one agent", || {
            agents = self.agents();
            agents.len() == 1
        });
        agents[0]
    }

    /// Kills munged and removes its socket. If the socket existed, libmunge itself would retry for seconds.
    pub fn kill_munged(&mut self) {
        self.munged.kill();
        fs::remove_file(self.munged.socket()).expect("munged had a socket");
    }

    /// Kills munged and replaces it by a listener that never responds, until it has received more connections than
    /// libmunge makes by itself. Then restarts munged.
    pub fn restart_munged_late(&mut self, begin: impl FnOnce()) {
        /// More connections than libmunge makes in one call.
        const MORE: usize = 12;

        self.kill_munged();
        let nobody = UnixListener::bind(self.munged.socket()).expect("the socket was removed");
        nobody.set_nonblocking(true).expect("a listener");
        begin();
        let mut asked = 0;
        until("munged was contacted repeatedly", || {
            asked += usize::from(nobody.accept().is_ok());
            asked > MORE
        });
        drop(nobody);
        self.munged.restart();
    }

    /// Returns the number of requests that munged has not accepted yet: 0 unless it is stopped.
    pub fn waiting_for_munged(&self) -> usize {
        let socket = self.munged.socket();
        let table = fs::read_to_string("/proc/net/unix").expect("the sockets of this machine");
        let all = table
            .lines()
            .filter(|line| line.ends_with(socket.to_str().expect("a path in UTF-8")));
        all.count().saturating_sub(1)
    }
}

/// Operations on jobs for tests of the product.
impl Instance {
    /// Runs a command to the end of its job, and returns the job id.
    #[track_caller]
    pub fn run(&mut self, command: &[&str], more: Value) -> String {
        let job = self.submit(command, more);
        self.wait(&job, "clean");
        job
    }

    /// Returns the standard output of a job's tasks.
    #[track_caller]
    pub fn stdout(&mut self, job: &str) -> String {
        self.ok("output", json!({"jobid": job}))["stdout"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Returns the standard error of the tasks and the job shells.
    #[track_caller]
    pub fn stderr(&mut self, job: &str) -> String {
        self.ok("output", json!({"jobid": job}))["stderr"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Returns the token that a job with the attribute `system.NAME` finds in its environment.
    #[track_caller]
    pub fn token(&mut self, name: &str) -> String {
        let job = self.run(PRINT, matching(name));
        self.stdout(&job).trim_end().to_owned()
    }

    /// Returns the contexts of the events of a name.
    #[track_caller]
    pub fn contexts(&mut self, job: &str, name: &str) -> Vec<Value> {
        let events = self.ok("eventlog", json!({"jobid": job}))["events"].clone();
        let events = events.as_array().unwrap().iter().filter(|event| event["name"] == name);
        events.map(|event| event["context"].clone()).collect()
    }

    /// Waits for the end of a job that receives no token, and checks how it ended. Returns the note for its user.
    #[track_caller]
    pub fn undelivered(&mut self, job: &str) -> String {
        self.wait(job, "clean");
        let exceptions = self.contexts(job, "exception");
        assert_eq!(exceptions.len(), 1, "{job}: {exceptions:?}");
        assert_eq!(
            (&exceptions[0]["type"], &exceptions[0]["severity"]),
            (&json!("workflow-token"), &json!(0)),
            "{job}: {exceptions:?}"
        );
        let finished = json!({"description": "workflow-token", "status": 1});
        assert_eq!(self.contexts(job, "prolog-finish"), [finished], "{job}");
        assert!(!self.events(job).contains(&"start".to_owned()), "{job} was started");
        let note = exceptions[0]["note"].as_str().unwrap().to_owned();
        assert!(
            !note.contains('/'),
            "{job}: the note reveals a path to the user: {note}"
        );
        note
    }

    /// Checks that there is one exception, and a log line for the operator, and that neither shows the secret.
    #[track_caller]
    pub fn assert_fails(&mut self, name: &str, job: &str, says: &str, cause: &str, secret: &str) {
        let note = self.undelivered(job);
        assert!(note.contains(says), "{name}: {note}");
        let operator = self.cause(job);
        assert!(operator.contains(cause), "{name}: {operator}");
        for text in [note, operator] {
            assert!(
                !secret.split('.').skip(1).any(|part| text.contains(part)),
                "{name}: {text}"
            );
        }
    }

    /// Cancels a job in its prolog, which then ends. Checks that the job has no other exception.
    #[track_caller]
    pub fn assert_canceled(&mut self, job: &str) {
        self.ok("cancel", json!({"jobid": job}));
        self.wait(job, "clean");
        let exceptions = self.contexts(job, "exception");
        assert_eq!(exceptions.len(), 1, "{exceptions:?}");
        assert_eq!(exceptions[0]["type"], "cancel");
        assert_eq!(self.contexts(job, "prolog-finish").len(), 1);
        assert!(!self.events(job).contains(&"start".to_owned()));
    }

    /// Checks the end of a job that received the expected token, once.
    #[track_caller]
    pub fn assert_delivered(&mut self, job: &str, token: &str) {
        self.wait(job, "clean");
        let exceptions = self.contexts(job, "exception");
        assert_eq!(self.stdout(job).trim_end(), token, "{job}: {exceptions:?}");
        let count = |events: &[String], name: &str| events.iter().filter(|event| *event == name).count();
        let events = self.events(job);
        for (event, expected) in [
            ("prolog-start", 1),
            ("prolog-finish", 1),
            ("exception", 0),
            ("start", 1),
        ] {
            assert_eq!(count(&events, event), expected, "{job}: {event}: {events:?}");
        }
    }

    /// Waits for the end of a job whose shell rejects its record. Returns the note for its user.
    #[track_caller]
    pub fn refused(&mut self, job: &str) -> String {
        self.wait(job, "clean");
        let exceptions = self.contexts(job, "exception");
        assert_eq!(exceptions.len(), 1, "{job}: {exceptions:?}");
        assert_eq!(
            (&exceptions[0]["type"], &exceptions[0]["severity"]),
            (&json!("exec"), &json!(0)),
            "{job}: {exceptions:?}"
        );
        assert_eq!(self.stdout(job), "", "{job}: its command was run");
        exceptions[0]["note"].as_str().unwrap().to_owned()
    }

    /// Returns the log.
    #[track_caller]
    pub fn dmesg(&mut self) -> Vec<String> {
        let lines = self.ok("dmesg", json!({}))["lines"].clone();
        serde_json::from_value(lines).unwrap()
    }

    /// Returns the operator's log lines about a delivery that failed.
    #[track_caller]
    pub fn cause(&mut self, job: &str) -> String {
        let mut lines = self.dmesg();
        lines.retain(|line| line.contains(&format!("{job}: no workflow token was delivered: ")));
        assert_eq!(lines.len(), 1, "{job}: {lines:?}");
        lines.remove(0)
    }

    /// Releases the held jobs, see [`Site::hold`].
    #[track_caller]
    pub fn go(&mut self) {
        self.ok("rpc", json!({"topic": "job-manager.test.go"}));
    }

    /// Returns a counter of the plugin.
    #[track_caller]
    pub fn counter(&mut self, name: &str) -> u64 {
        let all = self.ok("query", json!({"name": "workflow-token.so"}))["result"].clone();
        all[name].as_u64().unwrap_or_else(|| panic!("no {name} in {all}"))
    }

    /// Returns the record of a job, while it exists.
    #[track_caller]
    pub fn record(&mut self, job: &str) -> Option<Value> {
        let key = self.record_key(job);
        let request = self.send("kvs-get", json!({"key": key}));
        let response = self.response(request);
        let text = response["value"].as_str()?;
        Some(serde_json::from_str(text).unwrap_or_else(|e| panic!("{job}: {e}: {text}")))
    }

    /// Returns the key of a job's record.
    #[track_caller]
    pub fn record_key(&mut self, job: &str) -> String {
        kvs_key(job, "workflow-token")
    }
}

/// Returns the key of an entry in the directory of a job.
pub fn kvs_key(job: &str, name: &str) -> String {
    let id = decimal(job);
    let part = |shift: u32| format!("{:04x}", (id >> shift) & 0xffff);
    format!("job.{}.{}.{}.{}.{name}", part(48), part(32), part(16), part(0))
}

/// Returns members of a submission: the attribute of a rule.
pub fn matching(name: &str) -> Value {
    json!({"attributes": {"system": {name: 1}}})
}

/// Like [`matching`], with options of the job shell.
pub fn with_options(name: &str, options: Value) -> Value {
    json!({"attributes": {"system": {name: 1, "shell": {"options": options}}}})
}

/// Converts a job id from F58 (RFC 19) to a number.
pub fn decimal(job: &str) -> u64 {
    const DIGITS: &str = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    let digits = job.strip_prefix('ƒ').expect("a job id in F58").chars();
    digits.fold(0, |id, digit| {
        id * 58 + DIGITS.find(digit).expect("a digit of F58") as u64
    })
}

/// Returns random bytes.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let read = fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.expect("random bytes");
    bytes
}

/// Returns a new token: it has the form of a JWT, but no valid signature. `claims` are added to its own.
pub fn jwt(claims: Value) -> String {
    let mut all = json!({"sub": "canary", "jti": random::<16>().map(|byte| format!("{byte:02x}")).concat()});
    merge(&mut all, claims);
    let segment = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    format!(
        "{}.{}.{}",
        segment(br#"{"alg":"HS256","typ":"JWT"}"#),
        segment(all.to_string().as_bytes()),
        segment(&random::<32>())
    )
}

/// Polls until a condition holds.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < TIMEOUT, "timed out waiting until {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits for a file that another process writes one line to, and returns the line.
#[track_caller]
pub fn line_of(path: &Path) -> String {
    let mut text = String::new();
    until(&format!("{} is written", path.display()), || {
        text = fs::read_to_string(path).unwrap_or_default();
        text.ends_with('\n')
    });
    text.trim_end().to_owned()
}

/// Returns whether a process has ended. It may not have been reaped yet.
pub fn is_gone(pid: &str) -> bool {
    // proc_pid_stat(5): the state follows the name of the program, which is in parentheses.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().unwrap_or_default();
    state.is_empty() || state.starts_with(['Z', 'X'])
}

/// Returns the uid of the user who runs this test.
pub fn me() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Returns a user of this machine.
pub fn user(name: &str) -> nix::unistd::User {
    let found = nix::unistd::User::from_name(name).expect("the name service answers");
    found.unwrap_or_else(|| panic!("there is a user {name}"))
}

fn place(from: &Path, to: &Path) {
    fs::hard_link(from, to)
        .or_else(|_| fs::copy(from, to).map(|_| ()))
        .expect("the plugin is put in its place");
}

fn open(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("its mode is set");
}

fn merge(into: &mut Value, from: Value) {
    let (Value::Object(into), Value::Object(from)) = (into, from) else {
        panic!("both are tables")
    };
    into.extend(from);
}
