// SPDX-License-Identifier: MIT OR Apache-2.0

//! Paths in the file.

use std::path::{Path, PathBuf};

/// The longest socket path, in bytes: unix(7) allows 108 with the NUL.
const MAX_SOCKET_PATH: usize = 107;

pub(super) fn absolute(path: PathBuf) -> Result<PathBuf, String> {
    match path.is_absolute() && !path.as_os_str().as_encoded_bytes().contains(&0) {
        true => Ok(path),
        false => Err("must be an absolute path".to_owned()),
    }
}

pub(super) fn socket(path: PathBuf) -> Result<PathBuf, String> {
    let is_short = |path: &Path| path.as_os_str().len() <= MAX_SOCKET_PATH;
    absolute(path).and_then(|path| match is_short(&path) {
        true => Ok(path),
        false => Err(format!("must have at most {MAX_SOCKET_PATH} bytes")),
    })
}
