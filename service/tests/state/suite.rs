// SPDX-License-Identifier: MIT OR Apache-2.0

//! Tests for SQLite and PostgreSQL.

use std::{
    collections::HashMap,
    env,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use service::state::{Kind, MAX_VALUE, State, StateError};

use crate::{
    get, later,
    site::{KEYS, Site, settings},
    support::write_private,
};

/// Texts that the database must never contain in clear text.
const CANARY: &str = "canary-5b8f0d7e";

pub async fn a_record_is_stored_until_it_is_removed(site: Site) {
    let state = site.open().await;
    let value = HashMap::from([("user", "alice")]);
    state
        .insert(Kind::Session, "a", Some("alice"), &value, later())
        .await
        .unwrap();
    let taken = state.insert(Kind::Session, "a", None, &"other", later()).await;
    assert!(matches!(taken, Err(StateError::Exists(Kind::Session))), "{taken:?}");
    let stored = state
        .get::<HashMap<String, String>>(Kind::Session, "a")
        .await
        .unwrap()
        .unwrap();
    assert_eq!((stored.value["user"].as_str(), stored.version), ("alice", 1));
    assert!(stored.expires >= later() - 60);
    // Another kind, and another id.
    assert_eq!(get(&state, Kind::Device, "a").await, None);
    assert_eq!(get(&state, Kind::Session, "b").await, None);

    assert!(
        state
            .replace(Kind::Session, "a", 1, &"second", later() + 5)
            .await
            .unwrap()
    );
    assert!(!state.replace(Kind::Session, "b", 1, &"second", later()).await.unwrap());
    let stored = state.get::<String>(Kind::Session, "a").await.unwrap().unwrap();
    assert_eq!((stored.value.as_str(), stored.version), ("second", 2));

    state
        .insert(Kind::Session, "b", Some("alice"), &"b", later())
        .await
        .unwrap();
    state
        .insert(Kind::Session, "c", Some("bob"), &"c", later())
        .await
        .unwrap();
    state
        .insert(Kind::Family, "d", Some("alice"), &"d", later())
        .await
        .unwrap();
    assert_eq!(state.count(Kind::Session).await.unwrap(), 3);
    let owned = state.owned::<String>(Kind::Session, "alice", 10).await.unwrap();
    let values: Vec<_> = owned.iter().map(|(_, stored)| stored.value.as_str()).collect();
    assert_eq!(values, ["second", "b"]);
    assert_eq!(state.owned::<String>(Kind::Session, "alice", 1).await.unwrap().len(), 1);
    // A user can remove their own records, but not those of another user.
    let (digest, _) = &owned[1];
    assert!(!state.remove_digest(Kind::Session, "bob", digest).await.unwrap());
    assert!(state.remove_digest(Kind::Session, "alice", digest).await.unwrap());
    assert_eq!(get(&state, Kind::Session, "b").await, None);

    assert_eq!(state.remove_owned(Kind::Session, "alice").await.unwrap(), 1);
    assert_eq!(get(&state, Kind::Session, "a").await, None);
    assert_eq!(get(&state, Kind::Family, "d").await.as_deref(), Some("d"));
    assert!(state.remove(Kind::Session, "c").await.unwrap());
    assert!(!state.remove(Kind::Session, "c").await.unwrap());
    assert_eq!(state.count(Kind::Session).await.unwrap(), 0);
}

pub async fn one_of_two_services_takes_a_record(site: Site) {
    let services = [site.open().await, site.open().await];
    for i in 0..200 {
        let id = format!("code{i}");
        services[i % 2]
            .insert(Kind::Code, &id, None, &i, later())
            .await
            .unwrap();
        let take = |service: &State| {
            let (service, id) = (service.clone(), id.clone());
            tokio::spawn(async move { service.take::<usize>(Kind::Code, &id).await.unwrap() })
        };
        let [first, second] = [take(&services[0]), take(&services[1])];
        let taken = [first.await.unwrap(), second.await.unwrap()];
        assert!(
            matches!(taken, [Some(n), None] | [None, Some(n)] if n == i),
            "{i}: {taken:?}"
        );
    }
}

pub async fn one_of_two_changes_wins(site: Site) {
    let services = [site.open().await, site.open().await];
    services[0].insert(Kind::Family, "a", None, &0, later()).await.unwrap();
    for version in 1..=100 {
        let replace = |service: &State| {
            let service = service.clone();
            tokio::spawn(async move {
                service
                    .replace(Kind::Family, "a", version, &version, later())
                    .await
                    .unwrap()
            })
        };
        let [first, second] = [replace(&services[0]), replace(&services[1])];
        let won = [first.await.unwrap(), second.await.unwrap()];
        assert!(won[0] != won[1], "{version}: {won:?}");
    }
    let stored = services[1].get::<i64>(Kind::Family, "a").await.unwrap().unwrap();
    assert_eq!((stored.value, stored.version), (100, 101));
}

pub async fn an_expired_record_is_absent(site: Site) {
    let state = site.open().await;
    // More records than one batch deletes.
    for i in 0..600 {
        state
            .insert(Kind::Code, &format!("old{i}"), Some("alice"), &i, 1000)
            .await
            .unwrap();
    }
    state
        .insert(Kind::Code, "valid", Some("alice"), &"valid", later())
        .await
        .unwrap();
    assert!(state.get::<i64>(Kind::Code, "old7").await.unwrap().is_none());
    assert!(state.take::<i64>(Kind::Code, "old7").await.unwrap().is_none());
    assert!(!state.replace(Kind::Code, "old7", 1, &8, later()).await.unwrap());
    assert_eq!(state.owned::<String>(Kind::Code, "alice", 9).await.unwrap().len(), 1);
    assert_eq!(state.count(Kind::Code).await.unwrap(), 1);
    // Its id is available again.
    state.insert(Kind::Code, "old7", None, &"again", later()).await.unwrap();
    assert_eq!(get(&state, Kind::Code, "old7").await.as_deref(), Some("again"));
    assert_eq!(site.number("SELECT count(*) FROM records").await, 601);
    assert_eq!(state.sweep().await.unwrap(), 599);
    assert_eq!(site.number("SELECT count(*) FROM records").await, 2);
    assert_eq!(get(&state, Kind::Code, "valid").await.as_deref(), Some("valid"));
}

pub async fn a_record_in_another_place_is_absent(site: Site) {
    let state = site.open().await;
    for (id, value) in [("alice", "of alice"), ("root", "of root")] {
        state.insert(Kind::Session, id, None, &value, later()).await.unwrap();
    }
    assert_eq!(get(&state, Kind::Session, "root").await.as_deref(), Some("of root"));
    // Swap the values of two records.
    let swap = "CREATE TABLE copied AS SELECT id, sealed FROM records; \
                UPDATE records SET sealed = (SELECT sealed FROM copied WHERE copied.id <> records.id); DROP TABLE copied";
    site.execute(swap).await;
    assert_eq!(get(&state, Kind::Session, "alice").await, None);
    assert_eq!(get(&state, Kind::Session, "root").await, None);
    site.execute(swap).await;
    assert_eq!(get(&state, Kind::Session, "root").await.as_deref(), Some("of root"));
    // Change the kind, the expiry and the version.
    for (change, back, kind) in [
        ("kind = 2", "kind = 1", Kind::Device),
        ("expires = expires + 1", "expires = expires - 1", Kind::Session),
        ("version = version + 1", "version = version - 1", Kind::Session),
    ] {
        site.execute(&format!("UPDATE records SET {change}")).await;
        assert_eq!(get(&state, kind, "root").await, None, "{change}");
        site.execute(&format!("UPDATE records SET {back}")).await;
        assert_eq!(get(&state, Kind::Session, "root").await.as_deref(), Some("of root"));
    }
    // A record that cannot be opened reveals nothing.
    site.execute("UPDATE records SET expires = expires + 1").await;
    assert_eq!(state.take::<String>(Kind::Session, "root").await.unwrap(), None);
}

pub async fn the_database_has_no_plain_text(site: Site) {
    let state = site.open().await;
    let id = format!("{CANARY}-id");
    let owner = format!("{CANARY}-owner");
    state
        .insert(Kind::Session, &id, Some(&owner), &CANARY, later())
        .await
        .unwrap();
    assert!(
        state
            .replace(Kind::Session, &id, 1, &format!("{CANARY}-2"), later())
            .await
            .unwrap()
    );
    // Records that others write are found.
    site.execute("CREATE TABLE shown (text TEXT); INSERT INTO shown VALUES ('shown-1c44ab09')")
        .await;
    if site.postgres.is_some() {
        site.execute("CHECKPOINT").await;
    }
    let bytes = site.bytes();
    let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(has("shown-1c44ab09") && !has(CANARY));
    assert_eq!(get(&state, Kind::Session, &id).await, Some(format!("{CANARY}-2")));
}

pub async fn keys_rotate(site: Site) {
    let state = site.open().await;
    let keys = |lines: &str| {
        write_private(&site.dir.path().join("keys"), lines);
        state.replace_keys(site.settings().keyring);
    };
    state.insert(Kind::Session, "old", None, &"old", later()).await.unwrap();
    keys(&format!("# of July\n{}\n\n{}\n", KEYS[1], KEYS[0]));
    assert_eq!(get(&state, Kind::Session, "old").await.as_deref(), Some("old"));
    state
        .insert(Kind::Session, "next", None, &"next", later())
        .await
        .unwrap();
    // Another service cannot open the record until it loads the new key.
    write_private(&site.dir.path().join("keys"), KEYS[0]);
    let other = site.open().await;
    assert_eq!(get(&other, Kind::Session, "next").await, None);
    keys(KEYS[1]);
    other.replace_keys(site.settings().keyring);
    assert_eq!(get(&other, Kind::Session, "next").await.as_deref(), Some("next"));
    assert_eq!(get(&state, Kind::Session, "old").await, None);
}

pub async fn services_create_the_tables_at_once(site: Site) {
    let settings = site.settings();
    let opened = (0..8).map(|_| {
        let settings = settings.clone();
        tokio::spawn(async move { State::open(&settings).await.unwrap() })
    });
    let opened: Vec<_> = opened.collect();
    for (i, opened) in opened.into_iter().enumerate() {
        let state = opened.await.unwrap();
        state
            .insert(Kind::Code, &i.to_string(), None, &i, later())
            .await
            .unwrap();
    }
    assert_eq!(site.number("SELECT count(*) FROM schema_version").await, 1);
    assert_eq!(site.number("SELECT count(*) FROM records").await, 8);
}

pub async fn tables_of_a_later_version_are_refused(site: Site) {
    let state = site.open().await;
    state.insert(Kind::Code, "a", None, &"a", later()).await.unwrap();
    site.execute("UPDATE schema_version SET version = 99").await;
    let Err(error) = State::open(&site.settings()).await else {
        panic!("it was opened");
    };
    assert!(
        error.starts_with("state.database: ") && error.contains("version 99"),
        "{error}"
    );
    assert_eq!(site.number("SELECT version FROM schema_version").await, 99);
    assert_eq!(site.number("SELECT count(*) FROM records").await, 1);
}

pub async fn there_are_bounds(site: Site) {
    let bounded = settings(&format!("{}max-records = 3\n", site.table())).unwrap();
    let state = State::open(&bounded).await.unwrap();
    let insert = async |id: &str| state.insert(Kind::Device, id, None, &id, later()).await;
    for id in ["a", "b", "c"] {
        insert(id).await.unwrap();
    }
    let full = insert("d").await;
    assert!(matches!(full, Err(StateError::Full(Kind::Device, 3))), "{full:?}");
    assert!(full.unwrap_err().to_string().contains("max-records"));
    state.insert(Kind::Code, "d", None, &"d", later()).await.unwrap();
    assert_eq!(
        state.take::<String>(Kind::Device, "a").await.unwrap().as_deref(),
        Some("a")
    );
    insert("d").await.unwrap();
    // The limit counts the records of other services.
    let other = State::open(&bounded).await.unwrap();
    let full = other.insert(Kind::Device, "e", None, &"e", later()).await;
    assert!(matches!(full, Err(StateError::Full(Kind::Device, 3))), "{full:?}");

    let longest = "x".repeat(MAX_VALUE - 2);
    other.insert(Kind::Family, "a", None, &longest, later()).await.unwrap();
    assert_eq!(get(&other, Kind::Family, "a").await, Some(longest));
    let long = other
        .insert(Kind::Family, "b", None, &"x".repeat(MAX_VALUE - 1), later())
        .await;
    assert!(matches!(long, Err(StateError::TooLong(Kind::Family))), "{long:?}");
    let long = other
        .replace(Kind::Family, "a", 1, &"x".repeat(MAX_VALUE - 1), later())
        .await;
    assert!(matches!(long, Err(StateError::TooLong(Kind::Family))), "{long:?}");
}

pub async fn a_database_that_hangs_is_an_error(site: Site) {
    let state = site.open().await;
    let lock = site.lock().await;
    let hangs = state.insert(Kind::Session, "a", None, &"a", later()).await;
    assert!(matches!(hangs, Err(StateError::Unavailable(_))), "{hangs:?}");
    drop(lock);
    // The operation may have been executed, but not twice.
    let done = state.insert(Kind::Session, "a", None, &"a", later()).await;
    assert!(matches!(done, Ok(()) | Err(StateError::Exists(_))), "{done:?}");
    assert_eq!(get(&state, Kind::Session, "a").await.as_deref(), Some("a"));
}

/// A killed service has stored every record that it reported as stored.
pub async fn a_record_outlives_the_service(site: Site) {
    let name = match site.postgres {
        Some(_) => "postgresql::a_record_outlives_the_service",
        None => "sqlite::a_record_outlives_the_service",
    };
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("STATE_OF_KILLED", site.table())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stored = Vec::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        if let Some(i) = line.unwrap().strip_prefix("stored ") {
            stored.push(i.parse::<usize>().unwrap());
        }
        if stored.len() == 100 {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(stored.len() >= 100);
    let state = site.open().await;
    for i in stored {
        let record = state.get::<usize>(Kind::Session, &i.to_string()).await.unwrap();
        assert_eq!(record.map(|record| record.value), Some(i));
    }
}
