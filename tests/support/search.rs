// SPDX-License-Identifier: MIT OR Apache-2.0

//! Searches for secrets in places where they must not be.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::json;

use super::{plugins::Site, simulator::Instance};
use base64::{
    Engine,
    alphabet::STANDARD as ALPHABET,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};

/// The number of consecutive bytes that reveal a secret. Shorter sequences occur by chance.
const WINDOW: usize = 16;

/// Secrets in all forms in which they may appear: unchanged, in base64 at each alignment and in both of its alphabets,
/// and in hexadecimal.
pub struct Search {
    windows: HashSet<[u8; WINDOW]>,
}

impl Search {
    /// Searches for the secret parts of tokens, but not for their headers, which are all alike.
    pub fn tokens<'a>(tokens: impl IntoIterator<Item = &'a str>) -> Search {
        let mut search = Search {
            windows: HashSet::new(),
        };
        for token in tokens {
            let (header, rest) = token.split_once('.').expect("a JWT");
            assert!(header.starts_with("eyJ"));
            search.add(rest.as_bytes());
            for segment in rest.split('.') {
                let content = decode(segment.as_bytes());
                // Of the claims, use the random part.
                match serde_json::from_slice::<serde_json::Value>(&content) {
                    Ok(claims) => search.add(claims["jti"].as_str().expect("a token of these tests").as_bytes()),
                    Err(_) => search.add(&content),
                }
            }
        }
        search
    }

    /// Searches for secrets that are not tokens.
    pub fn secrets<S: AsRef<[u8]>>(secrets: impl IntoIterator<Item = S>) -> Search {
        let mut search = Search {
            windows: HashSet::new(),
        };
        for secret in secrets {
            assert!(secret.as_ref().len() >= 2 * WINDOW);
            search.add(secret.as_ref());
        }
        search
    }

    fn add(&mut self, secret: &[u8]) {
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut forms = vec![secret.to_vec(), hex.to_uppercase().into_bytes(), hex.into_bytes()];
        for shift in 0..3 {
            let coded = STANDARD.encode([&vec![0; shift], secret].concat());
            // The characters at both ends depend on the data next to the secret.
            let coded = &coded[4..coded.len() - 4];
            forms.push(coded.as_bytes().to_vec());
            forms.push(coded.replace('+', "-").replace('/', "_").into_bytes());
        }
        for form in forms {
            self.windows.extend(form.windows(WINDOW).map(window));
        }
    }

    /// Returns whether the data, or the base64 in it, contains a part of a secret.
    pub fn finds(&self, data: &[u8]) -> bool {
        let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/-_".contains(byte);
        self.is_in(data)
            || data
                .split(|byte| !is_base64(byte))
                .filter(|run| run.len() >= WINDOW)
                .any(|run| self.is_in(&decode(run)))
    }

    fn is_in(&self, data: &[u8]) -> bool {
        data.windows(WINDOW).any(|part| self.windows.contains(&window(part)))
    }

    /// Returns the files below a directory that contain a part of a secret.
    pub fn files(&self, dir: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)
            .expect("a directory")
            .map(|entry| entry.expect("its entry"))
        {
            let kind = entry.metadata().expect("its type");
            if kind.is_dir() {
                found.extend(self.files(&entry.path()));
            // An empty file, such as a lock, may be unreadable even for its owner.
            } else if kind.is_file() && kind.len() > 0 && self.finds(&fs::read(entry.path()).expect("its content")) {
                found.push(entry.path());
            }
        }
        found
    }

    /// Returns the processes whose arguments or environment contain a part of a secret, with the text found. Tasks of
    /// jobs have tokens in their environment.
    pub fn processes(&self) -> Vec<String> {
        let mut found = Vec::new();
        let processes = fs::read_dir("/proc").expect("the processes of this machine");
        for process in processes.map_while(Result::ok).map(|entry| entry.path()) {
            // Entries that are not processes lack these files, and so do processes that have ended meanwhile.
            let read = |name: &str| fs::read(process.join(name)).unwrap_or_default();
            let (arguments, environment) = (read("cmdline"), read("environ"));
            let is_task = environment.windows(15).any(|part| part == b"FLUX_TASK_RANK=");
            if self.finds(&arguments) || (!is_task && self.finds(&environment)) {
                found.push(String::from_utf8_lossy(&arguments).replace('\0', " "));
            }
        }
        found
    }
}

fn window(part: &[u8]) -> [u8; WINDOW] {
    part.try_into().expect("it is as long as that")
}

/// Decodes base64 of either alphabet, as far as possible.
fn decode(run: &[u8]) -> Vec<u8> {
    let lenient = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let usual = |byte: &u8| match byte {
        b'-' => b'+',
        b'_' => b'/',
        byte => *byte,
    };
    let mut text: Vec<u8> = run.iter().map(usual).collect();
    if text.len() % 4 == 1 {
        text.pop();
    }
    let decoded = GeneralPurpose::new(&ALPHABET, lenient).decode(text);
    decoded.expect("it is made of the characters of base64")
}

/// Returns everything that the instance reports, and keeps where it can be queried, each with a name.
pub fn told(instance: &mut Instance, jobs: &[String]) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for command in ["dmesg", "list", "kvs-list"] {
        all.push((command.to_owned(), instance.ok(command, json!({})).to_string()));
    }
    for plugin in instance.ok("list", json!({}))["plugins"].as_array().unwrap() {
        let query = instance.ok("query", json!({"name": plugin}));
        all.push((format!("query of {plugin}"), query.to_string()));
    }
    for key in instance.ok("kvs-list", json!({}))["keys"].as_array().unwrap() {
        // The record of a job that has ended may be removed between the two requests.
        let request = instance.send("kvs-get", json!({"key": key}));
        if let Some(value) = instance.response(request)["value"].as_str() {
            all.push((format!("key {key}"), value.to_owned()));
        }
    }
    for job in jobs {
        for command in ["eventlog", "state"] {
            all.push((
                format!("{command} of {job}"),
                instance.ok(command, json!({"jobid": job})).to_string(),
            ));
        }
        all.push((format!("standard error of {job}"), instance.stderr(job)));
    }
    all
}

/// Returns the places where secrets were found: in reports of the instance, in its files and munged's, and in
/// processes.
pub fn found(site: &Site, instance: &mut Instance, jobs: &[String], search: &Search) -> Vec<String> {
    let mut found = search.processes();
    let told = told(instance, jobs);
    found.extend(
        told.into_iter()
            .filter(|(_, text)| search.finds(text.as_bytes()))
            .map(|(name, _)| name),
    );
    for dir in [site.statedir(), site.munged.socket().parent().unwrap().to_owned()] {
        found.extend(search.files(&dir).into_iter().map(|path| path.display().to_string()));
    }
    found
}
