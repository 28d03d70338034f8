// SPDX-License-Identifier: MIT OR Apache-2.0

//! The eventlog of a job: one JSON object in each line (RFC 18), with the events of RFC 21.
//!
//! It contains untrusted text: the note of an exception, a memo, the events of other plugins. Lines that are malformed
//! or too long are skipped. Contexts are kept only for requested events: those of other events may contain secrets.

use serde::Deserialize;
use serde_json::Value;

/// The longest line, in bytes. The relevant events are much shorter.
const LONGEST_LINE: usize = 64 << 10;

/// The relevant events of a job, in their order.
#[derive(Debug, Default, PartialEq)]
pub struct Eventlog {
    events: Vec<Event>,
}

#[derive(Debug, PartialEq)]
enum Event {
    Dependency {
        description: String,
        is_added: bool,
    },
    PerilogStart(Perilog, String),
    /// Contains the status.
    PerilogFinish(Perilog, String, i64),
    /// The job shells have started.
    Start,
    /// The job shells have finished.
    Finish,
    /// The job is inactive, since this time in seconds since 1970-01-01T00:00:00Z.
    Clean(Option<u64>),
    /// An event whose context was requested.
    Kept(String, Value),
    Other,
}

/// The kinds of holds: prologs and epilogs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Perilog {
    /// Holds a job before its shells start.
    Prolog,
    /// Holds a job before its resources are freed.
    Epilog,
}

/// The state of a prolog or epilog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Past {
    /// It did not start.
    None,
    /// It must be finished.
    Outstanding,
    /// It finished with this status.
    Finished(i64),
}

impl Eventlog {
    /// Parses an eventlog. `keep` names the events whose contexts [`Eventlog::contexts`] returns.
    pub fn parse(text: &str, keep: &[&str]) -> Self {
        let lines = text.lines().filter(|line| line.len() <= LONGEST_LINE);
        let events = lines.filter_map(|line| Event::parse(line, keep));
        Self {
            events: events.collect(),
        }
    }

    /// Returns whether the eventlog contains no event: the job was purged.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Returns whether the job shells have started.
    pub fn has_started(&self) -> bool {
        self.events.contains(&Event::Start)
    }

    /// Returns whether the job shells have finished.
    pub fn has_finished(&self) -> bool {
        self.events.contains(&Event::Finish)
    }

    /// Returns the time when the job became inactive, in seconds since 1970-01-01T00:00:00Z; none if it is active.
    pub fn ended_at(&self) -> Option<u64> {
        let mut events = self.events.iter().rev();
        events.find_map(|event| match event {
            Event::Clean(at) => *at,
            _ => None,
        })
    }

    /// Returns the state of the last prolog or epilog with this description.
    pub fn past(&self, which: Perilog, description: &str) -> Past {
        let last = self.events.iter().rev().find_map(|event| match event {
            Event::PerilogStart(of, what) if *of == which && what == description => Some(Past::Outstanding),
            Event::PerilogFinish(of, what, status) if *of == which && what == description => {
                Some(Past::Finished(*status))
            }
            _ => None,
        });
        last.unwrap_or(Past::None)
    }

    /// Returns the number of prologs or epilogs with this description that started, and of those that finished.
    pub fn counts(&self, which: Perilog, description: &str) -> (usize, usize) {
        let count = |f: &dyn Fn(&Event) -> bool| self.events.iter().filter(|event| f(event)).count();
        let started =
            |event: &Event| matches!(event, Event::PerilogStart(of, what) if *of == which && what == description);
        let finished =
            |event: &Event| matches!(event, Event::PerilogFinish(of, what, _) if *of == which && what == description);
        (count(&started), count(&finished))
    }

    /// Returns whether a dependency was added. Flux does not accept the same one twice.
    pub fn was_added(&self, dependency: &str) -> bool {
        self.has_dependency(dependency, true)
    }

    /// Returns whether a dependency was removed.
    pub fn was_removed(&self, dependency: &str) -> bool {
        self.has_dependency(dependency, false)
    }

    fn has_dependency(&self, dependency: &str, added: bool) -> bool {
        let mut events = self.events.iter();
        events.any(|event| {
            matches!(event, Event::Dependency { description, is_added } if description == dependency && *is_added == added)
        })
    }

    /// Returns the contexts of the events of a requested name.
    pub fn contexts(&self, name: &str) -> impl DoubleEndedIterator<Item = &Value> {
        self.events.iter().filter_map(move |event| match event {
            Event::Kept(kept, context) if kept == name => Some(context),
            _ => None,
        })
    }
}

impl Event {
    fn parse(line: &str, keep: &[&str]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Line {
            name: String,
            #[serde(default)]
            timestamp: Value,
            #[serde(default)]
            context: Value,
        }
        let Line {
            name,
            timestamp,
            mut context,
        } = serde_json::from_str(line).ok()?;
        if keep.contains(&name.as_str()) {
            return Some(Event::Kept(name, context));
        }
        let description = match context.get_mut("description").map(Value::take) {
            Some(Value::String(description)) => Some(description),
            _ => None,
        };
        // A missing status counts as a failure.
        let status = context["status"].as_i64().unwrap_or(1);
        Some(match (name.as_str(), description) {
            ("start", _) => Event::Start,
            ("finish", _) => Event::Finish,
            // `as` saturates numbers that are out of range.
            ("clean", _) => Event::Clean(timestamp.as_f64().map(|at| at as u64)),
            ("dependency-add", Some(description)) => Event::Dependency {
                description,
                is_added: true,
            },
            ("dependency-remove", Some(description)) => Event::Dependency {
                description,
                is_added: false,
            },
            ("prolog-start", Some(description)) => Event::PerilogStart(Perilog::Prolog, description),
            ("epilog-start", Some(description)) => Event::PerilogStart(Perilog::Epilog, description),
            ("prolog-finish", Some(description)) => Event::PerilogFinish(Perilog::Prolog, description, status),
            ("epilog-finish", Some(description)) => Event::PerilogFinish(Perilog::Epilog, description, status),
            _ => Event::Other,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(name: &str, context: Value) -> String {
        json!({"timestamp": 1.0, "name": name, "context": context}).to_string()
    }

    fn parse(lines: &[String]) -> Eventlog {
        Eventlog::parse(&lines.join("\n"), &["memo"])
    }

    #[test]
    fn perilogs_are_told_apart_by_description() {
        let of = |description: &str, status: i64| json!({"description": description, "status": status});
        let start = line("prolog-start", json!({"description": "mine"}));
        let finish = line("prolog-finish", of("mine", 3));
        let other = line("prolog-finish", of("other", 0));
        let epilog = line("epilog-start", json!({"description": "mine"}));
        for (lines, past, counts) in [
            (vec![&other], Past::None, (0, 0)),
            (vec![&start, &other, &epilog], Past::Outstanding, (1, 0)),
            (vec![&start, &finish, &other], Past::Finished(3), (1, 1)),
            (vec![&start, &finish, &start], Past::Outstanding, (2, 1)),
        ] {
            let eventlog = parse(&lines.into_iter().cloned().collect::<Vec<_>>());
            assert_eq!(eventlog.past(Perilog::Prolog, "mine"), past);
            assert_eq!(eventlog.counts(Perilog::Prolog, "mine"), counts);
        }
        assert_eq!(parse(&[epilog]).past(Perilog::Epilog, "mine"), Past::Outstanding);
    }

    #[test]
    fn dependencies_are_added_and_removed() {
        let [add, remove] = ["dependency-add", "dependency-remove"]
            .map(|name| move |dependency: &str| line(name, json!({"description": dependency})));
        let others = [add("other"), remove("other")];
        for (lines, added, removed) in [
            (vec![], false, false),
            (vec![add("mine")], true, false),
            (vec![add("mine"), remove("mine")], true, true),
            // A later one is ignored: Flux does not accept the same one twice.
            (vec![add("mine"), remove("mine"), add("mine")], true, true),
        ] {
            let eventlog = parse(&[lines, others.to_vec()].concat());
            assert_eq!(
                (eventlog.was_added("mine"), eventlog.was_removed("mine")),
                (added, removed)
            );
        }
    }

    #[test]
    fn only_contexts_that_were_asked_for_are_kept() {
        let eventlog = parse(&[
            line("memo", json!({"a": 1})),
            line("dws_environment", json!({"variables": {"TOKEN": "secret"}})),
            line("memo", json!({"b": 2})),
            line("start", json!(null)),
        ]);
        let memos: Vec<_> = eventlog.contexts("memo").collect();
        assert_eq!(memos, [&json!({"a": 1}), &json!({"b": 2})]);
        assert_eq!(eventlog.contexts("dws_environment").count(), 0);
        assert!(!format!("{eventlog:?}").contains("secret"));
        assert_eq!((eventlog.has_started(), eventlog.has_finished()), (true, false));
    }

    #[test]
    fn a_job_ends_with_its_last_event() {
        let clean = |at: Value| json!({"timestamp": at, "name": "clean"}).to_string();
        for (lines, ended_at) in [
            (vec![line("finish", json!({}))], None),
            (
                vec![line("finish", json!({})), clean(json!(1_700_000_000.9))],
                Some(1_700_000_000),
            ),
            (vec![clean(json!("soon"))], None),
            (vec![clean(json!(-1))], Some(0)),
            (vec![clean(json!(1e300))], Some(u64::MAX)),
        ] {
            assert_eq!(parse(&lines).ended_at(), ended_at, "{lines:?}");
        }
    }

    #[test]
    fn malformed_and_long_lines_are_skipped() {
        let long = line("finish", json!({"note": "x".repeat(LONGEST_LINE)}));
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let bad = [
            "",
            "no JSON",
            "[1]",
            r#"{"name":1}"#,
            "{\"name\":\"finish\"",
            &long,
            &deep,
        ];
        assert!(Eventlog::parse(&bad.join("\n"), &[]).is_empty());
        let eventlog = Eventlog::parse(&[bad.join("\n"), line("start", json!({}))].join("\n"), &[]);
        assert!(eventlog.has_started() && !eventlog.has_finished());
    }
}
