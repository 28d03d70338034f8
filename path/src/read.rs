//! Reads files that the operator names, to a bounded length.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
};

use zeroize::Zeroizing;

use crate::{Owners, Refusal, open};

/// Reads a file whose path the operator wrote, and which nobody else could have put there or changed.
///
/// # Errors
/// [`Refusal`], also where it has more than `limit` bytes.
pub fn read_public(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    read_all(open(path, Owners::process())?, limit)
}

/// The same for a file with a secret, which must be closed to everyone but its owner.
///
/// # Errors
/// [`Refusal`], also where it has more than `limit` bytes.
pub fn read_private(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let file = open(path, Owners::process())?;
    check_private(&file.metadata()?)?;
    read_all(file, limit)
}

/// Checks that only its owner can read a file that [`open`] has opened.
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

/// Reads up to `limit` bytes, and one more where there is more.
///
/// # Errors
/// Those of the file system.
pub fn read(file: fs::File, limit: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    // The buffer is as long as the file, and a little longer, so that it is not moved, leaving a copy behind.
    let expected = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX).min(limit);
    let mut bytes = Zeroizing::new(Vec::with_capacity(expected + 64));
    file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a file to its end, and refuses one with more than `limit` bytes.
///
/// # Errors
/// [`Refusal`].
pub fn read_all(file: fs::File, limit: usize) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let bytes = read(file, limit)?;
    if bytes.len() > limit {
        return Err(Refusal::Untrusted(format!(
            "longer than {limit} bytes: see that it is the right file"
        )));
    }
    Ok(bytes)
}
