//! Paths of keys as they are configured: `~`, `$VAR` and `${VAR}` in them.

use std::{env, path::PathBuf};

use config::KeyPath;

/// Expands `~` to the home directory, by the variable HOME, and environment variables to their values. It asks nobody, and
/// so does not block.
///
/// # Errors
/// Returns what is wrong with it, in words. It names a variable that is not set.
pub fn expand(path: &KeyPath) -> Result<PathBuf, String> {
    expand_with(path.as_str(), |name| env::var(name))
}

fn expand_with(path: &str, variable: impl Fn(&str) -> Result<String, env::VarError>) -> Result<PathBuf, String> {
    let home = || variable("HOME").ok();
    // Where there is no home directory, `~` stays, and is refused below.
    let expanded = shellexpand::full_with_context(path, home, |name| variable(name).map(Some));
    let expanded = expanded.map_err(|e| {
        let why = match e.cause {
            env::VarError::NotPresent => "is not set",
            env::VarError::NotUnicode(_) => "is not UTF-8",
        };
        format!(
            "{path}: the environment variable {} {why}, where this instance runs: set it, or write the path out",
            e.var_name
        )
    })?;
    if !expanded.starts_with('/') {
        let why = if expanded.starts_with('~') {
            "`~` is the home directory of the instance owner, by the variable HOME, and nothing else"
        } else {
            "is not an absolute path"
        };
        return Err(format!("{path}: {why}: write the path out"));
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
