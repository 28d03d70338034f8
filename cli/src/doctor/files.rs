//! What rules name: directories of token files, token files, and programs. Who can change one of them chooses the
//! tokens that jobs get.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use config::{Config, Rule, Source, Template, Values};
use secure_path::{Owners, Refusal};

use super::finding::{Finding, fail, ok, warn};
use crate::people;

const CHECK: &str = "rule";

/// Checks the files of all rules; `owner` is the instance owner, who may own them.
pub(super) fn check(config: &Config, owner: u32) -> Vec<Finding> {
    config
        .rules
        .iter()
        .enumerate()
        .flat_map(|(index, rule)| [of_rule(index, rule, owner), secrets(index, rule)])
        .flatten()
        .collect()
}

/// The program that a kubeconfig file names.
pub(super) fn exec_program(check: &'static str, path: &Path, owner: u32) -> Finding {
    let what = format!("the exec command {}", path.display());
    match program(path, owner) {
        Ok(()) => ok(check, what),
        Err(wrong) => fail(check, format!("{what}: {}", wrong.what), wrong.todo),
    }
}

fn of_rule(index: usize, rule: &Rule, owner: u32) -> Option<Finding> {
    let (path, checked) = match &rule.source {
        // One that is waited for need not be there now.
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
        // See the checks of API servers, and of keys.
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

/// What a directory whose name depends on the job leads to: it does not exist yet, or is one of many, and may belong to
/// the user it is named after.
fn placeholder_directory(path: &Template, what: &str, owner: u32) -> Option<Finding> {
    let todo = "name the file, not a directory, after the job or its owner, as in /var/lib/tokens/{uid}.jwt";
    let text = path.to_string();
    let (directories, _) = text.rsplit_once('/')?;
    let (component, template) = directories
        .split('/')
        .filter_map(|name| Some((name, Template::parse(name).ok()?)))
        .find(|(_, template)| !template.is_constant())?;
    Some(match of_its_user(&directory_of(path), &template, owner) {
        Some((directory, uid)) => fail(
            CHECK,
            format!(
                "{what}: the directory {component} in {text} is one of users, such as {}, which can be changed by {}: \
                 a file there is refused",
                directory.display(),
                people::describe(uid)
            ),
            todo,
        ),
        None => warn(
            CHECK,
            format!(
                "{what}: the name of the directory {component} in {text} depends on the job: a file there is refused \
                 unless the directory belongs to the instance owner or root, cannot be written by others, and is no \
                 symbolic link"
            ),
            todo,
        ),
    })
}

/// A directory in `base` that is named after a user as `name` says, and belongs to that user.
fn of_its_user(base: &Path, name: &Template, owner: u32) -> Option<(PathBuf, u32)> {
    /// There may be a directory for each user of a large site.
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

/// Returns whether an argument of a command has the form of a secret. It is not shown.
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
    if fs::symlink_metadata(path).is_ok_and(|link| link.is_symlink()) {
        return Err(Wrong::new(
            "is a symbolic link, so it is refused",
            "name the file that it leads to",
        ));
    }
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

/// As it is checked before each run.
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

/// That nobody else can put something else in the place of `path` by way of a directory above it, or of a link.
fn above(path: &Path, owner: u32) -> Result<(), Wrong> {
    secure_path::check_way(path, Owners::of(owner)).map_err(unsafe_way)
}

fn unsafe_way(refusal: Refusal) -> Wrong {
    match refusal {
        Refusal::Io(e) => unreadable(&e),
        Refusal::Untrusted(why) => Wrong::new(
            format!("the way to it is not safe: {why}"),
            "let only the instance owner and root change what is on the way, or name another one",
        ),
    }
}

fn stat(path: &Path) -> Result<Metadata, Wrong> {
    fs::metadata(path).map_err(|e| unreadable(&e))
}

fn unreadable(e: &io::Error) -> Wrong {
    let todo = match e.kind() {
        io::ErrorKind::PermissionDenied => "let the instance owner in, or run this as the instance owner",
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
