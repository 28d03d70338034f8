// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cray-pmi-bootstrap.so`: hands a job's ports and secret to the unmodified plugin `cray_pals.so` of flux-coral2.
//!
//! When `cray_pals.so` is loaded, it takes them from the shell option `cray-pals` if set, and otherwise reads them from
//! the job's eventlog, which no longer contains the secret. This plugin sets the option, so it must be loaded first.

use std::{ffi::CString, fmt::Write};

use ffi::{Plugin, Shell, ShellLogLevel};
use seal::{ExposeSecret, Variables};
use serde_json::{Map, Value};
use shell::{Reader, Settings, conf, late, look_up, not_loaded};
use zeroize::Zeroizing;

static READER: Reader = Reader {
    name: c"cray-pmi-bootstrap",
    key: seal::key::CRAY_PMI_BOOTSTRAP,
    what: "secret for Cray PMI",
};

/// The member of the option that holds ports and secret, or "off".
const MEMBER: &str = "pmi-bootstrap";

pub(crate) fn init(plugin: Plugin<'static>) -> i32 {
    shell::init(plugin, READER.name, load)
}

fn load(plugin: Plugin<'static>, shell: &Shell<'_>) -> Result<(), String> {
    let job = shell.job().map_err(not_loaded)?;
    if job.size < 2 {
        return Ok(());
    }
    let Some(use_) = Use::of(READER.option(shell, c"pmi")) else {
        return Ok(());
    };
    let Some(option) = members(READER.option(shell, c"cray-pals")) else {
        return Ok(());
    };
    let settings = Settings::read(conf(plugin)?, job.instance_owner)?;
    let without = "the MUNGE settings are unknown on this node, so the default socket of munged is used";
    settings.warn(READER.name, shell, without);
    if !settings.applies {
        return Ok(());
    }
    let lookup = look_up(shell, job.jobid, READER.key).map_err(not_loaded)?;
    let opened = match READER.open(shell, &settings, &lookup) {
        Ok(Some(opened)) => opened,
        Ok(None) => {
            let line = "there is no sealed record: cray_pals.so looks up ports and secret itself";
            shell.log(READER.name, ShellLogLevel::Debug, line);
            return Ok(());
        }
        Err(why) => shell.fatal(READER.name, &why),
    };
    if use_ == Use::Certain && cray_pals_is_loaded() {
        let why = "ports and secret for Cray PMI come too late, because cray_pals.so was loaded before this plugin: \
                   ask the operators to load cray-pmi-bootstrap.so first, in the initrc of the shell";
        shell.fatal(READER.name, why);
    }
    let text = match text(&option, &opened.variables) {
        Ok(text) => text,
        Err(why) => shell.fatal(READER.name, &READER.refused(&why)),
    };
    shell
        .set_option(c"cray-pals", &text)
        .map_err(|e| format!("the shell option cray-pals could not be set: {e}"))?;
    let line = format!("set cray-pals.{MEMBER}{}", late(opened.staleness));
    shell.log(READER.name, ShellLogLevel::Debug, &line);
    Ok(())
}

/// The use of `cray_pals.so` by the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Certain,
    /// A later initrc may request it.
    Possible,
}

impl Use {
    /// Determines the use from the option `pmi`, a list of names.
    fn of(pmi: Option<Value>) -> Option<Self> {
        match pmi {
            None => Some(Use::Possible),
            Some(Value::String(list)) => list.split(',').any(|name| name == "cray-pals").then_some(Use::Certain),
            // cray_pals.so reports the error.
            Some(_) => None,
        }
    }
}

/// Returns the members of the option `cray-pals`, to which ports and secret are added. Returns None if the user set
/// them, or if the option is malformed, which `cray_pals.so` reports.
fn members(option: Option<Value>) -> Option<Map<String, Value>> {
    match option {
        None => Some(Map::new()),
        Some(Value::Object(members)) if !members.contains_key(MEMBER) => Some(members),
        Some(_) => None,
    }
}

/// Returns the option with ports and secret, `[port1, port2, secret]`, as signed 64-bit integers. JSON in Flux supports
/// no others. `cray_pals.so` converts them back to unsigned.
fn text(members: &Map<String, Value>, variables: &Variables) -> Result<Zeroizing<CString>, String> {
    let value = |wanted: &str| {
        let found = variables.iter().find(|(name, _)| *name == wanted);
        found
            .map(|(_, value)| value.expose_secret())
            .ok_or_else(|| format!("{wanted} is not in the sealed record"))
    };
    let (port, secret) = ("PMI_CONTROL_PORT", "PMI_SHARED_SECRET");
    // Errors quote no values.
    let ports = value(port)?.split_once(',');
    let ports = ports.and_then(|(first, second)| Some((first.parse::<u16>().ok()?, second.parse::<u16>().ok()?)));
    let (first, second) = ports.ok_or_else(|| format!("{port} in the sealed record is not two ports"))?;
    let number: Zeroizing<u64> = Zeroizing::new(
        value(secret)?
            .parse()
            .map_err(|_| format!("{secret} in the sealed record is not a number of 64 bits"))?,
    );
    let mut kept = Value::Object(members.clone()).to_string();
    // Removes the closing bracket.
    kept.pop();
    // The capacity holds the whole text, so that it is never moved, which would leave a copy behind.
    let mut text = Zeroizing::new(String::with_capacity(kept.len() + 80));
    let comma = if members.is_empty() { "" } else { "," };
    let signed = Zeroizing::new(number.cast_signed());
    write!(text, "{kept}{comma}\"{MEMBER}\":[{first},{second},{}]}}", *signed).map_err(|e| e.to_string())?;
    let text = CString::new(text.as_bytes()).map_err(|_| "the option cray-pals contains a NUL".to_owned())?;
    Ok(Zeroizing::new(text))
}

/// Returns whether this process has already loaded `cray_pals.so`. The initrc may load two plugins with one glob, in an
/// order that depends on the collation of the locale.
fn cray_pals_is_loaded() -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines().any(|line| line.ends_with("/cray_pals.so"))
}

#[cfg(test)]
mod tests {
    use seal::Secret;
    use serde_json::json;

    use super::*;

    fn variables(port: &str, secret: &str) -> Variables {
        let mut variables = Variables::new();
        variables.insert("PMI_CONTROL_PORT", Secret::from(port)).unwrap();
        variables.insert("PMI_SHARED_SECRET", Secret::from(secret)).unwrap();
        variables
    }

    #[test]
    fn ports_and_secret_are_added_to_the_option() {
        for (option, secret, expected) in [
            (json!({}), "7", json!({"pmi-bootstrap": [11_999, 11_998, 7]})),
            (
                json!({"no-edit-env": 1, "x": "\"}"}),
                "18446744073709551615",
                json!({"no-edit-env": 1, "x": "\"}", "pmi-bootstrap": [11_999, 11_998, -1]}),
            ),
            (
                json!({}),
                "9223372036854775808",
                json!({"pmi-bootstrap": [11_999, 11_998, i64::MIN]}),
            ),
        ] {
            let members = members(Some(option)).unwrap();
            let text = text(&members, &variables("11999,11998", secret)).unwrap();
            let found: Value = serde_json::from_str(text.to_str().unwrap()).unwrap();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn values_of_the_user_are_not_changed() {
        assert!(members(None).is_some());
        for given in [
            json!({"pmi-bootstrap": "off"}),
            json!({"pmi-bootstrap": [1, 2, 3]}),
            json!({"pmi-bootstrap": null}),
            json!(1),
        ] {
            assert!(members(Some(given.clone())).is_none(), "{given}");
        }
    }

    #[test]
    fn no_record_is_looked_up_for_jobs_with_another_pmi() {
        assert_eq!(Use::of(None), Some(Use::Possible));
        for list in ["cray-pals", "simple,cray-pals", "cray-pals,simple"] {
            assert_eq!(Use::of(Some(json!(list))), Some(Use::Certain), "{list}");
        }
        for other in [json!("off"), json!("simple"), json!("cray-pals2"), json!(""), json!(1)] {
            assert_eq!(Use::of(Some(other.clone())), None, "{other}");
        }
    }

    #[test]
    fn a_malformed_record_is_rejected_and_not_quoted() {
        for (port, secret) in [
            ("11999", "1"),
            ("1,2,4711", "1"),
            ("1,4711000", "1"),
            ("1,2", "-4711"),
            ("1,2", "4711x"),
        ] {
            let error = text(&Map::new(), &variables(port, secret)).unwrap_err();
            assert!(!error.contains("4711"), "{error}");
        }
        assert!(text(&Map::new(), &Variables::new()).is_err());
    }
}
