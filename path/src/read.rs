// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reads files that the operator names, up to a length limit.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
};

use zeroize::Zeroizing;

use crate::{Owners, Refusal, open};

/// Reads a file whose path the operator configured. No other user could have created or changed it.
///
/// # Errors
/// [`Refusal`], also if the file is longer than `limit` bytes.
pub fn read_public(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    read_all(open(path, Owners::process())?, limit)
}

/// Like [`read_public`], for a file that contains a secret: only its owner may have access.
///
/// # Errors
/// [`Refusal`], also if the file is longer than `limit` bytes.
pub fn read_private(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let file = open(path, Owners::process())?;
    check_private(&file.metadata()?)?;
    read_all(file, limit)
}

/// Checks that only the owner can read a file opened by [`open`].
///
/// # Errors
/// [`Refusal::Untrusted`].
pub fn check_private(meta: &fs::Metadata) -> Result<(), Refusal> {
    if meta.mode() & 0o077 != 0 {
        return Err(Refusal::Untrusted(format!(
            "mode {:04o} lets others than its owner in: use chmod 0600",
            meta.mode() & 0o7777
        )));
    }
    Ok(())
}

/// Reads up to `limit` bytes, and one more if the file is longer.
///
/// # Errors
/// From the file system.
pub fn read(file: fs::File, limit: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    // The capacity exceeds the length of the file, so that the buffer is never moved, which would leave a
    // copy behind.
    let expected = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX).min(limit);
    let mut bytes = Zeroizing::new(Vec::with_capacity(expected + 64));
    file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a file to its end. A file longer than `limit` bytes is an error.
///
/// # Errors
/// [`Refusal`].
pub fn read_all(file: fs::File, limit: usize) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let bytes = read(file, limit)?;
    if bytes.len() > limit {
        return Err(Refusal::Untrusted(format!(
            "longer than {limit} bytes: check that it is the right file"
        )));
    }
    Ok(bytes)
}
