// SPDX-License-Identifier: MIT OR Apache-2.0

//! Writes to standard output, without buffers that keep copies, and to standard error. Neither gets terminal control
//! characters.

use std::env;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;

use serde_json::Value;
use token::is_plain;

/// Writes to standard output without the buffer of `std::io::stdout`, which is never zeroized.
///
/// # Errors
/// Errors of writing, including a pipe without a reader.
pub fn out(text: &str) -> io::Result<()> {
    File::from(io::stdout().as_fd().try_clone_to_owned()?).write_all(text.as_bytes())
}

/// Writes one line to standard error, escaped: texts of files, servers and arguments can contain anything.
pub fn err(text: impl Display) {
    // A failure cannot be reported anywhere.
    let _ = writeln!(io::stderr(), "{}: {}", name(), word(&text.to_string()));
}

/// Returns the name that this program was called by.
pub fn name() -> &'static str {
    let called = env::args_os().next();
    let called = called.as_deref().and_then(|path| Path::new(path).file_name());
    match called.is_some_and(|name| name == "workflow-token") {
        true => "workflow-token",
        false => "flux-workflow-token",
    }
}

/// Writes several lines to standard error, escaped, without a prefix.
pub fn err_lines(text: &str) {
    for line in text.lines() {
        let _ = writeln!(io::stderr(), "{}", word(line));
    }
}

/// Redacts secrets in a text that quotes an argument, since a user may have typed a secret instead of a name.
pub fn hidden(text: impl Display) -> String {
    token::redact(&text.to_string()).into_owned()
}

/// Formats JSON over several lines, and escapes all characters but ASCII and letters: texts of tokens and records could
/// contain characters that move the cursor or change the direction of writing.
pub fn json(value: &Value) -> String {
    escaped(&format!("{value:#}"))
}

/// Formats JSON on one line, escaped.
pub fn json_line(value: &Value) -> String {
    escaped(&value.to_string())
}

/// Escapes characters in JSON. Only strings contain characters to escape.
fn escaped(json: &str) -> String {
    let mut safe = String::new();
    for c in json.chars() {
        if c != '\n' && !is_plain(c) {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                safe.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            safe.push(c);
        }
    }
    safe
}

/// Escapes a text, for one line.
pub fn word(text: &str) -> String {
    token::plain(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_the_terminal() {
        let value = serde_json::json!({"sub": "a\u{1b}[2J\u{9b}2J\u{202e}é\u{e0001}\u{7f}\"\\"});
        let printed = json(&value);
        assert_eq!(
            printed,
            "{\n  \"sub\": \"a\\u001b[2J\\u009b2J\\u202eé\\udb40\\udc01\\u007f\\\"\\\\\"\n}"
        );
        assert_eq!(serde_json::from_str::<Value>(&printed).unwrap(), value);
        assert_eq!(
            json_line(&value),
            printed.replace("\n  ", "").replace('\n', "").replace(": ", ":")
        );
        assert_eq!(word("A\nB\u{202e}é"), "A\\u{a}B\\u{202e}é");
    }
}
