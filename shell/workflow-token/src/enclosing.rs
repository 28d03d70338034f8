// SPDX-License-Identifier: MIT OR Apache-2.0

//! The tokens of the enclosing job. A Flux instance that runs in a job has no plugin that delivers, so its jobs receive
//! the tokens of that job.
//!
//! The instance and its job shells inherit them in their environment. Those values date from the start of the job. The
//! files contain the current values, and the shells of the enclosing job keep them up to date.

use std::{env, fs::File, io::Read, path::Path};

use seal::on_this_node;
use seal::{Secret, Variables};
use zeroize::Zeroizing;

/// The variable that lists the variables that the plugin sets, separated by spaces. Commands that submit jobs from
/// within this job remove them.
pub(crate) const VARIABLES: &str = "WORKFLOW_TOKEN_VARIABLES";

/// Returns the variables of the enclosing job, or None if there is no such job or it has no tokens.
///
/// # Errors
/// A variable that the environment of a job cannot carry.
pub(crate) fn variables() -> Result<Option<Variables>, seal::NameError> {
    let Ok(names) = env::var(VARIABLES) else {
        return Ok(None);
    };
    let mut variables = Variables::new();
    for name in names.split_whitespace() {
        if let Some(value) = value(name) {
            variables.insert(name, value)?;
        }
    }
    Ok((!variables.is_empty()).then_some(variables))
}

fn value(name: &str) -> Option<Secret> {
    // The environment is that of the instance's first broker, which may run on another node.
    let file = env::var_os(format!("{name}_FILE")).and_then(|path| on_this_node(Path::new(&path)));
    if let Some(current) = file.and_then(|path| read(&path)) {
        return Some(current);
    }
    let value = env::var(name).ok()?;
    match name.ends_with("_FILE") {
        true => Some(Secret::from(on_this_node(Path::new(&value))?.to_str()?)),
        false => Some(Secret::from(value)),
    }
}

fn read(path: &Path) -> Option<Secret> {
    let mut text = Zeroizing::new(String::with_capacity(seal::MAX_PAYLOAD));
    File::open(path)
        .ok()?
        .take(seal::MAX_PAYLOAD as u64)
        .read_to_string(&mut text)
        .ok()?;
    Some(Secret::from(text.as_str()))
}
