// SPDX-License-Identifier: MIT OR Apache-2.0

//! Runs the fuzz targets over their committed corpus, with any toolchain, so that known findings do
//! not recur.

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use std::fs;
use std::path::Path;

/// Runs a target over its corpus, and over each file truncated and with one byte changed.
fn replay(name: &str, target: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut run = 0;
    for entry in fs::read_dir(&directory).unwrap() {
        let data = fs::read(entry.unwrap().path()).unwrap();
        target(&data);
        target(&data[..data.len() / 2]);
        if let Some(last) = data.len().checked_sub(2) {
            let mut altered = data;
            altered[last] ^= 1;
            target(&altered);
        }
        run += 1;
    }
    assert!(run > 2, "{} has no corpus", directory.display());
}

#[test]
fn token() {
    replay("token", fuzz::token);
}

#[test]
fn status_list() {
    replay("status_list", fuzz::status_list);
}

#[test]
fn key() {
    replay("key", fuzz::key);
}

#[test]
fn record() {
    replay("record", fuzz::record);
}

#[test]
fn config() {
    replay("config", fuzz::config);
}

#[test]
fn request() {
    replay("request", fuzz::request);
}

#[test]
fn revocation() {
    replay("revocation", fuzz::revocation);
}

#[test]
fn http() {
    replay("http", fuzz::http);
}

#[test]
fn browser() {
    replay("browser", fuzz::browser);
}

#[test]
fn eventlog() {
    replay("eventlog", fuzz::eventlog);
}

#[test]
fn protocol() {
    replay("protocol", fuzz::protocol);
}
