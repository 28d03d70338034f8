//! `source = "file"`: a file for each job, or for each user, that only the instance owner can read.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use config::{Template, Values};

use crate::{
    Error, Fetched, Slot, Source, blocking,
    secure_file::{self, Refusal, read},
    value::max_value,
    variable,
};

#[derive(Clone)]
pub(crate) struct File {
    pub path: Template,
    pub variable: String,
    pub timeout: Duration,
}

#[async_trait]
impl Source for File {
    async fn fetch(&self, job: &Values, slot: Slot) -> Fetched {
        let (file, job) = (self.clone(), job.clone());
        blocking("its file could not be read", self.timeout, slot, move || {
            file.read(&job)
        })
        .await
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
        let at = |summary: &str, detail: &dyn std::fmt::Display| {
            Error::new(summary, format!("{}: {detail}", path.display()))
        };
        let result = secure_file::open_private(None, Path::new(self.path.prefix()), &path)
            .map_err(|refusal| match refusal {
                Refusal::Io(e) if e.kind() == io::ErrorKind::NotFound => at("its file does not exist", &e),
                Refusal::Io(e) => at("its file could not be read", &e),
                Refusal::Untrusted(why) => at("its file was refused", &why),
            })
            .and_then(|file| {
                let bytes = read(file, max_value(&self.variable) + 2);
                bytes.map_err(|e| at("its file could not be read", &e))
            })
            .and_then(|bytes| variable(&self.variable, bytes).map_err(|e| at("its file has no usable value", &e)));
        Fetched {
            result,
            notes: Vec::new(),
            warnings: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

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
            ..Values::example()
        };
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(source.fetch(&job, Slot::default()))
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
        // A directory that another user owns cannot be made here by everybody; a link is what such a user would put there.
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
}
