// SPDX-License-Identifier: MIT OR Apache-2.0

//! `source = "file"`: a file for each job or user that only the instance owner can read.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use backon::BackoffBuilder;
use config::{Template, Values};
use seal::Variables;
use tokio::time::{Instant, sleep};

use crate::{
    Error, Fetched, Slot, Source, blocking,
    http::pauses,
    seconds,
    secure_file::{self, Refusal, read},
    value::{ValueError, max_value},
    variable,
};

/// The first and the longest pause between polls for a file. Jitter extends each pause to at most twice its length.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

#[derive(Clone)]
pub(crate) struct File {
    pub path: Template,
    /// The time that the source waits while the file is missing or empty, as it is while it is being created.
    pub wait: Option<Duration>,
    pub variable: String,
    pub timeout: Duration,
}

/// The reason why a file has no value.
struct Unread {
    error: Error,
    /// Set if the file is missing or empty, so that it may still be written.
    may_come: bool,
}

#[async_trait]
impl Source for File {
    async fn fetch(&self, job: &Values, slot: Slot) -> Fetched {
        let (began, wait) = (Instant::now(), self.wait.unwrap_or_default());
        let mut pauses = pauses(PAUSES).build();
        loop {
            let (file, job) = (self.clone(), job.clone());
            let read = move || file.read(&job);
            let limit = self.timeout.saturating_sub(began.elapsed());
            let unread = match blocking("its file could not be read", limit, slot.clone(), read).await {
                Ok(Ok(variables)) => return Fetched::of(Ok(variables)),
                Ok(Err(unread)) => unread,
                Err(e) => return Fetched::failed(e),
            };
            let left = wait.saturating_sub(began.elapsed());
            if !unread.may_come || left.is_zero() {
                return Fetched::failed(unread.error);
            }
            // The last poll is at the end of the wait.
            sleep(pauses.next().unwrap_or(PAUSES.1).min(left)).await;
        }
    }

    fn fetch_here(&self, job: &Values) -> Option<Fetched> {
        Some(Fetched::of(self.read(job).map_err(|unread| unread.error)))
    }

    fn is_blocking(&self) -> bool {
        // With a wait, `fetch` polls without occupying a thread.
        self.wait.is_none()
    }

    fn needs_user(&self) -> bool {
        self.path.needs_user()
    }
}

impl File {
    fn read(&self, job: &Values) -> Result<Variables, Unread> {
        let path = match self.path.fill(job) {
            Ok(path) => PathBuf::from(path),
            Err(e) => {
                return Err(Unread::permanent(Error::new(
                    "the name of its file cannot be formed",
                    e,
                )));
            }
        };
        let at = |summary: &str, detail: &dyn std::fmt::Display| {
            Error::new(summary, format!("{}: {detail}", path.display()))
        };
        let file = secure_file::open_private(None, Path::new(self.path.prefix()), &path);
        let file = file.map_err(|refusal| match refusal {
            Refusal::Io(e) if e.kind() == io::ErrorKind::NotFound => Unread {
                error: at("its file does not exist", &self.missing(&e)),
                may_come: true,
            },
            Refusal::Io(e) => Unread::permanent(at("its file could not be read", &e)),
            Refusal::Untrusted(why) => Unread::permanent(at("its file was refused", &why)),
        })?;
        let bytes = read(file, max_value(&self.variable) + 2);
        let bytes = bytes.map_err(|e| Unread::permanent(at("its file could not be read", &e)))?;
        variable(&self.variable, bytes).map_err(|e| Unread {
            error: at("its file has no usable value", &e),
            may_come: e == ValueError::Empty,
        })
    }

    /// Returns the error of a file that does not exist, and the next step.
    fn missing(&self, e: &io::Error) -> String {
        match self.wait {
            Some(wait) => format!(
                "{e}, {} after the job requested it: check whether its writer runs, or set a longer wait",
                seconds(wait)
            ),
            None => format!("{e}: create it before the job starts, or set the key wait if it is created later"),
        }
    }
}

impl Unread {
    fn permanent(error: Error) -> Self {
        Self { error, may_come: false }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Write,
        os::unix::fs::{OpenOptionsExt, PermissionsExt},
    };

    use seal::ExposeSecret;

    use super::*;

    const LONG: Option<Duration> = Some(Duration::from_secs(7200));

    fn file(path: &str, wait: Option<Duration>) -> File {
        File {
            path: Template::parse(path).unwrap(),
            wait,
            variable: "T".to_owned(),
            timeout: Duration::from_secs(7201),
        }
    }

    fn job() -> Values {
        Values {
            f58: "ƒ2u".to_owned(),
            jobid: 99,
            uid: 1000,
            user: Some("alice".to_owned()),
            ..Values::example()
        }
    }

    fn fetch(path: &str) -> Fetched {
        fetch_from(&file(path, None))
    }

    fn fetch_from(source: &File) -> Fetched {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(source.fetch(&job(), Slot::default()))
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
    fn a_link_below_the_constant_part_does_not_lead_to_the_file_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("other.jwt");
        write(&other, 0o600, b"canary");
        // Only root could create a directory of another user here. A link stands for what such a user would create.
        fs::create_dir(dir.path().join("alice")).unwrap();
        std::os::unix::fs::symlink(&other, dir.path().join("alice/token.jwt")).unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("1000")).unwrap();
        for path in ["{user}/token.jwt", "{uid}/other.jwt"] {
            let error = fetch(&format!("{}/{path}", dir.path().display()))
                .result
                .unwrap_err()
                .to_string();
            assert!(error.contains("symbolic link"), "{path}: {error}");
        }
        fs::hard_link(&other, dir.path().join("alice/hard.jwt")).unwrap();
        let error = fetch(&format!("{}/{{user}}/hard.jwt", dir.path().display()))
            .result
            .unwrap_err()
            .to_string();
        assert!(error.contains("hard links"), "{error}");
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("alice");
        fs::create_dir(&open).unwrap();
        write(&open.join("token.jwt"), 0o600, b"canary");
        let template = format!("{}/{{user}}/token.jwt", dir.path().display());
        fetch(&template).result.unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        let error = fetch(&template).result.unwrap_err().to_string();
        assert!(error.contains("chmod go-w"), "{error}");
    }

    #[test]
    fn a_link_on_the_way_to_the_first_placeholder_is_the_operators() {
        let dir = tempfile::tempdir().unwrap();
        let theirs = dir.path().join("theirs");
        for name in ["theirs", "tokens"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        write(&dir.path().join("tokens/alice"), 0o600, b"canary");
        std::os::unix::fs::symlink("../tokens", theirs.join("tokens")).unwrap();
        let template = format!("{}/tokens/{{user}}", theirs.display());
        fetch(&template).result.unwrap();
        fs::set_permissions(&theirs, fs::Permissions::from_mode(0o777)).unwrap();
        let error = fetch(&template).result.unwrap_err().to_string();
        assert!(error.contains("others can write to the directory"), "{error}");
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

    #[test]
    fn what_may_still_come_is_missing_or_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ƒ2u/token");
        let source = file(&format!("{}/{{jobid}}/token", dir.path().display()), None);
        let may_come = || source.read(&job()).err().map(|unread| unread.may_come);
        assert_eq!(may_come(), Some(true), "without its directory");
        fs::create_dir(dir.path().join("ƒ2u")).unwrap();
        assert_eq!(may_come(), Some(true), "without the file");
        for (mode, content, expected) in [
            (0o600, "", Some(true)),
            (0o600, "\n", Some(true)),
            (0o600, "canary\n", None),
            (0o600, "two\nlines", Some(false)),
            (0o644, "", Some(false)),
        ] {
            write(&path, mode, content.as_bytes());
            assert_eq!(may_come(), expected, "{mode:o} {content:?}");
        }
    }

    /// A writer creates the directory, creates the file, and writes it, with pauses between.
    #[test]
    fn a_file_that_is_being_created_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ƒ2u/token");
        let source = file(&format!("{}/{{jobid}}/token", dir.path().display()), LONG);
        assert!(!source.is_blocking(), "a thread waits");
        let fetching = std::thread::spawn(move || fetch_from(&source));
        fs::create_dir(dir.path().join("ƒ2u")).unwrap();
        let mut options = fs::OpenOptions::new();
        let mut created = options.write(true).create_new(true).mode(0o600).open(&path).unwrap();
        created.write_all(b"canary\n").unwrap();
        let variables = fetching.join().unwrap().result.unwrap();
        assert_eq!(variables.iter().next().unwrap().1.expose_secret(), "canary");
    }

    #[test]
    fn a_file_that_does_not_come_fails_when_the_wait_is_over_and_a_bad_one_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let template = path.to_str().unwrap();
        let error = |wait| fetch_from(&file(template, wait)).result.unwrap_err().to_string();
        let short = Some(Duration::from_millis(20));
        for (wait, says) in [(None, "set the key wait"), (short, "20 ms after the job requested it")] {
            let error = error(wait);
            assert!(error.contains(template) && error.contains(says), "{error}");
        }
        // A wait for it would exceed the time limit of the test.
        write(&path, 0o644, b"canary");
        assert!(error(LONG).contains("chmod 0600"));
    }
}
