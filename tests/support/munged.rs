//! A real munged with its own key and socket.

use std::{
    io::Read,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

/// Ends with the value.
pub struct Munged {
    dir: TempDir,
    child: Child,
}

impl Munged {
    /// Starts one, unless the program is not installed.
    pub fn start() -> Option<Self> {
        let dir = tempfile::Builder::new()
            .prefix("munged")
            .tempdir()
            .expect("a temporary directory");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("its mode");
        let key = dir.path().join("key");
        let mut bytes = [0; 1024];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut f| f.read_exact(&mut bytes))
            .expect("random bytes");
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&key);
        file.and_then(|mut f| std::io::Write::write_all(&mut f, &bytes))
            .expect("a key");
        let child = Self::spawn(dir.path())?;
        let munged = Self { dir, child };
        munged.await_answer();
        Some(munged)
    }

    fn spawn(dir: &Path) -> Option<Child> {
        let munged = ["/usr/sbin/munged", "/usr/local/sbin/munged", "/usr/bin/munged"];
        let program = munged.iter().find(|path| Path::new(path).exists())?;
        let option = |name: &str, file: &str| format!("--{name}={}", dir.join(file).display());
        let child = Command::new(program)
            // Its directory is not one for a daemon of root, which a test's need not be.
            .args(["--foreground", "--force", "--num-threads=2"])
            .args([
                option("key-file", "key"),
                option("socket", "socket"),
                option("pid-file", "pid"),
            ])
            .args([option("log-file", "log"), option("seed-file", "seed")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Some(child.expect("munged starts"))
    }

    /// Waits until it answers: bounded by how often libmunge tries.
    fn await_answer(&self) {
        let munge = seal::Munge::new(Some(&self.socket())).expect("a socket path");
        for _ in 0..600 {
            if munge.encode(b"", 0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!(
            "munged does not answer: {}",
            std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
        );
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// How to reach it.
    pub fn client(&self) -> seal::Munge {
        seal::Munge::new(Some(&self.socket())).expect("a socket path")
    }

    /// Its process.
    pub fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.child.id() as i32)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(self.pid(), signal).expect("munged is there");
    }

    /// Kills it, as a crash would, so that its socket stays.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again with the same key.
    pub fn restart(&mut self) {
        self.kill();
        self.child = Self::spawn(self.dir.path()).expect("it was there before");
        self.await_answer();
    }
}

impl Drop for Munged {
    fn drop(&mut self) {
        self.kill();
    }
}
