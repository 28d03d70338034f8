//! `source = "file"`: a file for each job, or for each user, that only the instance owner can read.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use config::{Template, Values};
use zeroize::Zeroizing;

use crate::{Error, Fetched, Source, seconds, value::max_value, variable};

#[derive(Clone)]
pub(crate) struct File {
    pub path: Template,
    pub variable: String,
    pub timeout: Duration,
}

#[async_trait]
impl Source for File {
    async fn fetch(&self, job: &Values) -> Fetched {
        let (file, job) = (self.clone(), job.clone());
        // A file system may hang: its thread is left behind then, and the delivery goes on to fail.
        let read = tokio::task::spawn_blocking(move || file.read(&job));
        match tokio::time::timeout(self.timeout, read).await {
            Ok(Ok(fetched)) => fetched,
            Ok(Err(e)) => Fetched::failed(Error::new("its file could not be read", e)),
            Err(_) => {
                let detail = format!("no answer within {}: is the file system hung?", seconds(self.timeout));
                Fetched::failed(Error::new("its file could not be read in time", detail))
            }
        }
    }

    fn fetch_here(&self, job: &Values) -> Option<Fetched> {
        Some(self.read(job))
    }

    fn is_blocking(&self) -> bool {
        true
    }

    fn needs_user(&self) -> bool {
        self.path.needs_user()
    }
}

impl File {
    fn read(&self, job: &Values) -> Fetched {
        let path = match self.path.fill(job) {
            Ok(path) => PathBuf::from(path),
            Err(e) => return Fetched::failed(Error::new("the name of its file cannot be formed", e)),
        };
        let result = read(&path, max_value(&self.variable) + 2).and_then(|bytes| {
            variable(&self.variable, bytes)
                .map_err(|e| Error::new("its file has no usable value", format!("{}: {e}", path.display())))
        });
        Fetched {
            result,
            notes: Vec::new(),
        }
    }
}

/// Reads up to `limit` bytes of a file that nobody but its owner can read, who is this user or root.
fn read(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, Error> {
    let at =
        |summary: &str, detail: &dyn std::fmt::Display| Error::new(summary, format!("{}: {detail}", path.display()));
    // Opening a FIFO would wait for a writer without O_NONBLOCK.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => at("its file does not exist", &e),
            _ => at("its file could not be read", &e),
        })?;
    let meta = file.metadata().map_err(|e| at("its file could not be read", &e))?;
    if !meta.is_file() {
        return Err(at("its file was refused", &"not a regular file"));
    }
    let me = nix::unistd::geteuid().as_raw();
    if meta.uid() != me && meta.uid() != 0 {
        let detail = format!(
            "owned by uid {}, and must be by uid {me} or root: use chown",
            meta.uid()
        );
        return Err(at("its file was refused", &detail));
    }
    if meta.mode() & 0o077 != 0 {
        let detail = format!(
            "mode {:04o} lets others than its owner in: use chmod 0600",
            meta.mode() & 0o7777
        );
        return Err(at("its file was refused", &detail));
    }
    // One byte more than allowed tells "too long" from "just fits", without reading all of a huge file. The buffer is as
    // long as the file, and a little longer, so that it is not moved, leaving a copy behind.
    let expected = usize::try_from(meta.len()).unwrap_or(usize::MAX).min(limit);
    let mut bytes = Zeroizing::new(Vec::with_capacity(expected + 64));
    file.take(limit as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| at("its file could not be read", &e))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use seal::ExposeSecret;

    use super::*;

    fn fetch(path: &str) -> Fetched {
        let source = File {
            path: Template::parse(path).unwrap(),
            variable: "T".to_owned(),
            timeout: Duration::from_secs(60),
        };
        let job = Values {
            f58: "ƒ2u".to_owned(),
            jobid: 99,
            uid: 1000,
            user: Some("alice".to_owned()),
        };
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(source.fetch(&job))
    }

    fn write(path: &Path, mode: u32, bytes: &[u8]) {
        fs::write(path, bytes).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn the_file_of_the_job_is_read() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("ƒ2u-99-alice-1000"), 0o600, b"canary\n");
        let fetched = fetch(&format!(
            "{}/{{jobid}}-{{jobid.dec}}-{{user}}-{{uid}}",
            dir.path().display()
        ));
        let variables = fetched.result.unwrap();
        let all: Vec<_> = variables.iter().map(|(n, v)| (n, v.expose_secret())).collect();
        assert_eq!(all, [("T", "canary")]);
    }

    #[test]
    fn what_others_can_read_is_refused_and_the_message_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        for mode in [0o644, 0o640, 0o604, 0o620] {
            write(&path, mode, b"canary");
            let error = fetch(path.to_str().unwrap()).result.unwrap_err();
            assert!(error.to_string().contains("chmod 0600"), "{mode:o}: {error}");
            assert!(
                !error.summary().contains('/'),
                "the user is shown a path: {}",
                error.summary()
            );
        }
    }

    #[test]
    fn what_is_no_regular_file_is_refused_and_nothing_hangs() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [fifo.to_str().unwrap(), dir.path().to_str().unwrap(), "/dev/zero"] {
            let error = fetch(path).result.unwrap_err().to_string();
            assert!(error.contains("not a regular file"), "{path}: {error}");
        }
        let error = fetch("/nonexistent/{jobid}").result.unwrap_err().to_string();
        assert!(error.contains("/nonexistent/ƒ2u"), "{error}");
    }

    #[test]
    fn a_huge_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        write(&path, 0o600, b"x");
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        let error = fetch(path.to_str().unwrap()).result.unwrap_err().to_string();
        assert!(error.contains("longer than"), "{error}");
    }
}
