// SPDX-License-Identifier: MIT OR Apache-2.0

//! A PostgreSQL server that a test starts.

use std::{
    fs,
    io::Write,
    net::TcpListener,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, Uid},
};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use crate::support::write_private;

/// The password of the user `tester`.
pub const PASSWORD: &str = "canary-secret-password of/the@database";

/// The user who runs the server, which does not run as root. The user owns nothing else.
const NOBODY: u32 = 65534;

/// The server of the running tests.
static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());

pub struct Server {
    pub dir: TempDir,
    /// Its port.
    pub port: u16,
    child: Mutex<Child>,
}

impl Server {
    /// Returns a server that several tests share.
    pub async fn shared() -> Arc<Self> {
        let server = {
            let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
            shared.upgrade().unwrap_or_else(|| {
                let server = Arc::new(Self::spawn("", &[]));
                *shared = Arc::downgrade(&server);
                server
            })
        };
        server.until_ready().await;
        server
    }

    /// Starts a server with additional configuration and files, by their names.
    pub async fn start(more: &str, files: &[(&str, &str)]) -> Self {
        let server = Self::spawn(more, files);
        server.until_ready().await;
        server
    }

    fn spawn(more: &str, files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // The port is free at this moment.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if Uid::effective().is_root() {
            chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let mut initdb = command("initdb", dir.path());
        initdb.args(["--username=tester", "--auth-local=trust", "--auth-host=scram-sha-256"]);
        initdb.args(["--no-sync", "--encoding=UTF8", "--locale=C", "--no-instructions"]);
        let password = dir.path().join("password");
        fs::write(&password, PASSWORD).unwrap();
        initdb.arg("--pwfile").arg(&password);
        let done = initdb.output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        for (name, content) in files {
            let path = dir.path().join("data").join(name);
            write_private(&path, content);
            if Uid::effective().is_root() {
                chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        let socket = dir.path().display();
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(dir.path().join("data/postgresql.conf"))
            .unwrap();
        let settings = "fsync = off\nshared_buffers = 16MB";
        writeln!(
            file,
            "{settings}\nlisten_addresses = ''\nport = {port}\nunix_socket_directories = '{socket}'\n{more}"
        )
        .unwrap();
        let child = Mutex::new(postgres(dir.path()));
        Self { dir, port, child }
    }

    /// Returns the URL of a database, over the Unix socket.
    pub fn url(&self, database: &str) -> String {
        let directory = self.dir.path().to_str().unwrap().replace('/', "%2F");
        format!("postgres://tester@{directory}:{}/{database}", self.port)
    }

    /// Stops the server at once, as in a crash.
    pub fn stop(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGQUIT);
        child.wait().unwrap();
    }

    /// Restarts the server.
    pub async fn start_again(&self) {
        *self.child.lock().unwrap() = postgres(self.dir.path());
        self.until_ready().await;
    }

    async fn until_ready(&self) {
        let end = std::time::Instant::now() + crate::LIMIT;
        while let Err(e) = PgConnection::connect(&self.url("postgres")).await {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(std::time::Instant::now() < end, "{e}: {log}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn postgres(dir: &Path) -> Child {
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .unwrap();
    let mut postgres = command("postgres", dir);
    postgres.stdout(log.try_clone().unwrap()).stderr(log);
    postgres.spawn().unwrap()
}

/// Returns a command that runs a program of Debian's package as the user of the server.
fn command(program: &str, dir: &Path) -> Command {
    let versions = fs::read_dir("/usr/lib/postgresql").unwrap();
    let programs = versions.map(|version| version.unwrap().path().join("bin").join(program));
    let program: PathBuf = programs.filter(|path| path.exists()).max().unwrap();
    let mut command = match Uid::effective().is_root() {
        true => {
            let mut setpriv = Command::new("setpriv");
            setpriv.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")]);
            setpriv.arg("--clear-groups").arg(program);
            setpriv
        }
        false => Command::new(program),
    };
    command.arg("-D").arg(dir.join("data")).current_dir(dir);
    command.env_remove("PGPASSWORD").stdin(Stdio::null());
    command
}
