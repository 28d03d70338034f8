//! What rules name: directories of token files, token files, and programs. Who can change one of them chooses the
//! tokens that jobs get.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use config::{Config, Rule, Source, Template};

use super::{Finding, fail, ok};
use crate::people;

const CHECK: &str = "rule";

/// Checks the files of all rules; `owner` is the instance owner, who may own them.
pub(super) fn check(config: &Config, owner: u32) -> Vec<Finding> {
    let mut findings: Vec<_> = config
        .rules
        .iter()
        .enumerate()
        .map(|(index, rule)| of_rule(index, rule, owner))
        .collect();
    if let Some(helper) = &config.helper {
        findings.push(match program(helper, owner) {
            Ok(()) => ok(CHECK, format!("helper: {} can be run", helper.display())),
            Err(wrong) => fail(
                CHECK,
                format!("helper: {}: {}", helper.display(), wrong.what),
                wrong.todo,
            ),
        });
    }
    findings
}

fn of_rule(index: usize, rule: &Rule, owner: u32) -> Finding {
    let (path, checked) = match &rule.source {
        Source::File { path } if path.is_constant() => {
            let path = PathBuf::from(path.prefix());
            let checked = token_file(&path, owner);
            (path, checked)
        }
        Source::File { path } => {
            let path = directory_of(path);
            let checked = directory(&path, owner);
            (path, checked)
        }
        Source::Command { argv } => {
            let path = PathBuf::from(argv.first().map(Template::prefix).unwrap_or_default());
            let checked = program(&path, owner);
            (path, checked)
        }
    };
    let what = format!("rule {index} (source {}): {}", rule.source.name(), path.display());
    match checked {
        Ok(()) => ok(CHECK, what),
        Err(wrong) => fail(CHECK, format!("{what}: {}", wrong.what), wrong.todo),
    }
}

/// What is wrong with a file, and what to do.
struct Wrong {
    what: String,
    todo: String,
}

impl Wrong {
    fn new(what: impl Into<String>, todo: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            todo: todo.into(),
        }
    }
}

/// The deepest directory that the template names without a placeholder.
fn directory_of(template: &Template) -> PathBuf {
    let prefix = template.prefix();
    let end = prefix.rfind('/').map_or(0, |slash| slash + 1);
    PathBuf::from(&prefix[..end.max(1).min(prefix.len())])
}

fn token_file(path: &Path, owner: u32) -> Result<(), Wrong> {
    if let Some(parent) = path.parent() {
        directory(parent, owner)?;
    }
    let meta = stat(path)?;
    if !meta.is_file() {
        return Err(Wrong::new(
            "is not a regular file",
            "name the file that holds the token",
        ));
    }
    owned(&meta, owner)?;
    if meta.mode() & 0o077 != 0 {
        return Err(Wrong::new(
            format!(
                "mode {:04o} lets others than its owner in, so it is refused",
                meta.mode() & 0o7777
            ),
            format!("chmod 0600 {}", path.display()),
        ));
    }
    Ok(())
}

fn directory(path: &Path, owner: u32) -> Result<(), Wrong> {
    let meta = stat(path)?;
    if !meta.is_dir() {
        return Err(Wrong::new("is not a directory", "name a directory in the rule's path"));
    }
    unchangeable(path, &meta, owner)?;
    above(path, owner)
}

fn program(path: &Path, owner: u32) -> Result<(), Wrong> {
    let meta = stat(path)?;
    if !meta.is_file() {
        return Err(Wrong::new(
            "is not a regular file",
            "name a program in the rule's command",
        ));
    }
    if meta.mode() & 0o111 == 0 {
        return Err(Wrong::new(
            "is not executable",
            format!("chmod 0755 {}", path.display()),
        ));
    }
    unchangeable(path, &meta, owner)?;
    above(path, owner)
}

/// That nobody else can put something else in the place of `path` by way of a directory above it.
fn above(path: &Path, owner: u32) -> Result<(), Wrong> {
    /// What others own in such a directory stays theirs, as in /tmp.
    const STICKY: u32 = 0o1000;

    let resolved = fs::canonicalize(path).unwrap_or_default();
    let dirs = path.ancestors().skip(1).chain(resolved.ancestors().skip(1));
    for dir in dirs.filter(|dir| !dir.as_os_str().is_empty()) {
        let meta = stat(dir)?;
        if meta.mode() & STICKY != 0 && (meta.uid() == owner || meta.uid() == 0) {
            continue;
        }
        unchangeable(dir, &meta, owner).map_err(|wrong| {
            Wrong::new(
                format!("the directory {} above it {}", dir.display(), wrong.what),
                wrong.todo,
            )
        })?;
    }
    Ok(())
}

fn stat(path: &Path) -> Result<Metadata, Wrong> {
    fs::metadata(path).map_err(|e| {
        let todo = match e.kind() {
            std::io::ErrorKind::PermissionDenied => "let the instance owner in, or run this as the instance owner",
            _ => "create it, or correct the rule",
        };
        Wrong::new(e.to_string(), todo)
    })
}

fn unchangeable(path: &Path, meta: &Metadata, owner: u32) -> Result<(), Wrong> {
    match writers(meta, owner) {
        None => Ok(()),
        Some(who) => Err(Wrong::new(
            format!("can be changed by {who}, who could choose the tokens of others"),
            format!(
                "let only the instance owner and root change it (chown, chmod go-w {})",
                path.display()
            ),
        )),
    }
}

fn owned(meta: &Metadata, owner: u32) -> Result<(), Wrong> {
    if meta.uid() == owner || meta.uid() == 0 {
        return Ok(());
    }
    Err(Wrong::new(
        format!("is owned by {}, so it is refused", people::describe(meta.uid())),
        format!("chown it to {} or root", people::describe(owner)),
    ))
}

/// Who besides root and `owner` can change a file, or what is in a directory.
pub(super) fn writers(meta: &Metadata, owner: u32) -> Option<String> {
    if meta.uid() != owner && meta.uid() != 0 {
        return Some(people::describe(meta.uid()));
    }
    if meta.mode() & 0o002 != 0 {
        return Some(format!("everyone (mode {:04o})", meta.mode() & 0o7777));
    }
    if meta.mode() & 0o020 != 0 {
        return Some(format!(
            "its group, gid {} (mode {:04o})",
            meta.gid(),
            meta.mode() & 0o7777
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_of_a_template_ends_before_its_first_placeholder() {
        for (template, dir) in [
            ("/var/lib/tokens/{jobid}.jwt", "/var/lib/tokens/"),
            ("/var/lib/tokens-{uid}/token", "/var/lib/"),
            ("/{user}/token", "/"),
        ] {
            assert_eq!(directory_of(&Template::parse(template).unwrap()), Path::new(dir));
        }
    }
}
