// SPDX-License-Identifier: MIT OR Apache-2.0

//! Attacks on the log: output that hides a token, or that costs more than it should to look at.

use std::{fs, io::Write, process::Command, process::Stdio};

use token::{MAX_LINES, MAX_SECRETS, REDACTED, redact, redact_lines};

/// Not base64 by its form, and nothing else that is hidden without being known.
const TOKEN: &str = "a1.Bc2-De3.Fg4_Hi5.Jk6-Lm7.No8_Pq9.Rs0-Tu1.Vw2_Xy3.Zz4-Ab5.Cd6";

fn shown(output: &str) -> String {
    redact_lines(output.as_bytes(), &[TOKEN]).join("\n")
}

/// That nothing is left of eight letters or digits in a row, each with `before` and `after`.
#[track_caller]
fn hides(output: &str, encode: impl Fn(char) -> String) {
    let shown = shown(output);
    let all: Vec<char> = TOKEN.chars().collect();
    for window in all.windows(12) {
        let text: String = window.iter().map(|c| encode(*c)).collect();
        assert!(!output.is_empty() && !shown.contains(text.trim()), "{output}\n{shown}");
    }
    assert!(shown.contains(REDACTED), "{shown}");
}

#[test]
fn a_token_that_is_spaced_or_escaped_is_hidden() {
    let plain = |c: char| c.to_string();
    hides(&format!("the token is {TOKEN}."), plain);
    hides(&TOKEN.to_uppercase(), |c| c.to_uppercase().to_string());
    hides(&TOKEN.to_lowercase(), |c| c.to_lowercase().to_string());
    let encodings: [fn(char) -> String; 12] = [
        |c| format!("{c} "),
        |c| format!("{c}\n"),
        |c| format!("{c}\0"),
        |c| format!("'{c}', "),
        |c| format!("\\u{:04x}", c as u32),
        |c| format!("\\u{{{:x}}}", c as u32),
        |c| format!("\\x{:02X}", c as u32),
        |c| format!("\\{:03o}", c as u32),
        |c| format!("%{:02x}", c as u32),
        |c| format!("={:02X}", c as u32),
        |c| format!("&#x{:x};", c as u32),
        |c| format!("&#{};", c as u32),
    ];
    for encode in encodings {
        hides(&TOKEN.chars().map(encode).collect::<String>(), encode);
    }
    // Only a part of it is.
    let escaped = TOKEN.replace('.', "%2E").replace('-', "\\u002d");
    assert!(!shown(&escaped).contains("Fg4"), "{}", shown(&escaped));
    for width in [3, 7, 10, 20] {
        let lines: Vec<&str> = TOKEN
            .as_bytes()
            .chunks(width)
            .map(|part| std::str::from_utf8(part).unwrap())
            .collect();
        for separator in ["\n", "\r\n", "\\n", "\n> ", "\" +\n  \""] {
            let folded = lines.join(separator);
            let shown = shown(&folded);
            assert!(!lines.iter().any(|line| shown.contains(line)), "{folded}\n{shown}");
        }
        let numbered: String = lines
            .iter()
            .enumerate()
            .map(|(i, line)| format!("{:6}\t{line}\n", i + 1))
            .collect();
        let shown = shown(&numbered);
        assert!(!lines.iter().any(|line| shown.contains(line)), "{numbered}\n{shown}");
    }
}

#[test]
fn a_dump_of_a_token_is_hidden() {
    let numbers = |separator: &str, radix: fn(u8) -> String| -> String {
        TOKEN.bytes().map(radix).collect::<Vec<_>>().join(separator)
    };
    let mut dumps = vec![
        numbers("", |b| format!("{b:02x}")),
        numbers(" ", |b| format!("{b:02X}")),
        numbers(":", |b| format!("{b:02x}")),
        numbers(", ", |b| format!("0x{b:02x}")),
        numbers(", ", |b| b.to_string()),
        numbers(" ", |b| format!("{b:08b}")),
        numbers(" ", |b| format!("{b:o}")),
    ];
    let rows = |row: fn(&[u8]) -> String| -> String {
        let rows = TOKEN.as_bytes().chunks(16).enumerate();
        rows.map(|(index, bytes)| format!("{:08x}{}\n", index * 16, row(bytes)))
            .collect()
    };
    dumps.push(rows(|bytes| {
        let hex: Vec<String> = bytes
            .chunks(2)
            .map(|two| two.iter().map(|b| format!("{b:02x}")).collect())
            .collect();
        format!(": {:39}  {}", hex.join(" "), String::from_utf8_lossy(bytes))
    }));
    dumps.push(rows(|bytes| {
        let hex: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
        format!("  {:48}  |{}|", hex.join(" "), String::from_utf8_lossy(bytes))
    }));
    for options in [
        &[][..],
        &["-c"],
        &["-a"],
        &["-b"],
        &["-An", "-c"],
        &["-x"],
        &["-tx1"],
        &["-tx1z"],
        &["-tx2"],
        &["-tx4"],
        &["-tx8"],
        &["-to1"],
        &["-to4"],
        &["-tu1"],
        &["-tu2"],
        &["-d"],
        &["-i"],
        &["-l"],
    ] {
        dumps.push(od(options));
    }
    for dump in dumps {
        let shown = shown(&dump);
        let visible = shown.replace(REDACTED, "");
        // What cannot be told from a part of fewer than eight characters, addresses, and the note that lines were cut.
        let lines = dump.lines().count();
        let of_dump = dump.split_whitespace().count() / lines;
        let rest = visible.split_whitespace().count();
        assert!(
            shown.contains(REDACTED) && rest <= of_dump.max(8) + 8,
            "{dump}\n{shown}"
        );
        assert!(
            !dump.lines().take(lines - 1).any(|line| visible.contains(line)),
            "{dump}\n{shown}"
        );
    }
}

/// What od(1) makes of the token.
fn od(options: &[&str]) -> String {
    let mut od = Command::new("od")
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    od.stdin.take().unwrap().write_all(TOKEN.as_bytes()).unwrap();
    let output = od.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_password_in_a_url_is_hidden() {
    for (text, shown) in [
        (
            "clone https://user:s3cret@example.org/x failed",
            "clone https://user:[redacted]@example.org/x failed",
        ),
        ("https://s3cret@example.org", "https://[redacted]@example.org"),
        (
            "<postgres://a:b:c@[::1]:5432/db?x=y@z>",
            "<postgres://a:[redacted]@[::1]:5432/db?x=y@z>",
        ),
        ("http://a:p@ss@host/", "http://a:[redacted]@host/"),
        ("https://example.org/@user", "https://example.org/@user"),
        ("https://user:@example.org", "https://user:@example.org"),
        ("mail a@example.org", "mail a@example.org"),
    ] {
        assert_eq!(redact(text), shown);
        assert_eq!(redact(shown), shown);
    }
}

#[test]
fn words_of_a_message_are_left() {
    for text in [
        "no such user: alice",
        "at 0x7f3a2b1c in frame 12 of 48, errno 13",
        "00000000 records in, 16 records out",
        "%20 and \\n and &amp; are escapes",
    ] {
        assert_eq!(shown(text), text);
    }
}

/// The most memory that this process has had, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Each of 26,000 lines is found at each of 8,192 places.
#[test]
fn many_equal_lines_are_found_in_bounded_memory() {
    let before = peak();
    let line = "aaaa";
    let lines = redact_lines("a".repeat(8192).as_bytes(), &vec![line; 26_000]);
    assert_eq!(lines, [REDACTED]);
    // The same with lines that differ, each a part of the next.
    let all = "a".repeat(MAX_SECRETS + 3);
    let nested: Vec<&str> = (4..all.len()).map(|len| &all[..len]).collect();
    assert_eq!(redact_lines("a".repeat(8192).as_bytes(), &nested), [REDACTED]);
    let grown = peak() - before;
    assert!(grown < 64 << 10, "it took {grown} KiB");
}

#[test]
fn more_secrets_and_output_than_can_be_looked_at_are_not_shown() {
    let secrets: Vec<String> = (0..=MAX_SECRETS).map(|n| format!("secret-{n}")).collect();
    let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
    let lines = redact_lines(b"the last is secret-1000", &secrets);
    assert!(
        lines.len() == 1 && lines[0].contains("23 bytes, not shown"),
        "{lines:?}"
    );
    let lines = redact_lines(b"the last is secret-1000", &secrets[1..]);
    assert_eq!(lines, ["the last is [redacted]"]);

    let long = format!("{}\n{TOKEN}", "no\n".repeat(40_000));
    let lines = redact_lines(long.as_bytes(), &[]);
    assert!(
        lines.len() == MAX_LINES + 2 && lines[MAX_LINES + 1].contains("more bytes"),
        "{lines:?}"
    );
}
