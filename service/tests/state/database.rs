// SPDX-License-Identifier: MIT OR Apache-2.0

//! Failures of PostgreSQL, and their effect on the service.

use std::{fs, sync::Arc};

use needs::needs;
use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use service::state::{Kind, State, StateError};

use crate::{
    LIMIT, get, later, run,
    server::{PASSWORD, Server},
    site::{KEYS, Site, settings},
    support::{Service, until, write_private},
};

/// A database on a separate server, for one test.
async fn alone(more: &str, files: &[(&str, &str)]) -> (Site, Arc<Server>) {
    let server = Arc::new(Server::start(more, files).await);
    let mut site = Site::sqlite().await;
    site.postgres = Some((Arc::clone(&server), "postgres".to_owned()));
    (site, server)
}

#[needs(postgresql)]
#[test]
fn a_server_that_ends_and_starts_again_loses_nothing() {
    run(async {
        let (site, server) = alone("", &[]).await;
        let state = site.open().await;
        for i in 0..50 {
            state
                .insert(Kind::Session, &i.to_string(), None, &i, later())
                .await
                .unwrap();
        }
        server.stop();
        let gone = state.get::<i64>(Kind::Session, "1").await.map(drop);
        assert!(matches!(gone, Err(StateError::Unavailable(_))), "{gone:?}");
        let gone = state.insert(Kind::Session, "x", None, &"x", later()).await;
        assert!(matches!(gone, Err(StateError::Unavailable(_))), "{gone:?}");
        assert!(state.check().await.is_err());
        let refused = State::open(&site.settings()).await.map(drop).unwrap_err();
        assert!(refused.starts_with("state.database: postgres://tester@"), "{refused}");
        server.start_again().await;
        let end = tokio::time::Instant::now() + LIMIT;
        while let Err(e) = state.check().await {
            assert!(tokio::time::Instant::now() < end, "{e}");
        }
        for i in 0..50 {
            let record = state.get::<i64>(Kind::Session, &i.to_string()).await.unwrap();
            assert_eq!(record.map(|record| record.value), Some(i));
        }
    });
}

#[needs(postgresql)]
#[test]
fn the_service_is_ready_while_the_database_answers() {
    run(async {
        let (site, server) = alone("", &[]).await;
        let service = Service::with(&site.table());
        assert_eq!(service.get("/readyz").status, 200);
        server.stop();
        let response = service.get("/readyz");
        assert_eq!(
            (response.status, response.body.as_str()),
            (503, "the state cannot be used\n")
        );
        // Requests that do not need the state are served.
        assert_eq!((service.get("/livez").status, service.get("/jwks").status), (200, 200));
        until("the cause is in the log", || {
            service.log().contains("the state cannot be used: ")
        });
        server.start_again().await;
        until("the service is ready", || service.get("/readyz").status == 200);
    });
}

#[test]
fn keys_are_loaded_again_and_another_database_needs_a_restart() {
    run(async {
        let site = Site::sqlite().await;
        let listener = "address = \"127.0.0.1:0\"";
        let service = Service::with(&site.table());
        let write = |table: &str| crate::support::write_settings(service.dir.path(), listener, table);
        write(&site.table().replace("state.db", "other.db"));
        service.signal(Signal::SIGHUP);
        until("the change is refused", || {
            service.log().contains("needs a restart: the former settings stay")
        });
        write(&site.table());
        write_private(&site.dir.path().join("keys"), &format!("{}\nx\n", KEYS[1]));
        service.signal(Signal::SIGHUP);
        until("the mistake is refused", || service.log().contains("line 2"));
        write_private(&site.dir.path().join("keys"), &format!("{}\n{}\n", KEYS[1], KEYS[0]));
        service.signal(Signal::SIGHUP);
        until("the keys are loaded", || {
            service.log().contains("the settings were reloaded")
        });
        assert!(!site.dir.path().join("other.db").exists());
        assert_eq!(service.get("/readyz").status, 200);
    });
}

/// The certificates of an authority and of `localhost`, and the key of the latter.
fn certificates() -> [String; 3] {
    let key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = authority.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    [pem, server.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem()]
}

#[needs(postgresql)]
#[test]
fn the_network_is_crossed_with_tls_and_a_password() {
    run(async {
        let [authority, certificate, key] = certificates();
        let files = [("server.crt", certificate.as_str()), ("server.key", key.as_str())];
        let tls = "listen_addresses = '0.0.0.0'\nssl = on";
        let (site, server) = alone(tls, &files).await;
        let dir = site.dir.path();
        fs::write(dir.join("ca.pem"), authority).unwrap();
        fs::write(dir.join("other.pem"), &certificates()[0]).unwrap();
        write_private(&dir.join("password"), &format!("{PASSWORD}\n"));
        write_private(&dir.join("wrong"), "canary-wrong-password");
        let open = async |host: &str, password: &str, ca: &str| {
            let at = dir.display();
            let mut table = format!(
                "[state]\ndatabase = \"postgres://tester@{host}:{}/postgres\"\nkey-file = \"{at}/keys\"\n\
                 password-file = \"{at}/{password}\"\n",
                server.port
            );
            if !ca.is_empty() {
                table += &format!("ca-file = \"{at}/{ca}\"\n");
            }
            let settings = settings(&table).unwrap();
            let shown = format!("{settings:?}");
            assert!(!shown.contains("canary") && !shown.contains(KEYS[0]), "{shown}");
            State::open(&settings).await
        };
        let state = open("localhost", "password", "ca.pem").await.unwrap();
        state.insert(Kind::Session, "a", None, &"a", later()).await.unwrap();
        assert_eq!(get(&state, Kind::Session, "a").await.as_deref(), Some("a"));
        let tls = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                   WHERE application_name = 'workflow-tokend' AND ssl";
        assert!(site.number(tls).await > 0);

        for (host, password, ca, says) in [
            ("localhost", "wrong", "ca.pem", "password authentication failed"),
            // Another authority, and another name.
            ("localhost", "password", "other.pem", "certificate"),
            ("127.0.0.1", "password", "ca.pem", "certificate"),
            // An address that is not known to belong to this machine.
            ("0.0.0.0", "password", "", "certificate"),
        ] {
            let error = open(host, password, ca).await.map(drop).unwrap_err();
            assert!(error.starts_with("state.database: postgres://tester@"), "{error}");
            assert!(
                error.contains(says) && !error.contains("canary"),
                "{host} {password} {ca}: {error}"
            );
        }
        // The connection does not leave this machine.
        open("localhost", "password", "").await.unwrap();
    });
}
