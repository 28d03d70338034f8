// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reads which plugins the initrc of the job shell loads (flux-shell-initrc(5)). The initrc is a program in Lua; this
//! module considers only calls of `plugin.load` with constant names, as in the initrc of Flux, in textual order.

use std::fs;
use std::path::{Path, PathBuf};

/// The objects that an initrc loads, and their order.
pub(super) struct Initrc {
    pub path: PathBuf,
    /// Each object in loading order: the number of its pattern and directory, and its name. Objects with the same number
    /// are loaded in an order that depends on the locale.
    loaded: Vec<(usize, String)>,
}

/// The loading order of two objects.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Order {
    Before,
    /// One pattern loads both from one directory.
    Together,
    After,
}

impl Initrc {
    /// Reads a file. Returns `None` if that fails.
    pub fn read(path: &Path, dirs: &[PathBuf]) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let mut loaded = Vec::new();
        let mut place = 0;
        for pattern in patterns(&text) {
            let has_directory = pattern.starts_with(['/', '~', '.']);
            // Directories are searched from the last to the first, so that the first one takes precedence.
            let directories: Vec<_> = if has_directory {
                vec![PathBuf::new()]
            } else {
                dirs.iter().rev().cloned().collect()
            };
            for directory in directories {
                place += 1;
                let pattern = directory.join(&pattern);
                let found = glob::glob(&pattern.to_string_lossy()).into_iter().flatten().flatten();
                let names = found.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
                loaded.extend(names.map(|name| (place, name)));
            }
        }
        let path = path.to_owned();
        Some(Self { path, loaded })
    }

    pub fn loads(&self, name: &str) -> bool {
        self.place(name).is_some()
    }

    /// Returns the loading order of two objects, or `None` if this file does not load both.
    pub fn order(&self, first: &str, second: &str) -> Option<Order> {
        let (first, second) = (self.place(first)?, self.place(second)?);
        Some(match first.cmp(&second) {
            std::cmp::Ordering::Less => Order::Before,
            std::cmp::Ordering::Equal => Order::Together,
            std::cmp::Ordering::Greater => Order::After,
        })
    }

    fn place(&self, name: &str) -> Option<usize> {
        let mut places = self.loaded.iter();
        places.find(|(_, loaded)| loaded == name).map(|(place, _)| *place)
    }
}

/// Returns the arguments of calls of `plugin.load`: a string, or the member `file` of a table.
fn patterns(text: &str) -> Vec<String> {
    let text = without_comments(text);
    let calls = text.split("plugin.load").skip(1);
    calls
        .filter_map(|call| {
            let argument = call.trim_start().trim_start_matches('(').trim_start();
            let Some(table) = argument.strip_prefix('{') else {
                return quoted(argument);
            };
            let file = table.match_indices("file").find_map(|(at, name)| {
                let value = table[at + name.len()..]
                    .trim_start()
                    .trim_start_matches("\"]")
                    .trim_start();
                quoted(value.strip_prefix('=')?.trim_start())
            });
            file.or_else(|| quoted(table.trim_start()))
        })
        .collect()
}

/// Returns the quoted string at the beginning of a text.
fn quoted(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
    text[1..].split_once(quote).map(|(inner, _)| inner.to_owned())
}

/// Removes comments. They begin with two hyphens outside a string, and extend to the end of the line or of a block.
fn without_comments(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let (mut rest, mut quote) = (text, None);
    while let Some(next) = rest.chars().next() {
        if quote.is_none() && rest.starts_with("--") {
            let end = if rest.starts_with("--[[") {
                rest.find("]]").map(|at| at + 2)
            } else {
                rest.find('\n')
            };
            rest = end.map_or("", |end| &rest[end..]);
            continue;
        }
        match quote {
            None if matches!(next, '"' | '\'') => quote = Some(next),
            Some(open) if open == next || next == '\n' => quote = None,
            _ => {}
        }
        kept.push(next);
        rest = &rest[next.len_utf8()..];
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_found_as_people_write_them_and_not_in_comments() {
        for (text, expected) in [
            ("plugin.load { file = \"*.so\", conf = {} }", &["*.so"][..]),
            (
                "plugin.load \"a.so\"\nplugin.load (\"b.so\")\nplugin.load('c.so')",
                &["a.so", "b.so", "c.so"],
            ),
            ("plugin.load ({ conf = { x = \"y\" },\n file='d.so' })", &["d.so"]),
            ("plugin.load { [\"file\"] = \"e.so\" }", &["e.so"]),
            ("plugin.load { \"f.so\" }", &["f.so"]),
            (
                "-- plugin.load \"no.so\"\n--[[ plugin.load \"no.so\"\n]] plugin.load \"g--h.so\"",
                &["g--h.so"],
            ),
            ("plugin.load (name)\nplugin.load {", &[]),
            ("--", &[]),
            ("plugin.load \"ä", &[]),
        ] {
            assert_eq!(patterns(text), expected, "{text}");
        }
    }
}
