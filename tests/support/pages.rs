// SPDX-License-Identifier: MIT OR Apache-2.0

//! README and the pages in `doc/`: their examples, and the options that their synopses and descriptions have.

#![allow(dead_code, reason = "each test that includes this file uses a part of it")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A page in Markdown.
pub struct Page {
    /// Its name below the root of the repository.
    pub name: String,
    text: String,
}

/// A block of code.
pub struct Block {
    /// Its page and line, for messages.
    pub place: String,
    /// The language, empty if it has none.
    pub language: String,
    pub text: String,
    continues: bool,
}

/// Options, and what each calls its value.
type Options = BTreeMap<String, Option<String>>;

/// The options of commands. A command is the words after the program.
type Commands = BTreeMap<Vec<String>, Options>;

/// The line before a block that has only what is to be added to the example before it. Readers do not see it.
const CONTINUES: &str = "<!-- continues the example before -->";

/// Options of every program, which pages need not repeat.
const GENERAL: [&str; 2] = ["help", "version"];

impl Page {
    /// Reads all pages.
    pub fn all() -> Vec<Self> {
        let mut names = names(&root().join("doc"), "doc");
        names.sort();
        names.push("README.md".to_owned());
        names.iter().map(|name| Self::read(name)).collect()
    }

    /// Reads one page, by its name below the root of the repository.
    pub fn read(name: &str) -> Self {
        let text = fs::read_to_string(root().join(name));
        Self {
            name: name.to_owned(),
            text: text.unwrap_or_else(|e| panic!("{name}: {e}")),
        }
    }

    /// Returns the blocks of code between lines of three backticks. Such a block may be indented, in a list.
    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut open: Option<(usize, Block)> = None;
        let mut last = "";
        for (number, line) in self.text.lines().enumerate() {
            let fence = line.trim_start().strip_prefix("```");
            open = match (open, fence) {
                (None, Some(language)) => {
                    let indent = line.len() - line.trim_start().len();
                    let block = Block {
                        place: format!("{}:{}", self.name, number + 1),
                        language: language.trim().to_owned(),
                        text: String::new(),
                        continues: last == CONTINUES,
                    };
                    Some((indent, block))
                }
                (Some((_, block)), Some(_)) => {
                    blocks.push(block);
                    None
                }
                (Some((indent, mut block)), None) => {
                    block.text.push_str(line.get(indent..).unwrap_or_default());
                    block.text.push('\n');
                    Some((indent, block))
                }
                (None, None) => None,
            };
            if !line.trim().is_empty() {
                last = line.trim();
            }
        }
        assert!(open.is_none(), "{}: a block of code has no end", self.name);
        blocks
    }

    /// Returns the examples of configuration, each of them complete.
    pub fn examples(&self) -> Vec<Block> {
        let mut examples: Vec<Block> = Vec::new();
        for mut block in self.blocks().into_iter().filter(|block| block.language == "toml") {
            if block.continues {
                let before = examples
                    .last()
                    .unwrap_or_else(|| panic!("{}: nothing is before it", block.place));
                block.text = format!("{}\n{}", before.text, block.text);
            }
            examples.push(block);
        }
        examples
    }

    /// Returns the keys that the page describes: terms of one or more names.
    pub fn keys(&self) -> BTreeSet<String> {
        let lines: Vec<&str> = self.text.lines().collect();
        let terms = lines.windows(2).filter(|pair| pair[1].starts_with(": "));
        let is_key = |name: &&str| {
            name.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        };
        let keys = terms.map(|pair| pair[0].split(", ").collect::<Vec<_>>());
        let keys = keys.filter(|names| names.iter().all(is_key));
        keys.flatten().map(str::to_owned).collect()
    }

    /// Returns the options in the synopsis, of each command.
    fn synopsis(&self, program: &str) -> Commands {
        let mut commands = Commands::new();
        for line in self.section("# SYNOPSIS").lines().filter(|line| line.contains("**")) {
            let found = commands_of_line(line, program);
            for command in found.unwrap_or_else(|| panic!("{}: not a line of {program}: {line}", self.name)) {
                commands.entry(command).or_default().extend(options(line));
            }
        }
        commands
    }

    /// Returns the options that the page describes for a command: the terms of its section.
    fn described(&self, command: &[String]) -> Options {
        let section = match command.first() {
            None => self.section("# OPTIONS"),
            Some(word) => {
                let names = |heading: &str| heading.split(", ").any(|name| name == word);
                let heading = self
                    .text
                    .lines()
                    .find(|line| line.strip_prefix("## ").is_some_and(names));
                heading.map_or("", |heading| self.section(heading))
            }
        };
        let lines: Vec<&str> = section.lines().collect();
        let terms = lines.windows(2).filter(|pair| pair[1].starts_with(": "));
        terms.flat_map(|pair| options(pair[0])).collect()
    }

    /// Returns the text after a heading, up to the next one of the same level or a higher one.
    fn section(&self, heading: &str) -> &str {
        let level = heading.len() - heading.trim_start_matches('#').len();
        let start = format!("\n{heading}\n");
        let Some(begin) = self.text.find(&start).map(|at| at + start.len()) else {
            return "";
        };
        let rest = &self.text[begin..];
        let ends = (1..=level).filter_map(|level| rest.find(&format!("\n{} ", "#".repeat(level))));
        &rest[..ends.min().map_or(rest.len(), |end| end + 1)]
    }

    /// Compares the page with what a program prints with `--help`: each command is in the synopsis, and each option is
    /// there and in the section of its command. Returns the differences.
    pub fn differences(&self, program: &Path, name: &str) -> Vec<String> {
        let help = help(program, &[]);
        assert!(!help.is_empty(), "{name} has no command");
        let synopsis = self.synopsis(name);
        let mut differences = Vec::new();
        for command in synopsis.keys().filter(|command| !help.contains_key(*command)) {
            differences.push(format!("the synopsis has `{}`, the help has not", command.join(" ")));
        }
        let mut sections: BTreeMap<Option<String>, (Options, Options)> = BTreeMap::new();
        for (command, options) in &help {
            let words = command.join(" ");
            match synopsis.get(command) {
                None => differences.push(format!("`{words}` is not in the synopsis")),
                Some(others) => differences.extend(differ(&format!("`{words}` in the synopsis"), options, others)),
            }
            // The commands of one section have their options together.
            let section = sections.entry(command.first().cloned()).or_default();
            section.0.extend(options.clone());
            section.1.extend(self.described(command));
        }
        for (section, (options, described)) in &sections {
            let section = section.as_deref().unwrap_or("OPTIONS");
            differences.extend(differ(&format!("the section {section}"), options, described));
        }
        let place = |difference: &String| format!("{}: {difference}", self.name);
        differences.iter().map(place).collect()
    }
}

impl Block {
    /// Returns whether it is of the configuration of Flux or a Slurm cluster, and not of the token service.
    pub fn is_of_scheduler(&self) -> bool {
        let tables = ["[workflow-token", "[[workflow-token", "[job-manager"];
        let mut lines = self.text.lines();
        lines.any(|line| tables.iter().any(|table| line.starts_with(table)))
    }
}

/// Returns the names of the pages in a directory, and below it.
fn names(dir: &Path, name: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let names = entries.flat_map(|path| {
        let name = format!("{name}/{}", path.file_name().unwrap().to_str().unwrap());
        match path.is_dir() {
            true => names(&path, &name),
            false => vec![name],
        }
    });
    names.filter(|name| name.ends_with(".md")).collect()
}

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let mut roots = root.filter(|dir| dir.join("doc").is_dir() && dir.join("README.md").exists());
    roots.next().expect("the repository has documentation").to_owned()
}

/// Returns the differences between the options of the help and of a page.
fn differ(place: &str, help: &Options, page: &Options) -> Vec<String> {
    let names: BTreeSet<&String> = help.keys().chain(page.keys()).collect();
    let difference = |name: &&String| match (help.get(*name), page.get(*name)) {
        (Some(_), None) => Some(format!("{place} lacks --{name}")),
        (None, _) => Some(format!("{place} has --{name}, the help has not")),
        (Some(a), Some(b)) if a != b => Some(format!("{place} has --{name} {b:?}, the help has {a:?}")),
        (Some(_), Some(_)) => None,
    };
    names.iter().filter_map(difference).collect()
}

/// Text between two pairs of asterisks.
struct Bold<'a> {
    text: &'a str,
    /// The rest of the line.
    after: &'a str,
}

fn bold(line: &str) -> Vec<Bold<'_>> {
    let mut spans = Vec::new();
    let mut rest = line;
    while let Some((text, after)) = rest.split_once("**").and_then(|(_, span)| span.split_once("**")) {
        // pandoc makes a dash of two hyphens that are not escaped.
        spans.push(Bold {
            text: text.strip_prefix('\\').unwrap_or(text),
            after,
        });
        rest = after;
    }
    spans
}

/// Returns the commands in a line of a synopsis: words in bold, as in `**PROGRAM login**|**logout**`.
fn commands_of_line(line: &str, program: &str) -> Option<Vec<Vec<String>>> {
    let mut words = bold(line).into_iter().filter(|span| !span.text.starts_with('-'));
    let first = words.next()?;
    let command = first.text.strip_prefix(program)?.split_whitespace();
    let mut commands = vec![command.map(str::to_owned).collect::<Vec<_>>()];
    let mut before = first.after;
    for span in words {
        if before.starts_with("|**") {
            let mut other = commands.last()?.clone();
            other.pop();
            other.push(span.text.to_owned());
            commands.push(other);
        } else {
            commands
                .iter_mut()
                .for_each(|command| command.push(span.text.to_owned()));
        }
        before = span.after;
    }
    Some(commands)
}

/// Returns the options in a line of a page: `**\--NAME**`, or `**\--NAME** *VALUE*`.
fn options(line: &str) -> Options {
    let spans = bold(line).into_iter();
    let options = spans.filter_map(|span| Some((span.text.strip_prefix("--")?.to_owned(), value(span.after))));
    options.collect()
}

/// Returns the name of a value, such as `*FILE*|*DIR*`, without asterisks.
fn value(after: &str) -> Option<String> {
    let mut rest = after.strip_prefix(' ')?;
    let mut names = Vec::new();
    while let Some(text) = rest.strip_prefix('*').filter(|text| !text.starts_with('*')) {
        let (name, after) = text.split_once('*')?;
        names.push(name);
        rest = after.strip_prefix('|').unwrap_or_default();
    }
    (!names.is_empty()).then(|| names.join("|"))
}

/// Returns the commands that a program has below one, by their help, with this one if it can be run by itself.
fn help(program: &Path, command: &[String]) -> Commands {
    let run = Command::new(program)
        .args(command)
        .arg("--help")
        .stdin(Stdio::null())
        .output();
    let run = run.unwrap();
    assert!(run.status.success(), "{program:?} {command:?} --help: {run:?}");
    let text = String::from_utf8(run.stdout).unwrap();
    let mut commands = Commands::new();
    let mut has_commands = false;
    let list = text.split_once("\nCommands:\n").map_or("", |(_, list)| list);
    // What follows a command is indented further, and an empty line ends the list.
    for line in list.lines().take_while(|line| !line.is_empty()) {
        let word = line.strip_prefix("  ").and_then(|line| line.split(' ').next());
        if let Some(word) = word.filter(|word| !word.is_empty() && *word != "help") {
            has_commands = true;
            let below: Vec<String> = command.iter().cloned().chain([word.to_owned()]).collect();
            commands.extend(help(program, &below));
        }
    }
    if !has_commands || text.contains("[COMMAND]") {
        commands.insert(command.to_vec(), options_of_help(&text));
    }
    commands
}

/// Returns the options in a help, each of which is on a line of its own, as in `  -c, --config <FILE|DIR>`.
fn options_of_help(text: &str) -> Options {
    let mut options = Options::new();
    for line in text.lines() {
        let option = line.trim_start();
        // Descriptions are indented further.
        if line.len() - option.len() > 6 || !option.starts_with('-') {
            continue;
        }
        let Some((_, option)) = option.split_once("--") else {
            continue;
        };
        let end = option.find(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        let (name, rest) = option.split_at(end.unwrap_or(option.len()));
        let value = rest.strip_prefix(" <").and_then(|rest| rest.split_once('>'));
        if !GENERAL.contains(&name) {
            options.insert(name.to_owned(), value.map(|(value, _)| value.to_owned()));
        }
    }
    options
}

/// Returns the keys that a parser expected in place of an unknown one, by its message.
pub fn expected(message: &str) -> BTreeSet<String> {
    let (_, list) = message.split_once("expected ").unwrap_or_else(|| panic!("{message}"));
    list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}
