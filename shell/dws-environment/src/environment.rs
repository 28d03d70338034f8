// SPDX-License-Identifier: MIT OR Apache-2.0

//! `dws_environment.so`: sets the variables of Data Workflow Services in the environment of a rabbit job's tasks. It
//! replaces the plugin of that name of flux-coral2, which reads them from the job's eventlog.
//!
//! The eventlogs of jobs that were prepared before `dws-jobtap.so` was replaced still contain the variables. The
//! plugin reads them from there unless this is disabled.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use ffi::{Args, Future, Plugin, PluginError, Shell, ShellLogLevel};
use seal::Secret;
use serde::{Deserialize, Deserializer};
use shell::{LOOKUP_TIMEOUT, Reader, Settings, answer, conf, look_up, not_loaded};
use zeroize::Zeroizing;

static READER: Reader = Reader {
    name: c"dws_environment",
    key: seal::key::DWS_ENVIRONMENT,
    what: "rabbit environment",
};

/// The event that contains the variables, or only their names if they are sealed.
const EVENT: &str = "dws_environment";

/// The pause before an incomplete eventlog is looked up again.
const PAUSE: Duration = Duration::from_millis(100);

struct Pending {
    settings: Settings,
    /// Set if the plugin reads the eventlog of a rabbit job without a record.
    legacy: bool,
    jobid: u64,
    lookup: RefCell<Option<Future>>,
}

impl ffi::State for Pending {}

pub(crate) fn init(plugin: Plugin<'static>) -> i32 {
    shell::init(plugin, READER.name, load)
}

fn load(plugin: Plugin<'static>, shell: &Shell<'_>) -> Result<(), String> {
    let job = shell.job().map_err(not_loaded)?;
    let mut conf = conf(plugin)?;
    let legacy = legacy(&mut conf)?;
    let settings = Settings::read(conf, job.instance_owner)?;
    let without = "the MUNGE settings are unknown on this node, so the default socket of munged is used";
    settings.warn(READER.name, shell, without);
    if !settings.applies {
        return Ok(());
    }
    let lookup = look_up(shell, job.jobid, READER.key).map_err(not_loaded)?;
    let pending = Pending {
        settings,
        legacy,
        jobid: job.jobid,
        lookup: RefCell::new(Some(lookup)),
    };
    let pending = plugin.keep(pending).map_err(not_loaded)?;
    plugin.handle(c"shell.init", &pending, shell_init).map_err(not_loaded)
}

/// Removes the key `legacy` from `conf` and returns its value.
fn legacy(conf: &mut serde_json::Value) -> Result<bool, String> {
    match conf.as_object_mut().and_then(|keys| keys.remove("legacy")) {
        None => Ok(true),
        Some(serde_json::Value::Bool(legacy)) => Ok(legacy),
        Some(_) => Err("conf in the initrc: legacy must be true or false".to_owned()),
    }
}

fn shell_init(pending: &Pending, plugin: Plugin<'_>, _: &Args<'_>) -> Result<(), PluginError> {
    let Some(shell) = plugin.shell() else { return Ok(()) };
    let Some(lookup) = pending.lookup.take() else {
        return Ok(());
    };
    match export(&shell, pending, &lookup) {
        Ok(()) => Ok(()),
        Err(why) => shell.fatal(READER.name, &why),
    }
}

/// Exports the variables of the job, or returns the reason why the job must not start.
fn export(shell: &Shell<'_>, pending: &Pending, lookup: &Future) -> Result<(), String> {
    if let Some(opened) = READER.open(shell, &pending.settings, lookup)? {
        return READER.export(shell, &opened);
    }
    // The jobspec is the one that the user signed. A job that received its directives later still has a record.
    if !shell.has_attribute(&["system".to_owned(), "dw".to_owned()]) {
        let line = "there is no sealed record: this is not a rabbit job";
        shell.log(READER.name, ShellLogLevel::Debug, line);
        return Ok(());
    }
    let no_record = "this job has #DW directives, but there is no sealed record with the variables of its rabbits";
    if !pending.legacy {
        return Err(format!(
            "{no_record}: the job manager has not loaded dws-jobtap.so, or has loaded a version that does not seal \
             them: tell the operators"
        ));
    }
    match event(shell, pending.jobid)? {
        Recorded::Variables(variables) => {
            READER.set(shell, variables.iter().map(|(name, value)| (name.as_str(), value)))?;
            let names: Vec<_> = variables.iter().map(|(name, _)| name.as_str()).collect();
            let line = format!(
                "exported {} from the job's eventlog, which contains them in clear text: the dws-jobtap.so that \
                 prepared this job does not seal them: load the one that was installed with this plugin into the job \
                 manager",
                names.join(", ")
            );
            shell.log(READER.name, ShellLogLevel::Warn, &line);
            Ok(())
        }
        Recorded::Sealed => Err(format!(
            "{no_record}, though they were sealed: it was removed or lost: submit the job again, and tell the \
             operators if it recurs"
        )),
        Recorded::Nothing => Err(format!(
            "{no_record}, and no event {EVENT} in its eventlog: the job manager has not loaded dws-jobtap.so: tell the \
             operators"
        )),
    }
}

/// The variables as recorded in an eventlog.
enum Recorded {
    Variables(Vec<(String, Secret)>),
    /// The variables are in a sealed record.
    Sealed,
    Nothing,
}

/// Reads the job's eventlog. The job manager writes it with a delay, but once it contains the start event, it also
/// contains every earlier event (RFC 21).
fn event(shell: &Shell<'_>, jobid: u64) -> Result<Recorded, String> {
    let failed = |e: &dyn std::fmt::Display| format!("the eventlog of the job could not be looked up: {e}");
    let begun = Instant::now();
    loop {
        let lookup = look_up(shell, jobid, "eventlog").map_err(|e| failed(&e))?;
        let text = answer(&lookup)
            .map_err(|e| failed(&e))?
            .ok_or_else(|| failed(&"there is none"))?;
        let eventlog = eventlog_of(&text).ok_or_else(|| failed(&"the response contains none"))?;
        let (recorded, started) = read(&eventlog)?;
        if started || !matches!(recorded, Recorded::Nothing) || begun.elapsed().as_secs_f64() > LOOKUP_TIMEOUT {
            return Ok(recorded);
        }
        thread::sleep(PAUSE);
    }
}

fn eventlog_of(answer: &str) -> Option<Zeroizing<String>> {
    #[derive(Deserialize)]
    struct EventlogReply {
        eventlog: String,
    }
    let answer = serde_json::from_str::<EventlogReply>(answer).ok()?;
    Some(Zeroizing::new(answer.eventlog))
}

/// Returns the variables according to the last event, and whether the job has started.
fn read(eventlog: &str) -> Result<(Recorded, bool), String> {
    #[derive(Deserialize)]
    struct Name {
        name: String,
    }
    #[derive(Deserialize)]
    struct Event {
        #[serde(default)]
        context: Context,
    }
    #[derive(Deserialize, Default)]
    struct Context {
        #[serde(default)]
        variables: Option<BTreeMap<String, Value>>,
    }
    let (mut last, mut started) = (None, false);
    for line in eventlog.lines() {
        // Parses only the names of unrelated events.
        match serde_json::from_str::<Name>(line) {
            Ok(Name { name }) if name == EVENT => last = Some(line),
            Ok(Name { name }) => started |= name == "start",
            Err(_) => {}
        }
    }
    let Some(line) = last else {
        return Ok((Recorded::Nothing, started));
    };
    let malformed = |why: &str| {
        format!(
            "the event {EVENT} of this job cannot be used: {why}: submit it again, and tell the operators if it recurs"
        )
    };
    // serde_json's own message would quote the input.
    let event: Event =
        serde_json::from_str(line).map_err(|_| malformed("its variables are not an object of strings"))?;
    let Some(variables) = event.context.variables else {
        return Ok((Recorded::Sealed, started));
    };
    let mut recorded = Vec::new();
    for (name, Value(value)) in variables {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(malformed(
                "an environment cannot carry the name of one of its variables",
            ));
        }
        recorded.push((name, value));
    }
    Ok((Recorded::Variables(recorded), started))
}

/// A secret value during deserialization.
struct Value(Secret);

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Value(Secret::from(text)))
    }
}

#[cfg(test)]
mod tests {
    use seal::ExposeSecret;
    use serde_json::json;

    use super::*;

    #[test]
    fn eventlogs_are_read_unless_this_is_disabled() {
        assert_eq!(legacy(&mut json!(null)), Ok(true));
        assert_eq!(legacy(&mut json!({})), Ok(true));
        let mut conf = json!({"legacy": false, "config": "/x"});
        assert_eq!(legacy(&mut conf), Ok(false));
        assert_eq!(conf, json!({"config": "/x"}));
        assert!(legacy(&mut json!({"legacy": "false"})).unwrap_err().contains("legacy"));
    }

    fn line(name: &str, context: &str) -> String {
        format!("{{\"timestamp\":1.5,\"name\":\"{name}\",\"context\":{context}}}\n")
    }

    fn variables(eventlog: &str) -> Vec<(String, String)> {
        match read(eventlog).unwrap().0 {
            Recorded::Variables(variables) => variables
                .into_iter()
                .map(|(name, value)| (name, value.expose_secret().to_owned()))
                .collect(),
            _ => panic!("no variables: {eventlog}"),
        }
    }

    #[test]
    fn the_last_event_counts() {
        let log = [
            line(EVENT, r#"{"variables":{"A":"1"}}"#),
            "no event\n".to_owned(),
            line(
                EVENT,
                r#"{"variables":{"B-1":"2 \"x\"","C":""},"rabbits":{"r":1},"copy_offload":null}"#,
            ),
            line("start", "null"),
        ]
        .concat();
        let expected = [("B-1", "2 \"x\""), ("C", "")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(variables(&log), expected);
        assert!(read(&log).unwrap().1);
    }

    #[test]
    fn an_event_without_variables_belongs_to_a_record() {
        for context in ["{}", r#"{"names":["A"]}"#, r#"{"variables":null}"#] {
            assert!(
                matches!(read(&line(EVENT, context)), Ok((Recorded::Sealed, false))),
                "{context}"
            );
        }
        assert!(matches!(read(""), Ok((Recorded::Nothing, false))));
        let others = [line("dws_environment2", "{}"), line("start", "{}")].concat();
        assert!(matches!(read(&others), Ok((Recorded::Nothing, true))));
    }

    #[test]
    fn variables_that_cannot_be_exported_are_rejected_and_not_quoted() {
        for context in [
            r#"{"variables":{"A":4711}}"#,
            r#"{"variables":"4711"}"#,
            r#"{"variables":["4711"]}"#,
            r#"{"variables":{"A=4711":"x"}}"#,
            r#"{"variables":{"":"4711"}}"#,
            "[4711]",
        ] {
            let Err(error) = read(&line(EVENT, context)) else {
                panic!("{context} was accepted")
            };
            assert!(!error.contains("4711"), "{error}");
        }
    }
}
