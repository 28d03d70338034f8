// SPDX-License-Identifier: MIT OR Apache-2.0

//! The SQLite files, and the key file.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Command,
};

use needs::needs;
use service::state::{Kind, State, StateError};

use crate::{
    get, later, run,
    site::{KEYS, Site, settings},
    support::write_private,
};

async fn error(site: &Site) -> String {
    match State::open(&site.settings()).await {
        Ok(_) => panic!("it was opened"),
        Err(error) => error,
    }
}

#[test]
fn only_its_user_can_open_the_file() {
    run(async {
        let site = Site::sqlite().await;
        let state = site.open().await;
        state.insert(Kind::Code, "a", None, &"a", later()).await.unwrap();
        let dir = site.dir.path();
        for name in ["state.db", "state.db-wal", "state.db-shm"] {
            let mode = fs::metadata(dir.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        fs::set_permissions(site.file(), Permissions::from_mode(0o640)).unwrap();
        let open = error(&site).await;
        assert!(open.contains("state.db: mode 0640"), "{open}");
        fs::set_permissions(site.file(), Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(dir, Permissions::from_mode(0o777)).unwrap();
        // Another user could replace the file. (The keys are in the same directory.)
        let refused = settings(&site.table()).unwrap_err();
        assert!(refused.contains("others can write"), "{refused}");
        fs::set_permissions(dir, Permissions::from_mode(0o700)).unwrap();
        let below = dir.join("below");
        fs::create_dir(&below).unwrap();
        fs::set_permissions(&below, Permissions::from_mode(0o777)).unwrap();
        let table = site.table().replace("state.db", "below/state.db");
        let refused = State::open(&settings(&table).unwrap()).await.map(drop).unwrap_err();
        assert!(
            refused.contains("below") && refused.contains("others can write"),
            "{refused}"
        );
        assert!(!below.join("state.db").exists());
    });
}

#[test]
fn a_file_of_something_else_is_refused() {
    run(async {
        let site = Site::sqlite().await;
        write_private(&site.file(), &"not a database ".repeat(1000));
        let error = error(&site).await;
        assert!(
            error.contains("state.db") && error.contains("not a database"),
            "{error}"
        );
    });
}

/// A file system of 1 MiB.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: PathBuf) -> Self {
        fs::create_dir(&at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs"]).arg(&at);
        assert!(mount.status().unwrap().success());
        Self(at)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[needs(tmpfs)]
#[test]
fn a_full_disk_loses_nothing() {
    run(async {
        let site = Site::sqlite().await;
        let disk = Tmpfs::mount(site.dir.path().join("disk"));
        let ballast = disk.0.join("ballast");
        fs::write(&ballast, vec![0; 256 << 10]).unwrap();
        let table = site.table().replace("state.db", "disk/state.db");
        let state = State::open(&settings(&table).unwrap()).await.unwrap();
        let value = "x".repeat(30_000);
        let mut stored = 0;
        let full = loop {
            match state
                .insert(Kind::Session, &stored.to_string(), None, &value, later())
                .await
            {
                Ok(()) => stored += 1,
                Err(e) => break e,
            }
            assert!(stored < 100, "the disk is never full");
        };
        assert!(
            matches!(&full, StateError::Unavailable(what) if what.contains("full")),
            "{full}"
        );
        assert!(stored > 0);
        for i in 0..stored {
            assert_eq!(
                get(&state, Kind::Session, &i.to_string()).await.as_ref(),
                Some(&value),
                "{i}"
            );
        }
        // With free space, the state works again.
        fs::remove_file(&ballast).unwrap();
        state
            .insert(Kind::Session, "next", None, &"next", later())
            .await
            .unwrap();
        assert!(state.remove(Kind::Session, "0").await.unwrap());
        assert_eq!(get(&state, Kind::Session, "next").await.as_deref(), Some("next"));
        let again = State::open(&settings(&table).unwrap()).await.unwrap();
        assert_eq!(again.count(Kind::Session).await.unwrap(), stored);
    });
}

#[test]
fn a_mistake_in_the_key_file_names_the_line() {
    run(async {
        let site = Site::sqlite().await;
        let path = site.dir.path().join("keys");
        for (lines, says) in [
            ("", "contains no key"),
            ("# none\n\n", "contains no key"),
            ("0123456789abcdef\n", "line 1"),
            (&format!("{}\n{}0\n", KEYS[0], KEYS[1]), "line 2"),
            (&format!("{}\n", KEYS[0].replace('a', "g")), "line 1"),
            (&format!("{}\n", KEYS[0]).repeat(9), "more than 8 keys"),
        ] {
            write_private(&path, lines);
            let error = settings(&site.table()).unwrap_err();
            assert!(
                error.starts_with("state.key-file: ") && error.contains(says),
                "{lines:?}: {error}"
            );
            assert!(!error.contains("0f1011") && !error.contains("abcdef"), "{error}");
        }
        write_private(&path, KEYS[0]);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let error = settings(&site.table()).unwrap_err();
        assert!(
            error.starts_with("state.key-file: ") && error.contains("0644"),
            "{error}"
        );
    });
}
