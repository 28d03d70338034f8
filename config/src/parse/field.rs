// SPDX-License-Identifier: MIT OR Apache-2.0

//! Functions for `deserialize_with` that read keys, required and optional ones. Each error states the valid values.

use std::{fmt::Display, path::PathBuf, str::FromStr, time::Duration};

use nix::sys::signal::Signal;
use serde::{Deserialize, Deserializer, de::Error};
use serde_json::Value;

use crate::{
    AttributePath, KeyPath, MAX_NAME, Principal, Renewal, Template, check_issuer_url, check_label, check_proxy_url,
    check_url, parse_duration,
};

/// The fraction of the remaining lifetime after which a token is renewed; none if it is not renewed.
pub(crate) struct RenewAfter(pub Option<f64>);

/// The longest socket path, in bytes. unix(7) allows 108 including the NUL.
const MAX_SOCKET_PATH: usize = 107;

/// The signals that can announce a new token to tasks: those that programs may redefine, signal(7).
const SIGNALS: [Signal; 5] = [
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGURG,
    Signal::SIGWINCH,
];

/// Reads a key with the `FromStr` of its type.
pub(crate) fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(input: D) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(input)?;
    text.parse().map(Some).map_err(D::Error::custom)
}

/// Declares functions that read keys from a string or from any value. An optional key gets the value in a `Some`.
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
    // Names that are compared with attributes of jobs.
    name -> String = |text| {
        let what = format!("must be 1 to {MAX_NAME} bytes long");
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
    // The unit of a number is seconds.
    duration -> Duration = |value| match value {
        Value::String(text) => parse_duration(&text),
        Value::Number(n) => parse_duration(&n.to_string()),
        _ => Err("must be a duration, as in \"60s\"".to_owned()),
    };
    // A single string may be written without an array.
    strings -> Vec<String> = |value| {
        let many = if value.is_array() { value } else { Value::Array(vec![value]) };
        let all = Vec::<String>::deserialize(many).unwrap_or_default();
        let is_valid = !all.is_empty() && !all.iter().any(String::is_empty);
        check(is_valid, all, "must be a non-empty string, or an array of non-empty strings")
    };
    argv -> Vec<Template> = |value| {
        let all = Vec::<String>::deserialize(value).map_err(|_| "must be an array of strings".to_owned())?;
        let all = all.into_iter().map(template).collect::<Result<Vec<_>, _>>()?;
        let is_valid = all.first().is_some_and(|program| program.starts_with("/") && program.is_constant());
        check(is_valid, all, "must begin with the absolute path of a program, without placeholders")
    };
    principal -> Principal = to_principal;
    flag -> bool = |value| unquoted(value).as_bool().ok_or_else(|| "must be true or false".to_owned());
    renew -> RenewAfter = |value| match unquoted(value) {
        Value::Bool(true) => Ok(RenewAfter(Renewal::default().after)),
        Value::Bool(false) => Ok(RenewAfter(None)),
        Value::Number(n) => match n.as_f64() {
            Some(after @ 0.1..=0.9) => Ok(RenewAfter(Some(after))),
            _ => Err("must be from 0.1 to 0.9: a fraction of the remaining lifetime".to_owned()),
        },
        _ => Err("must be true, false, or a fraction of the remaining lifetime, from 0.1 to 0.9".to_owned()),
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

/// Implements `Deserialize` for types of keys.
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
    let text = check(!text.contains('\0'), text, "must not contain a NUL character")?;
    Template::parse(&text).map_err(|e| e.to_string())
}

fn to_principal(value: Value) -> Result<Principal, String> {
    match value {
        // A string of digits is a name, too: a user name may equal the uid of another user.
        Value::String(text) => {
            let is_valid = (1..=MAX_NAME).contains(&text.len());
            let what = format!("must be 1 to {MAX_NAME} bytes long");
            check(is_valid, Principal::Name(text), what)
        }
        Value::Number(n) => match n.as_u64().map(u32::try_from) {
            Some(Ok(id)) if id != u32::MAX => Ok(Principal::Id(id)),
            _ => Err("is out of range".to_owned()),
        },
        _ => Err("must be a name or a number".to_owned()),
    }
}

/// Parses the value in a string, because `flux jobtap load FILE key=value` may pass any value as one.
fn unquoted(value: Value) -> Value {
    match value {
        Value::String(text) => serde_json::from_str(&text).unwrap_or_default(),
        value => value,
    }
}
