// SPDX-License-Identifier: MIT OR Apache-2.0

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
};

use super::*;

const START: &str = "issuer = \"https://a.example.org/tokens\"\n[[listen]]\naddress = \"127.0.0.1:0\"\n";

fn error(rest: &str) -> String {
    Settings::parse(&format!("{START}{rest}")).unwrap_err()
}

#[test]
fn the_url_of_the_issuer_has_a_path_or_none() {
    let path = |url: &str| IssuerUrl::parse(url).map(|issuer| issuer.path().to_owned());
    assert_eq!(path("https://a.example.org"), Ok(String::new()));
    assert_eq!(path("https://a.example.org:8443/x/y"), Ok("/x/y".to_owned()));
    for url in [
        "https://a.example.org/",
        "https://a.example.org/x/",
        "https://a.example.org//x",
        "https://a/%78",
        "ftp://a",
        "a",
    ] {
        assert!(path(url).is_err(), "{url}");
    }
}

#[test]
fn a_file_has_defaults() {
    let settings = Settings::parse(START).unwrap();
    assert_eq!(settings.agent.to_str(), Some("/run/workflow-token/service"));
    assert_eq!(
        (settings.clients.len(), settings.resources.len(), settings.metrics),
        (0, 0, None)
    );
    assert_eq!(
        settings.summary(),
        "https://a.example.org/tokens: ok (tables: 1 listen, 0 client, 0 resource)"
    );
}

#[test]
fn mistakes_name_the_key() {
    for (rest, says) in [
        ("colour = 1", "colour"),
        ("[[listen]]\naddress = \"x\"", "listen[1].address"),
        ("[[listen]]\n", "listen[1].address: set either"),
        (
            "[[listen]]\naddress = \"0.0.0.0:80\"",
            "listen[1].certificate: is missing: tokens and secrets would cross",
        ),
        (
            "[[listen]]\nsocket = \"s\"",
            "listen[1].socket: must be an absolute path",
        ),
        (
            "[[listen]]\naddress = \"127.0.0.1:0\"\ncertificate = \"/c\"",
            "listen[1].key: is missing",
        ),
        (
            "[[listen]]\naddress = \"127.0.0.1:0\"\nkey = \"/c\"",
            "listen[1].certificate: is missing",
        ),
        (
            "[[listen]]\naddress = \"127.0.0.1:0\"\ncertificate = \"/no/such\"\nkey = \"/c\"",
            "listen[1].certificate: /no/such: ",
        ),
        (
            "[[client]]\nid = \"a\"\nuser = 1\naudience = []\nmay = [\"revoke\"]",
            "client[0].audience",
        ),
        (
            "[[client]]\nid = \"a:b\"\nuser = 1\naudience = [\"a\"]\nmay = [\"revoke\"]",
            "client[0].id",
        ),
        (
            "[[client]]\nid = \"a\"\naudience = [\"a\"]\nmay = [\"revoke\"]",
            "client[0].secret-file: set one of",
        ),
        (
            "[[client]]\nid = \"a\"\nuser = 1\naudience = [\"a\"]\nmay = [\"mint\"]",
            "client[0].may",
        ),
        (
            "[[client]]\nid = \"a\"\nuser = \"no-such-user\"\naudience = [\"a\"]\nmay = [\"revoke\"]",
            "client[0].user: `no-such-user`: no such user",
        ),
        (
            "[[client]]\nid = \"a\"\nuser = 1\naudience = [\"a\"]\nmay = [\"revoke\"]\n\
             [[client]]\nid = \"a\"\nuser = 2\naudience = [\"a\"]\nmay = [\"revoke\"]",
            "client[1].id: another client has the name `a`",
        ),
        ("[[resource]]\nname = \"a/b\"\nurl = \"https://a\"", "resource[0].name"),
        ("[[resource]]\nname = \"a\"\nurl = \"a\"", "resource[0].url"),
        (
            "[[resource]]\nname = \"a\"\nurl = \"https://a\"\nscopes = [\"a b\"]",
            "resource[0].scopes",
        ),
        (
            "[legacy]\nheader = \"cookie\"\ndeprecated = \"2026-01-01\"",
            "legacy.header: cookie has another meaning",
        ),
        (
            "[legacy]\nheader = \"x_y\"\ndeprecated = \"2026-01-01\"",
            "legacy.header",
        ),
        (
            "[legacy]\nheader = \"x-y\"\ndeprecated = \"soon\"",
            "legacy.deprecated: must be a date",
        ),
        (
            "[[client]]\nid = \"a\"\npublic = true\nmay = [\"revoke\"]\naudience = [\"a\"]",
            "client[0].may: a public client",
        ),
        (
            "[[client]]\nid = \"a\"\npublic = true\nuser = 0",
            "client[0].public: set one of",
        ),
        (
            "[[client]]\nid = \"a\"\nuser = 0\nredirect-uris = [\"https://a.example.org\"]",
            "client[0].redirect-uris: is for public",
        ),
        (
            "[[client]]\nid = \"a\"\npublic = true\nredirect-uris = [\"https://*.example.org/\"]",
            "client[0].redirect-uris: must be complete",
        ),
        (
            "[[client]]\nid = \"a\"\npublic = true\nredirect-uris = [\"http://a.example.org/\"]",
            "client[0].redirect-uris: must be https",
        ),
        ("[audit]\nfile = \"a\"", "audit.file: must be an absolute path"),
        ("agent-user = true", "agent-user"),
    ] {
        // A key of the whole file comes first.
        let error = match rest.starts_with('[') {
            true => error(rest),
            false => Settings::parse(&format!("{rest}\n{START}")).unwrap_err(),
        };
        assert!(error.contains(says), "{rest}: {error}");
        assert!(!error.contains('\n'), "{rest}: {error}");
    }
    assert!(
        Settings::parse("issuer = \"https://a.example.org\"")
            .unwrap_err()
            .starts_with("listen: is missing")
    );
    assert!(Settings::parse("[[listen]]\n").unwrap_err().contains("issuer"));
    assert!(!Settings::parse("x = [").unwrap_err().contains('\n'));
}

#[test]
fn dates_of_old_clients_are_those_of_http() {
    let rest = "[legacy]\nheader = \"X-Session\"\ndeprecated = \"2026-01-01\"\nsunset = \"2027-06-30\"";
    let legacy = Settings::parse(&format!("{START}{rest}")).unwrap().legacy.unwrap();
    assert_eq!(
        (legacy.header.as_str(), legacy.deprecated.as_str()),
        ("x-session", "@1767225600")
    );
    assert_eq!(legacy.sunset.as_deref(), Some("Wed, 30 Jun 2027 00:00:00 GMT"));
}

#[test]
fn a_secret_is_long_and_closed_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    let read = |content: &str, mode| {
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let client = format!(
            "[[client]]\nid = \"a\"\nsecret-file = \"{}\"\naudience = [\"a\"]\nmay = [\"revoke\"]",
            path.display()
        );
        Settings::parse(&format!("{START}{client}"))
    };
    let secret = "0123456789abcdef0123456789abcdef";
    let settings = read(&format!("{secret}\n"), 0o600).unwrap();
    let proof = &settings.clients[0].proof;
    assert!(proof.is_secret(secret.as_bytes()) && !proof.is_secret(b"0123456789abcdef0123456789abcdeg"));
    assert!(!format!("{settings:?}").contains(secret));
    assert!(read(secret, 0o644).unwrap_err().contains("client[0].secret-file"));
    let short = read("0123456789abcdef0123456789abcde\n", 0o600).unwrap_err();
    assert!(
        short.contains("fewer than 32 bytes") && !short.contains("0123456789"),
        "{short}"
    );
}

#[test]
fn mistakes_of_the_state_name_the_key_and_no_password() {
    for (table, says) in [
        ("database = \"sqlite:///a\"", "state: missing field `key-file`"),
        ("key-file = \"k\"", "state.key-file: must be an absolute path"),
        ("key-file = \"/no/such\"", "state.key-file: /no/such: "),
        (
            "key-file = \"/k\"\ndatabase = \"sqlite://a\"",
            "state.database: must be an absolute path",
        ),
        (
            "key-file = \"/k\"\npassword-file = \"/p\"",
            "state.password-file: is for PostgreSQL",
        ),
        (
            "key-file = \"/k\"\nca-file = \"/p\"",
            "state.ca-file: is for PostgreSQL",
        ),
        (
            "key-file = \"/k\"\ndatabase = \"postgres://a:canary@b/c\"",
            "state.database: must contain no password: write it to a file, and set password-file",
        ),
        (
            "key-file = \"/k\"\ndatabase = \"postgres://a@b/c?password=canary\"",
            "state.database: must be sqlite:///PATH, postgres://",
        ),
        (
            "key-file = \"/k\"\ndatabase = \"postgres://a:canary@b:x/c\"",
            "state.database: must be sqlite:///PATH, postgres://",
        ),
        (
            "key-file = \"/k\"\ndatabase = \"postgres://b/c\"",
            "state.database: must be sqlite:///PATH, postgres://",
        ),
        (
            "key-file = \"/k\"\ndatabase = \"postgres://a@b\"",
            "state.database: must be sqlite:///PATH, postgres://",
        ),
        (
            "key-file = \"/k\"\ndatabase = \"mysql://a@b/c\"",
            "state.database: must be sqlite:///PATH, postgres://",
        ),
        (
            "key-file = \"/k\"\ndatabase = \"postgres://a@b/c\"\npassword-file = \"/no/such\"",
            "state.password-file: /no/such: ",
        ),
        (
            "key-file = \"/k\"\ndatabase = \"postgres://a@b/c\"\nca-file = \"/dev/null\"",
            "state.ca-file: /dev/null: ",
        ),
        (
            "key-file = \"/k\"\nmax-records = 0",
            "state.max-records: must be at least 1",
        ),
    ] {
        let error = error(&format!("[state]\n{table}"));
        assert!(error.contains(says) && !error.contains("canary"), "{table}: {error}");
    }
}
