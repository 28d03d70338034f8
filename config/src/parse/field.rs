//! How keys are read: functions for `deserialize_with`, each for a key that is required and for one that is optional.
//! Each error says what to write.

use std::{fmt::Display, path::PathBuf, str::FromStr, time::Duration};

use nix::sys::signal::Signal;
use serde::{Deserialize, Deserializer, de::Error};
use serde_json::Value;

use crate::{
    AttributePath, KeyPath, MAX_NAME, Principal, Renewal, Template, check_issuer_url, check_label, check_proxy_url,
    check_url, parse_duration,
};

/// The part of the remaining lifetime after which a token is fetched again; none if it is not.
pub(crate) struct RenewAfter(pub Option<f64>);

/// The longest socket path, in bytes: unix(7) has room for 108 with the NUL.
const MAX_SOCKET_PATH: usize = 107;

/// The signals that tell tasks of a new token: those that programs are free to give a meaning, signal(7).
const SIGNALS: [Signal; 5] = [
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGURG,
    Signal::SIGWINCH,
];

/// Reads what a type makes of a text by itself.
pub(crate) fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(input: D) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(input)?;
    text.parse().map(Some).map_err(D::Error::custom)
}

/// Declares how keys are read, from a text or from any value; a result is wrapped for optional keys.
macro_rules! keys {
    ($from:ty: $($name:ident -> $type:ty = $parse:expr;)*) => {$(
        pub(crate) fn $name<'de, D: Deserializer<'de>, O: From<$type>>(input: D) -> Result<O, D::Error> {
            let parse: fn($from) -> Result<$type, String> = $parse;
            parse(<$from>::deserialize(input)?).map(O::from).map_err(D::Error::custom)
        }
    )*};
}

keys! { String:
    text -> String = |text| check(!text.is_empty(), text, "must not be empty");
    // For what is compared with attributes and owners of jobs.
    name -> String = |text| {
        let what = format!("must have 1 to {MAX_NAME} bytes");
        check((1..=MAX_NAME).contains(&text.len()), text, what)
    };
    label -> String = |text| checked(check_label(&text), text);
    variable -> String = |text| checked(seal::check_name(&text), text);
    url -> String = |text| checked(check_url(&text), text);
    issuer_url -> String = |text| checked(check_issuer_url(&text), text);
    proxy -> String = |text| checked(check_proxy_url(&text), text);
    absolute -> PathBuf = |text| {
        let is_valid = text.starts_with('/') && !text.contains('\0');
        check(is_valid, text.into(), "must be an absolute path")
    };
    socket -> PathBuf = |text| {
        let is_valid = text.starts_with('/') && !text.contains('\0') && text.len() <= MAX_SOCKET_PATH;
        check(is_valid, text.into(), format!("must be an absolute path of at most {MAX_SOCKET_PATH} bytes"))
    };
    absolute_template -> Template = |text| match text.starts_with('/') {
        true => template(text),
        false => Err("must be an absolute path".to_owned()),
    };
}

keys! { Value:
    // A number is in seconds.
    duration -> Duration = |value| match value {
        Value::String(text) => parse_duration(&text),
        Value::Number(n) => parse_duration(&n.to_string()),
        _ => Err("must be a duration, as in \"60s\"".to_owned()),
    };
    // One string need not be in an array.
    strings -> Vec<String> = |value| {
        let many = if value.is_array() { value } else { Value::Array(vec![value]) };
        let all = Vec::<String>::deserialize(many).unwrap_or_default();
        let is_valid = !all.is_empty() && !all.iter().any(String::is_empty);
        check(is_valid, all, "must be a string, or an array of strings, none of them empty")
    };
    argv -> Vec<Template> = |value| {
        let all = Vec::<String>::deserialize(value).map_err(|_| "must be an array of strings".to_owned())?;
        let all = all.into_iter().map(template).collect::<Result<Vec<_>, _>>()?;
        let is_valid = all.first().is_some_and(|program| program.starts_with("/") && program.is_constant());
        check(is_valid, all, "must begin with a program, an absolute path without placeholders")
    };
    principal -> Principal = to_principal;
    flag -> bool = |value| unquoted(value).as_bool().ok_or_else(|| "must be true or false".to_owned());
    renew -> RenewAfter = |value| match unquoted(value) {
        Value::Bool(true) => Ok(RenewAfter(Renewal::default().after)),
        Value::Bool(false) => Ok(RenewAfter(None)),
        Value::Number(n) => match n.as_f64() {
            Some(after @ 0.1..=0.9) => Ok(RenewAfter(Some(after))),
            _ => Err("must be from 0.1 to 0.9: a part of the remaining lifetime".to_owned()),
        },
        _ => Err("must be true, false, or a part of the remaining lifetime, from 0.1 to 0.9".to_owned()),
    };
    signal -> i32 = |value| {
        let name = value.as_str().unwrap_or_default();
        let signal = SIGNALS.iter().find(|signal| signal.as_str() == name);
        signal.map(|signal| *signal as i32).ok_or_else(|| {
            let names: Vec<&str> = SIGNALS.iter().map(|signal| signal.as_str()).collect();
            format!("must be one of {}", names.join(", "))
        })
    };
    parallel -> usize = |value| match unquoted(value).as_u64() {
        Some(n @ 1..=1024) => Ok(n as usize),
        _ => Err("must be a number from 1 to 1024".to_owned()),
    };
}

/// A user or a group in an array.
struct AsKey(Principal);

pub(crate) fn principals<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<Principal>, D::Error> {
    Ok(Vec::<AsKey>::deserialize(input)?.into_iter().map(|key| key.0).collect())
}

/// Declares how types are read that are keys by themselves.
macro_rules! types {
    ($($type:ident: $from:ty = $parse:expr;)*) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
                $parse(<$from>::deserialize(input)?).map_err(D::Error::custom)
            }
        }
    )*};
}

types! {
    AttributePath: String = |text: String| AttributePath::parse(&text);
    KeyPath: String = |text: String| KeyPath::parse(&text);
    Template: String = template;
    AsKey: Value = |value| to_principal(value).map(AsKey);
}

fn check<T>(is_valid: bool, value: T, what: impl Into<String>) -> Result<T, String> {
    if is_valid { Ok(value) } else { Err(what.into()) }
}

fn checked<T, W: Display>(checked: Result<(), W>, value: T) -> Result<T, String> {
    checked.map(|()| value).map_err(|what| what.to_string())
}

fn template(text: String) -> Result<Template, String> {
    let text = check(!text.contains('\0'), text, "has a NUL character")?;
    Template::parse(&text).map_err(|e| e.to_string())
}

fn to_principal(value: Value) -> Result<Principal, String> {
    match value {
        // Also one of digits: a user may be called like the uid of another one.
        Value::String(text) => {
            let is_valid = (1..=MAX_NAME).contains(&text.len());
            let what = format!("must have 1 to {MAX_NAME} bytes");
            check(is_valid, Principal::Name(text), what)
        }
        Value::Number(n) => match n.as_u64().map(u32::try_from) {
            Some(Ok(id)) if id != u32::MAX => Ok(Principal::Id(id)),
            _ => Err("is out of range".to_owned()),
        },
        _ => Err("must be a name or a number".to_owned()),
    }
}

/// The value in a string, as `flux jobtap load FILE key=value` may bring it.
fn unquoted(value: Value) -> Value {
    match value {
        Value::String(text) => serde_json::from_str(&text).unwrap_or_default(),
        value => value,
    }
}
