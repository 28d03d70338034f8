// SPDX-License-Identifier: MIT OR Apache-2.0

//! A database, and services that share it.

use std::{
    any::Any,
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use service::{
    settings::{Settings, StateSettings},
    state::State,
};
use sqlx::{Connection, PgConnection, SqliteConnection};
use tempfile::TempDir;

use crate::{server::Server, support::write_private};

/// Two keys.
pub const KEYS: [&str; 2] = [
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
    "FF0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1eff",
];

/// The number of databases on the server.
static DATABASES: AtomicU32 = AtomicU32::new(0);

pub struct Site {
    pub dir: TempDir,
    /// The server, and the name of the database.
    pub postgres: Option<(Arc<Server>, String)>,
}

impl Site {
    pub async fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_private(&dir.path().join("keys"), KEYS[0]);
        Self { dir, postgres: None }
    }

    pub async fn postgresql() -> Self {
        let server = Server::shared().await;
        let mut site = Self::sqlite().await;
        let name = format!("test{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        let mut connection = PgConnection::connect(&server.url("postgres")).await.unwrap();
        let create = format!("CREATE DATABASE {name}");
        sqlx::raw_sql(&create).execute(&mut connection).await.unwrap();
        site.postgres = Some((server, name));
        site
    }

    pub fn url(&self) -> String {
        match &self.postgres {
            Some((server, name)) => server.url(name),
            None => format!("sqlite://{}", self.file().display()),
        }
    }

    /// Returns the SQLite file.
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("state.db")
    }

    /// Returns the table `state` of a service.
    pub fn table(&self) -> String {
        let keys = self.dir.path().join("keys");
        format!(
            "[state]\ndatabase = \"{}\"\nkey-file = \"{}\"\n",
            self.url(),
            keys.display()
        )
    }

    pub fn settings(&self) -> StateSettings {
        settings(&self.table()).unwrap()
    }

    /// Opens the state as another service does.
    pub async fn open(&self) -> State {
        State::open(&self.settings()).await.unwrap()
    }

    /// Executes statements without the service.
    pub async fn execute(&self, statements: &str) {
        match &self.postgres {
            Some(_) => {
                let mut connection = PgConnection::connect(&self.url()).await.unwrap();
                sqlx::raw_sql(statements).execute(&mut connection).await.unwrap();
            }
            None => {
                let mut connection = SqliteConnection::connect(&self.url()).await.unwrap();
                sqlx::raw_sql(statements).execute(&mut connection).await.unwrap();
            }
        }
    }

    /// Returns a number from the database.
    pub async fn number(&self, query: &str) -> i64 {
        let (number,): (i64,) = match &self.postgres {
            Some(_) => {
                let mut connection = PgConnection::connect(&self.url()).await.unwrap();
                sqlx::query_as(query).fetch_one(&mut connection).await.unwrap()
            }
            None => {
                let mut connection = SqliteConnection::connect(&self.url()).await.unwrap();
                sqlx::query_as(query).fetch_one(&mut connection).await.unwrap()
            }
        };
        number
    }

    /// Prevents others from writing until the returned value is dropped.
    pub async fn lock(&self) -> Box<dyn Any> {
        match &self.postgres {
            Some(_) => {
                let mut connection = PgConnection::connect(&self.url()).await.unwrap();
                let lock = "BEGIN; LOCK TABLE records IN ACCESS EXCLUSIVE MODE";
                sqlx::raw_sql(lock).execute(&mut connection).await.unwrap();
                Box::new(connection)
            }
            None => {
                let mut connection = SqliteConnection::connect(&self.url()).await.unwrap();
                sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut connection).await.unwrap();
                Box::new(connection)
            }
        }
    }

    /// Returns the content of all files of the database.
    pub fn bytes(&self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut paths = vec![match &self.postgres {
            Some((server, _)) => server.dir.path().join("data"),
            None => self.dir.path().to_owned(),
        }];
        while let Some(path) = paths.pop() {
            match path.is_dir() {
                true => paths.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path())),
                // The server removes some files meanwhile.
                false => all.extend(fs::read(&path).unwrap_or_default()),
            }
        }
        all
    }
}

/// Parses the file of a service with this table.
pub fn settings(table: &str) -> Result<StateSettings, String> {
    let start = "issuer = \"https://a.example.org\"\n[[listen]]\naddress = \"127.0.0.1:0\"\n";
    Settings::parse(&format!("{start}{table}")).map(|settings| settings.state.unwrap())
}
