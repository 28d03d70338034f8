//! What a job's eventlog says of its delivery: for a job manager that starts again.

use serde_json::Value;

/// How far the delivery of a job had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Past {
    /// There was none.
    None,
    /// The prolog is outstanding.
    Outstanding,
    /// The prolog has finished, and this was its status.
    Finished(i64),
}

/// Reads an eventlog, RFC 18: one JSON object for each line, with the context of prologs as RFC 21 has it.
pub(crate) fn past(eventlog: &str, prolog: &str) -> Past {
    let mut past = Past::None;
    for line in eventlog.lines() {
        let Ok(event) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let context = &event["context"];
        if context["description"] != prolog {
            continue;
        }
        match event["name"].as_str() {
            Some("prolog-start") => past = Past::Outstanding,
            Some("prolog-finish") => past = Past::Finished(context["status"].as_i64().unwrap_or(1)),
            _ => {}
        }
    }
    past
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str = r#"{"timestamp":1.0,"name":"prolog-start","context":{"description":"workflow-token"}}"#;
    const OTHER: &str = r#"{"timestamp":1.0,"name":"prolog-finish","context":{"description":"perilog","status":0}}"#;
    const FINISH: &str =
        r#"{"timestamp":2.0,"name":"prolog-finish","context":{"description":"workflow-token","status":0}}"#;

    #[test]
    fn only_the_prolog_of_this_plugin_counts() {
        let log = |lines: &[&str]| past(&lines.join("\n"), "workflow-token");
        assert_eq!(log(&[OTHER]), Past::None);
        assert_eq!(log(&[START, OTHER]), Past::Outstanding);
        assert_eq!(log(&[START, FINISH, OTHER]), Past::Finished(0));
        assert_eq!(log(&["not json", START]), Past::Outstanding);
    }
}
