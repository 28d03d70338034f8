// SPDX-License-Identifier: MIT OR Apache-2.0

//! A real munged with its own key and socket.

use std::{
    fs::{self, Permissions},
    io::{Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

use super::server::Server;

/// A running munged. Dropping it ends it.
pub struct Munged {
    dir: TempDir,
    server: Server,
}

impl Munged {
    /// Starts munged. The test needs munged.
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("munged").tempdir();
        let dir = dir.expect("a temporary directory");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("its mode");
        let mut bytes = [0; 1024];
        let random = fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
        random.expect("random bytes");
        let mut options = fs::OpenOptions::new();
        let key = options.write(true).create_new(true).mode(0o600);
        let key = key
            .open(dir.path().join("key"))
            .and_then(|mut file| file.write_all(&bytes));
        key.expect("a key");
        let server = Self::spawn(dir.path());
        let mut munged = Self { dir, server };
        munged.await_answer();
        munged
    }

    fn spawn(dir: &Path) -> Server {
        let option = |name: &str, file: &str| format!("--{name}={}", dir.join(file).display());
        let mut munged = Command::new("munged");
        munged
            .env("PATH", "/usr/sbin:/usr/local/sbin:/usr/bin")
            // A test need not run as root, so its directory is not acceptable for root's
            // daemon.
            .args(["--foreground", "--force", "--num-threads=2"])
            .args([option("key-file", "key"), option("socket", "socket")])
            .args([option("pid-file", "pid"), option("seed-file", "seed")])
            .stdin(Stdio::null());
        Server::start(&mut munged)
    }

    /// Waits until munged responds.
    fn await_answer(&mut self) {
        let munge = self.client();
        self.server.until(|| munge.encode(b"", 0).is_ok());
    }

    /// Returns the path of its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// Returns a client.
    pub fn client(&self) -> seal::Munge {
        seal::Munge::new(Some(&self.socket())).expect("a socket path")
    }

    /// Returns its process id.
    pub fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.server.pid() as i32)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(self.pid(), signal).expect("munged is there");
    }

    /// Kills it as a crash would, so that its socket remains.
    pub fn kill(&mut self) {
        self.server.kill();
    }

    /// Starts it again with the same key.
    pub fn restart(&mut self) {
        self.kill();
        self.server = Self::spawn(self.dir.path());
        self.await_answer();
    }
}
