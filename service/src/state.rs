// SPDX-License-Identifier: MIT OR Apache-2.0

//! The state: sessions, logins of devices, authorization codes and families of refresh tokens.
//!
//! All are records of one table, in SQLite, or in PostgreSQL if several services share it. The database contains only
//! digests of ids and owners, and sealed values: it is useless without the key file.

mod cookie;
mod database;
mod record;
pub mod seal;
mod statements;

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use aws_lc_rs::digest::{Digest, SHA256, digest};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, sleep, timeout_at},
};

pub use self::record::{Kind, MAX_VALUE, StateError, Stored};
use self::{
    database::{Database, late, unavailable},
    record::{Counts, LIMIT},
    seal::{Keyring, Place},
};
use crate::{clock, log, settings::StateSettings};

/// The interval between deletions of expired records.
const SWEEP: Duration = Duration::from_secs(60);

/// The maximum number of records to delete in one statement, so that other writers do not wait for long.
const BATCH: i64 = 500;

/// The pause between two batches of deletions.
const PAUSE: Duration = Duration::from_millis(50);

static UNSWEPT: log::Kind = log::Kind::new();
static UNREADABLE: log::Kind = log::Kind::new();

/// The state. Clones share the database.
#[derive(Clone)]
pub struct State {
    database: Arc<Database>,
    keyring: Arc<RwLock<Keyring>>,
    counts: Arc<Counts>,
    /// Deletes expired records until the last clone is dropped.
    _sweeper: Arc<JoinSet<()>>,
}

/// Runs a query on a reading or writing connection, with a timeout.
macro_rules! run {
    ($state:expr, $way:ident, $connection:ident => $query:expr) => {{
        let end = Instant::now() + LIMIT;
        match &*$state.database {
            Database::Sqlite(pools) => run!(@ end, &pools.$way, $connection => $query),
            Database::Postgres(pools) => run!(@ end, &pools.$way, $connection => $query),
        }
    }};
    (@ $end:ident, $pool:expr, $connection:ident => $query:expr) => {{
        let acquired = timeout_at($end, $pool.acquire()).await.map_err(late)?;
        let mut acquired = acquired.map_err(unavailable)?;
        let $connection = &mut *acquired;
        let done = timeout_at($end, $query).await;
        if done.is_err() {
            // The statement may still be running, so the connection cannot be reused.
            acquired.close_on_drop();
        }
        done.map_err(late).and_then(|done| done.map_err(unavailable))
    }};
}

/// Executes a statement with values. Returns the number of changed rows.
macro_rules! change {
    ($state:expr, $statement:expr $(, $value:expr)*) => {
        run!($state, write, connection => async {
            let done = sqlx::query($statement)$(.bind($value))*.execute(connection).await?;
            Ok(done.rows_affected())
        })
    };
}

/// Executes a statement with values. Returns its rows. SQLite reports an error of the commit only after the last row.
macro_rules! fetch {
    ($state:expr, $way:ident, $statement:expr $(, $value:expr)*) => {
        run!($state, $way, connection => sqlx::query_as($statement)$(.bind($value))*.fetch_all(connection))
    };
}

impl State {
    /// Opens the database, and creates or updates its tables.
    ///
    /// # Errors
    /// A message for the operator if the database cannot be used.
    pub async fn open(settings: &StateSettings) -> Result<Self, String> {
        let mut state = Self {
            database: Arc::new(Database::open(&settings.database).await?),
            keyring: Arc::new(RwLock::new(settings.keyring.clone())),
            counts: Arc::new(Counts::new(settings.max_records)),
            _sweeper: Arc::default(),
        };
        state.recount().await.map_err(|e| e.to_string())?;
        let mut sweeper = JoinSet::new();
        sweeper.spawn(sweep_always(state.clone()));
        state._sweeper = Arc::new(sweeper);
        Ok(state)
    }

    /// Replaces the keys.
    pub fn replace_keys(&self, keyring: Keyring) {
        *self.keyring.write().unwrap_or_else(PoisonError::into_inner) = keyring;
    }

    /// Checks that the database responds.
    ///
    /// # Errors
    /// [`StateError::Unavailable`].
    pub async fn check(&self) -> Result<(), StateError> {
        let answer: Result<Vec<(i64,)>, _> = fetch!(self, read, statements::CHECK);
        answer.map(drop)
    }

    /// Stores a record.
    ///
    /// # Errors
    /// [`StateError::Exists`] if an unexpired record has this id.
    pub async fn insert<T: Serialize>(
        &self,
        kind: Kind,
        id: &str,
        owner: Option<&str>,
        value: &T,
        expires: u64,
    ) -> Result<(), StateError> {
        self.counts.check(kind)?;
        let id = digest_of(id);
        let owner = owner.map(digest_of);
        let expires = seconds(expires);
        let place = Place::new(kind, id.as_ref(), 1, expires);
        let sealed = self.keyring().seal(&place, value)?;
        let inserted = change!(
            self,
            statements::INSERT,
            kind.number(),
            id.as_ref(),
            owner.as_ref().map(|owner| owner.as_ref()),
            expires,
            sealed.as_slice(),
            now()
        )?;
        if inserted == 0 {
            return Err(StateError::Exists(kind));
        }
        self.counts.add(kind, 1);
        Ok(())
    }

    /// Returns a record, or `None`.
    ///
    /// # Errors
    /// [`StateError::Unavailable`].
    pub async fn get<T: DeserializeOwned>(&self, kind: Kind, id: &str) -> Result<Option<Stored<T>>, StateError> {
        let id = digest_of(id);
        let rows: Vec<Row> = fetch!(self, read, statements::GET, kind.number(), id.as_ref(), now())?;
        Ok(rows
            .into_iter()
            .find_map(|row| self.open_row(kind, row))
            .map(|(_, stored)| stored))
    }

    /// Removes a record, and returns its value to exactly one of concurrent callers, even of several services.
    ///
    /// # Errors
    /// [`StateError::Unavailable`].
    pub async fn take<T: DeserializeOwned>(&self, kind: Kind, id: &str) -> Result<Option<T>, StateError> {
        let id = digest_of(id);
        let rows: Vec<Row> = fetch!(self, write, statements::TAKE, kind.number(), id.as_ref(), now())?;
        self.counts.add(kind, -seconds(rows.len() as u64));
        Ok(rows
            .into_iter()
            .find_map(|row| self.open_row(kind, row))
            .map(|(_, stored)| stored.value))
    }

    /// Replaces the value of a record if its version is still this one. Returns whether it did.
    ///
    /// # Errors
    /// Those of [`State::insert`], except [`StateError::Exists`].
    pub async fn replace<T: Serialize>(
        &self,
        kind: Kind,
        id: &str,
        version: i64,
        value: &T,
        expires: u64,
    ) -> Result<bool, StateError> {
        let id = digest_of(id);
        let expires = seconds(expires);
        let next = version.saturating_add(1);
        let place = Place::new(kind, id.as_ref(), next, expires);
        let sealed = self.keyring().seal(&place, value)?;
        let replaced = change!(
            self,
            statements::REPLACE,
            kind.number(),
            id.as_ref(),
            version,
            next,
            expires,
            sealed.as_slice(),
            now()
        )?;
        Ok(replaced == 1)
    }

    /// Removes a record. Returns whether it existed.
    ///
    /// # Errors
    /// [`StateError::Unavailable`].
    pub async fn remove(&self, kind: Kind, id: &str) -> Result<bool, StateError> {
        let id = digest_of(id);
        let removed = change!(self, statements::REMOVE, kind.number(), id.as_ref())?;
        Ok(self.removed(kind, removed) == 1)
    }

    /// Removes all records of an owner. Returns their number.
    ///
    /// # Errors
    /// [`StateError::Unavailable`].
    pub async fn remove_owned(&self, kind: Kind, owner: &str) -> Result<u64, StateError> {
        let owner = digest_of(owner);
        let removed = change!(self, statements::REMOVE_OWNED, kind.number(), owner.as_ref())?;
        Ok(self.removed(kind, removed))
    }

    /// Returns records of an owner, with the digests of their ids. Those that expire last come first.
    ///
    /// # Errors
    /// [`StateError::Unavailable`].
    pub async fn owned<T: DeserializeOwned>(
        &self,
        kind: Kind,
        owner: &str,
        most: u32,
    ) -> Result<Vec<(Vec<u8>, Stored<T>)>, StateError> {
        let owner = digest_of(owner);
        let rows: Vec<Row> = fetch!(
            self,
            read,
            statements::OWNED,
            kind.number(),
            owner.as_ref(),
            now(),
            i64::from(most)
        )?;
        Ok(rows.into_iter().filter_map(|row| self.open_row(kind, row)).collect())
    }

    /// Removes a record of an owner, by the digest of its id. Returns whether it existed.
    ///
    /// # Errors
    /// [`StateError::Unavailable`].
    pub async fn remove_digest(&self, kind: Kind, owner: &str, digest: &[u8]) -> Result<bool, StateError> {
        let owner = digest_of(owner);
        let removed = change!(self, statements::REMOVE_DIGEST, kind.number(), digest, owner.as_ref())?;
        Ok(self.removed(kind, removed) == 1)
    }

    /// Returns the number of records of an owner.
    ///
    /// # Errors
    /// [`StateError::Unavailable`].
    pub async fn count_owned(&self, kind: Kind, owner: &str) -> Result<u64, StateError> {
        let owner = digest_of(owner);
        let counts: Vec<(i64,)> = fetch!(
            self,
            read,
            statements::COUNT_OWNED,
            kind.number(),
            owner.as_ref(),
            now()
        )?;
        Ok(counts.iter().map(|(count,)| count.unsigned_abs()).sum())
    }

    /// Returns the number of records.
    ///
    /// # Errors
    /// [`StateError::Unavailable`].
    pub async fn count(&self, kind: Kind) -> Result<u64, StateError> {
        let counts: Vec<(i64,)> = fetch!(self, read, statements::COUNT, kind.number(), now())?;
        Ok(counts.iter().map(|(count,)| count.unsigned_abs()).sum())
    }

    /// Deletes expired records, in small batches. Returns their number.
    ///
    /// # Errors
    /// [`StateError::Unavailable`].
    pub async fn sweep(&self) -> Result<u64, StateError> {
        let mut swept = 0;
        loop {
            let batch = change!(self, statements::SWEEP_BATCH, now(), BATCH)?;
            swept += batch;
            if batch < BATCH.unsigned_abs() {
                self.recount().await?;
                return Ok(swept);
            }
            sleep(PAUSE).await;
        }
    }

    async fn recount(&self) -> Result<(), StateError> {
        let counts: Vec<(i64, i64)> = fetch!(self, read, statements::COUNTS)?;
        self.counts.set(&counts);
        Ok(())
    }

    fn keyring(&self) -> Keyring {
        self.keyring.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn removed(&self, kind: Kind, count: u64) -> u64 {
        self.counts.add(kind, -seconds(count));
        count
    }

    /// Opens a record. A record that cannot be opened counts as absent.
    fn open_row<T: DeserializeOwned>(&self, kind: Kind, row: Row) -> Option<(Vec<u8>, Stored<T>)> {
        let (id, version, expires, sealed) = row;
        match self.keyring().open(&Place::new(kind, &id, version, expires), &sealed) {
            Ok(value) => {
                let expires = expires.unsigned_abs();
                Some((
                    id,
                    Stored {
                        value,
                        version,
                        expires,
                    },
                ))
            }
            Err(what) => {
                UNREADABLE.log(format_args!(
                    "a record of the kind {kind} in the state is ignored: {what}"
                ));
                None
            }
        }
    }
}

/// The digest of the id, the version, the expiry and the sealed value of a record.
type Row = (Vec<u8>, i64, i64, Vec<u8>);

async fn sweep_always(state: State) {
    let mut ticks = interval_at(Instant::now() + SWEEP, SWEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(e) = state.sweep().await {
            UNSWEPT.log(format_args!("expired records could not be deleted: {e}"));
        }
    }
}

fn digest_of(text: &str) -> Digest {
    digest(&SHA256, text.as_bytes())
}

/// Converts a number to the integer type of databases.
fn seconds(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Returns the seconds since 1970-01-01T00:00:00Z.
fn now() -> i64 {
    seconds(clock::now())
}
