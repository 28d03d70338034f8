// SPDX-License-Identifier: MIT OR Apache-2.0

//! Connections to the database, and its schema.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::Duration,
};

use secrecy::ExposeSecret;
use secure_path::{Owners, Refusal};
use sqlx::{
    ConnectOptions, Connection, Executor, Pool, Postgres, Sqlite, SqliteConnection,
    pool::PoolOptions,
    postgres::{PgConnectOptions, PgConnection, PgSslMode},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use tokio::time::{Instant, error::Elapsed, sleep, timeout};

use super::record::{LIMIT, StateError};
use crate::settings::{DatabaseSettings, PostgresSettings};

/// The timeout for opening the database.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// How long an SQLite writer waits for others, including other services: shorter than the timeout of an operation.
const BUSY: Duration = Duration::from_millis(1500);

/// The maximum number of reading connections to SQLite.
const SQLITE_READERS: u32 = 4;

/// The maximum number of connections to PostgreSQL, which accepts 100 by default.
const POSTGRES_CONNECTIONS: u32 = 16;

/// The statements that update the schema to each version, in order. Both databases accept them: SQLite stores bytes in
/// a column of any type. Never change released statements.
const MIGRATIONS: [&str; 1] = ["CREATE TABLE records (
        kind BIGINT NOT NULL,
        id BYTEA NOT NULL,
        owner BYTEA,
        version BIGINT NOT NULL,
        expires BIGINT NOT NULL,
        sealed BYTEA NOT NULL,
        PRIMARY KEY (kind, id)
    );
    CREATE INDEX records_owner ON records (kind, owner) WHERE owner IS NOT NULL;
    CREATE INDEX records_expires ON records (expires);"];

/// The table with one row that contains the schema version.
const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)";

/// Prevents other services from updating the schema until the transaction ends. The number is arbitrary.
const POSTGRES_LOCK: &str = "SELECT pg_advisory_xact_lock(7812053617)";

/// Connections.
pub enum Database {
    Sqlite(Pools<Sqlite>),
    Postgres(Pools<Postgres>),
}

/// Connections to read and to write.
pub struct Pools<D: sqlx::Database> {
    pub read: Pool<D>,
    pub write: Pool<D>,
}

impl Database {
    /// Opens a database, and creates or updates its tables.
    ///
    /// # Errors
    /// A message for the operator.
    pub async fn open(settings: &DatabaseSettings) -> Result<Self, String> {
        let name = settings.to_string();
        let opened = timeout(OPEN_LIMIT, async {
            match settings {
                DatabaseSettings::Sqlite(path) => sqlite(path).await.map(Self::Sqlite),
                DatabaseSettings::Postgres(settings) => postgres(settings).await.map(Self::Postgres),
            }
        });
        let late = |_| format!("it did not respond within {} s", OPEN_LIMIT.as_secs());
        let opened = opened.await.map_err(late).and_then(|opened| opened);
        opened.map_err(|e| format!("state.database: {name}: {e}"))
    }
}

/// Creates or updates the schema in one transaction. Returns its version, which is later than expected if a newer
/// service updated it.
macro_rules! migrate {
    ($connection:ident, $begin:literal, $lock:expr) => {{
        let mut transaction = $connection.begin_with($begin).await?;
        transaction.execute($lock).await?;
        transaction.execute(SCHEMA).await?;
        let found: Vec<(i64,)> = sqlx::query_as("SELECT version FROM schema_version")
            .fetch_all(&mut *transaction)
            .await?;
        let version = found.first().map(|(version,)| *version);
        let done = usize::try_from(version.unwrap_or(0)).unwrap_or(MIGRATIONS.len());
        let mut next = version;
        for (i, statements) in MIGRATIONS.iter().enumerate().skip(done) {
            transaction.execute(*statements).await?;
            next = i64::try_from(i + 1).ok();
        }
        if next != version {
            transaction.execute("DELETE FROM schema_version").await?;
            let insert = sqlx::query("INSERT INTO schema_version (version) VALUES ($1)");
            insert.bind(next).execute(&mut *transaction).await?;
            transaction.commit().await?;
        }
        Ok(next.unwrap_or(0))
    }};
}

async fn sqlite(path: &Path) -> Result<Pools<Sqlite>, String> {
    let file = path.to_owned();
    // The file system may hang.
    let created = tokio::task::spawn_blocking(move || create(&file)).await;
    created.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY);
    let end = Instant::now() + OPEN_LIMIT;
    let version = loop {
        match sqlite_version(&options).await {
            // Another service is creating the file.
            Err(e) if is_busy(&e) && Instant::now() < end => sleep(BUSY / 30).await,
            version => break version,
        }
    };
    check_version(version)?;
    let pool = |most| pool_options(most).test_before_acquire(false);
    Ok(Pools {
        read: pool(SQLITE_READERS).connect_lazy_with(options.clone()),
        // Writers queue in this pool, instead of competing for the lock of SQLite.
        write: pool(1).connect_lazy_with(options),
    })
}

async fn sqlite_version(options: &SqliteConnectOptions) -> Result<i64, sqlx::Error> {
    let mut connection: SqliteConnection = options.connect().await?;
    let version = migrate!(connection, "BEGIN IMMEDIATE", "SELECT 1");
    connection.close().await?;
    version
}

async fn postgres(settings: &PostgresSettings) -> Result<Pools<Postgres>, String> {
    let mut options: PgConnectOptions = settings.url.parse().map_err(|e| one_line(&e))?;
    options = options.application_name("workflow-tokend");
    if let Some(password) = &settings.password {
        options = options.password(password.expose_secret());
    }
    let mode = match settings.is_tls(&options) {
        true => PgSslMode::VerifyFull,
        false => PgSslMode::Disable,
    };
    options = options.ssl_mode(mode);
    if let Some(pem) = &settings.ca {
        options = options.ssl_root_cert_from_pem(pem.clone());
    }
    check_version(postgres_version(&options).await)?;
    // The server aborts statements whose callers have timed out.
    let options = options.options([("statement_timeout", LIMIT.as_millis())]);
    let pool = pool_options(POSTGRES_CONNECTIONS).connect_lazy_with(options);
    Ok(Pools {
        read: pool.clone(),
        write: pool,
    })
}

async fn postgres_version(options: &PgConnectOptions) -> Result<i64, sqlx::Error> {
    let mut connection: PgConnection = options.connect().await?;
    let version = migrate!(connection, "BEGIN", POSTGRES_LOCK);
    connection.close().await?;
    version
}

fn pool_options<D: sqlx::Database>(most: u32) -> PoolOptions<D> {
    PoolOptions::new().max_connections(most).acquire_timeout(LIMIT)
}

fn check_version(version: Result<i64, sqlx::Error>) -> Result<(), String> {
    let known = MIGRATIONS.len();
    match version {
        Ok(version) if usize::try_from(version) == Ok(known) => Ok(()),
        Ok(version) => Err(format!(
            "its schema has version {version}, and this service supports {known}: install a later version of the service"
        )),
        Err(e) => Err(one_line(&e)),
    }
}

/// Creates the file if it is missing, so that no other user can read or replace it.
fn create(path: &Path) -> Result<(), Refusal> {
    secure_path::open_directory(path.parent().unwrap_or(path), Owners::process())?;
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    drop(file);
    let file: fs::File = secure_path::open(path, Owners::process())?;
    secure_path::check_private(&file.metadata()?)
}

/// Returns whether another connection holds the lock of SQLite: SQLITE_BUSY, or one of its extended codes.
fn is_busy(e: &sqlx::Error) -> bool {
    let code = e.as_database_error().and_then(|e| e.code());
    code.and_then(|code| code.parse::<u32>().ok())
        .is_some_and(|code| code & 0xff == 5)
}

/// Converts an error of a database, without values, for the operator.
pub fn unavailable(e: sqlx::Error) -> StateError {
    StateError::Unavailable(match e {
        sqlx::Error::PoolTimedOut => no_answer(),
        e => one_line(&e),
    })
}

/// Returns the error of a database that does not respond in time.
pub fn late(_: Elapsed) -> StateError {
    StateError::Unavailable(no_answer())
}

fn no_answer() -> String {
    format!("the database did not respond within {} s", LIMIT.as_secs())
}

fn one_line(e: &sqlx::Error) -> String {
    e.to_string().replace(char::is_control, " ")
}
