// SPDX-License-Identifier: MIT OR Apache-2.0

//! Expands `~`, `$VAR` and `${VAR}` in configured paths of keys.

use std::{env, path::PathBuf};

use config::KeyPath;

/// Expands `~` to the value of the variable HOME, and environment variables to their values. It uses no name service,
/// so it does not block.
///
/// # Errors
/// Returns a description of the mistake, which names a variable that is not set.
pub fn expand(path: &KeyPath) -> Result<PathBuf, String> {
    expand_with(path.as_str(), |name| env::var(name))
}

fn expand_with(path: &str, variable: impl Fn(&str) -> Result<String, env::VarError>) -> Result<PathBuf, String> {
    let home = || variable("HOME").ok();
    // Without HOME, `~` is not expanded, and is rejected below.
    let expanded = shellexpand::full_with_context(path, home, |name| variable(name).map(Some));
    let expanded = expanded.map_err(|e| {
        let why = match e.cause {
            env::VarError::NotPresent => "is not set",
            env::VarError::NotUnicode(_) => "is not UTF-8",
        };
        format!(
            "{path}: the environment variable {} {why} for this instance: set it, or write the full path",
            e.var_name
        )
    })?;
    if !expanded.starts_with('/') {
        let why = if expanded.starts_with('~') {
            "`~` is the home directory of the instance owner (the variable HOME), and no other form is supported"
        } else {
            "is not an absolute path"
        };
        return Err(format!("{path}: {why}: write the full path"));
    }
    Ok(PathBuf::from(expanded.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(path: &str) -> Result<String, String> {
        let variable = |name: &str| match name {
            "HOME" => Ok("/home/flux".to_owned()),
            "KEYS" => Ok("/etc/keys".to_owned()),
            "RELATIVE" => Ok("etc/keys".to_owned()),
            _ => Err(env::VarError::NotPresent),
        };
        expand_with(path, variable).map(|path| path.to_str().unwrap().to_owned())
    }

    #[test]
    fn homes_and_variables_are_expanded() {
        for (path, to) in [
            ("/etc/keys", "/etc/keys"),
            ("~/keys", "/home/flux/keys"),
            ("$KEYS/a", "/etc/keys/a"),
            ("${KEYS}.d", "/etc/keys.d"),
            ("/srv$HOME", "/srv/home/flux"),
        ] {
            assert_eq!(expanded(path).as_deref(), Ok(to), "{path}");
        }
    }

    #[test]
    fn what_cannot_be_expanded_is_named() {
        for (path, says) in [
            ("$NOWHERE/keys", "the environment variable NOWHERE is not set"),
            ("/a/${NOWHERE}", "the environment variable NOWHERE is not set"),
            ("~alice/keys", "`~` is the home directory of the instance owner"),
            ("$RELATIVE/x", "is not an absolute path"),
        ] {
            let error = expanded(path).unwrap_err();
            assert!(
                error.starts_with(&format!("{path}: ")) && error.contains(says),
                "{error}"
            );
        }
    }
}
