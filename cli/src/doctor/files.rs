// SPDX-License-Identifier: MIT OR Apache-2.0

//! The files that rules name: token files, their directories, and programs. A user who can change one of them can
//! choose the tokens of jobs.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use config::{Config, Rule, Source, Template, Values};
use secure_path::{Owners, Refusal};

use super::finding::{Finding, fail, ok, warn};
use crate::people;

const CHECK: &str = "rule";

/// Checks the files of all rules. `owner` is the uid of the instance owner, who may own them.
pub(super) fn check(config: &Config, owner: u32) -> Vec<Finding> {
    config
        .rules
        .iter()
        .enumerate()
        .flat_map(|(index, rule)| [check_rule(index, rule, owner), secrets(index, rule)])
        .flatten()
        .collect()
}

/// Checks the program that a kubeconfig file names.
pub(super) fn exec_program(check: &'static str, path: &Path, owner: u32) -> Finding {
    let what = format!("the exec command {}", path.display());
    match program(path, owner) {
        Ok(()) => ok(check, what),
        Err(wrong) => fail(check, format!("{what}: {}", wrong.what), wrong.todo),
    }
}

fn check_rule(index: usize, rule: &Rule, owner: u32) -> Option<Finding> {
    let (path, checked) = match &rule.source {
        // With `wait`, the file need not exist now.
        Source::File { path, wait } if path.is_constant() && (wait.is_none() || Path::new(path.prefix()).exists()) => {
            let path = PathBuf::from(path.prefix());
            let checked = token_file(&path, owner);
            (path, checked)
        }
        Source::File { path, .. } => {
            let path = directory_of(path);
            let checked = directory(&path, owner);
            (path, checked)
        }
        Source::Command { argv, .. } => {
            let path = PathBuf::from(argv.first().map(Template::prefix).unwrap_or_default());
            let checked = program(&path, owner);
            (path, checked)
        }
        // Other checks cover API servers and keys.
        Source::Kubernetes(_) | Source::Issuer(_) | Source::OAuth2(_) => return None,
    };
    let what = format!("rule {index} (source {}): {}", rule.source.name(), path.display());
    Some(match (checked, &rule.source) {
        (Err(wrong), _) => fail(CHECK, format!("{what}: {}", wrong.what), wrong.todo),
        (Ok(()), Source::File { path, .. }) => {
            placeholder_directory(path, &what, owner).unwrap_or_else(|| ok(CHECK, what))
        }
        (Ok(()), _) => ok(CHECK, what),
    })
}

/// Checks a directory whose name depends on the job. It may not exist yet, may be one of many, and may belong to the
/// user in its name.
fn placeholder_directory(path: &Template, what: &str, owner: u32) -> Option<Finding> {
    let todo = "name the file, not a directory, after the job or its owner, as in /var/lib/tokens/{uid}.jwt";
    let text = path.to_string();
    let (directories, _) = text.rsplit_once('/')?;
    let (component, template) = directories
        .split('/')
        .filter_map(|name| Some((name, Template::parse(name).ok()?)))
        .find(|(_, template)| !template.is_constant())?;
    Some(match user_directory(&directory_of(path), &template, owner) {
        Some((directory, uid)) => fail(
            CHECK,
            format!(
                "{what}: the directory {component} in {text} is one of users, such as {}, which can be changed by {}: \
                 a file in it is rejected",
                directory.display(),
                people::describe(uid)
            ),
            todo,
        ),
        None => warn(
            CHECK,
            format!(
                "{what}: the name of the directory {component} in {text} depends on the job: a file in it is rejected \
                 unless the directory belongs to the instance owner or root, others cannot write to it, and it is \
                 not a symbolic link"
            ),
            todo,
        ),
    })
}

/// Finds a directory in `base` whose name contains a user, by the template `name`, and that belongs to that user.
fn user_directory(base: &Path, name: &Template, owner: u32) -> Option<(PathBuf, u32)> {
    /// A large site may have a directory for each user.
    const MAX_ENTRIES: usize = 1000;

    fs::read_dir(base).ok()?.take(MAX_ENTRIES).flatten().find_map(|entry| {
        let uid = entry.metadata().ok().filter(Metadata::is_dir)?.uid();
        if uid == owner || uid == 0 {
            return None;
        }
        let values = Values::of_user(uid, people::name(uid));
        let named = name.fill(&values).ok()?;
        (entry.file_name().to_str() == Some(&*named)).then(|| (entry.path(), uid))
    })
}

/// Reports an argument of a command that looks like a secret, without its text.
fn secrets(index: usize, rule: &Rule) -> Option<Finding> {
    let Source::Command { argv, .. } = &rule.source else {
        return None;
    };
    let mut arguments = argv.iter().enumerate().skip(1);
    let (number, _) = arguments.find(|(_, argument)| {
        let text = argument.to_string();
        token::redact(&text) != text
    })?;
    Some(warn(
        CHECK,
        format!(
            "rule {index} (source command): argument {number} of the command looks like a secret, and every user can \
             read the configuration (flux config get)"
        ),
        "let the command read the secret from a file that only the instance owner can read",
    ))
}

/// A problem of a file, and the remedy.
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

/// Returns the deepest directory that the template names without a placeholder.
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
    if fs::symlink_metadata(path).is_ok_and(|link| link.is_symlink()) {
        return Err(Wrong::new(
            "is a symbolic link, so it is rejected",
            "name the file that the link leads to",
        ));
    }
    if !meta.is_file() {
        return Err(Wrong::new(
            "is not a regular file",
            "name the file that contains the token",
        ));
    }
    owned(&meta, owner)?;
    if meta.mode() & 0o077 != 0 {
        return Err(Wrong::new(
            format!(
                "mode {:04o} gives others than its owner access, so it is rejected",
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

/// Checks a program like the agent before each run.
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
    secure_path::check_program(path, Owners::of(owner)).map_err(unsafe_way)
}

/// Checks that nobody else can replace `path` through a directory above it, or a link.
fn above(path: &Path, owner: u32) -> Result<(), Wrong> {
    secure_path::check_way(path, Owners::of(owner)).map_err(unsafe_way)
}

fn unsafe_way(refusal: Refusal) -> Wrong {
    match refusal {
        Refusal::Io(e) => unreadable(&e),
        Refusal::Untrusted(why) => Wrong::new(
            format!("the path is not safe: {why}"),
            "let only the instance owner and root change the directories and links on the path, or name another one",
        ),
    }
}

fn stat(path: &Path) -> Result<Metadata, Wrong> {
    fs::metadata(path).map_err(|e| unreadable(&e))
}

fn unreadable(e: &io::Error) -> Wrong {
    let todo = match e.kind() {
        io::ErrorKind::PermissionDenied => "give the instance owner access, or run this as the instance owner",
        _ => "create it, or correct the rule",
    };
    Wrong::new(e.to_string(), todo)
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
        format!("belongs to {}, so it is rejected", people::describe(meta.uid())),
        format!("chown it to {} or root", people::describe(owner)),
    ))
}

/// Returns who besides root and `owner` can change a file, or the content of a directory.
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
