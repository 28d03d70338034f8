// SPDX-License-Identifier: MIT OR Apache-2.0

//! The state of the service: the same tests on SQLite and on PostgreSQL.

mod database;
mod files;
mod server;
mod site;
mod suite;
#[path = "../support/mod.rs"]
mod support;

use std::{
    env,
    future::Future,
    time::{Duration, SystemTime},
};

use service::state::{Kind, State};
use site::{Site, settings};

/// The timeout of every step.
const LIMIT: Duration = Duration::from_secs(60);

/// Defines two tests for each function.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[test] fn $name() { super::run(async { super::suite::$name(super::Site::sqlite().await).await }) })*
        }
        mod postgresql {
            $(#[needs::needs(postgresql)] #[test] fn $name() {
                super::run(async { super::suite::$name(super::Site::postgresql().await).await })
            })*
        }
    };
}

on_both![
    a_record_is_stored_until_it_is_removed,
    one_of_two_services_takes_a_record,
    one_of_two_changes_wins,
    an_expired_record_is_absent,
    a_record_in_another_place_is_absent,
    the_database_has_no_plain_text,
    keys_rotate,
    services_create_the_tables_at_once,
    tables_of_a_later_version_are_refused,
    there_are_bounds,
    a_database_that_hangs_is_an_error,
    a_record_outlives_the_service,
];

fn run(test: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    match env::var("STATE_OF_KILLED") {
        Ok(table) => runtime.block_on(store_until_killed(&table)),
        Err(_) => runtime.block_on(test),
    }
}

async fn store_until_killed(table: &str) {
    let state = State::open(&settings(table).unwrap()).await.unwrap();
    for i in 0.. {
        state
            .insert(Kind::Session, &i.to_string(), None, &i, later())
            .await
            .unwrap();
        // The test runner also writes to standard output.
        eprintln!("stored {i}");
    }
}

/// Returns the time in one hour, in seconds since 1970-01-01T00:00:00Z.
fn later() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    since.as_secs() + 3600
}

async fn get(state: &State, kind: Kind, id: &str) -> Option<String> {
    state.get(kind, id).await.unwrap().map(|stored| stored.value)
}
