// SPDX-License-Identifier: MIT OR Apache-2.0

//! Creates key directories and performs the three steps of a rotation.
//!
//! A running instance may read the directory at any moment: files appear complete, private keys before their public
//! keys, and removals leave no active key without its public key.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::Path,
};

use secrecy::ExposeSecret;
use token::{Algorithm, SigningKey};

use super::{
    Keys,
    directory::{ACTIVE, HS256, KeysError, SIGNING, Want, active, is_file_name, private_key, read},
};
use secure_path::{Directory, Owners, Refusal};

/// Everyone may read public files; only the owner may read private ones.
const PUBLIC_DIRECTORY: u32 = 0o755;
const PRIVATE_DIRECTORY: u32 = 0o700;
const PUBLIC: u32 = 0o644;
const PRIVATE: u32 = 0o600;

/// Creates a key directory with one active key. Returns its `kid`.
///
/// # Errors
/// [`KeysError`], for example if the directory already contains keys, which are not replaced.
pub fn create(path: &Path, algorithm: Algorithm) -> Result<String, KeysError> {
    let writer = Writer::new(
        path,
        secure_path::make_directory(path, PUBLIC_DIRECTORY, Owners::process()),
    )?;
    for name in [None, Some(SIGNING), Some(HS256)] {
        if writer.has_any(name)? {
            let why = "it already contains keys: add one with `[flux] workflow-token rotate add`";
            return Err(KeysError::new(path, why));
        }
    }
    let kid = writer.add(algorithm)?;
    writer.activate(&kid)?;
    Ok(kid)
}

/// Performs the first step of a rotation: adds a key, which verifies tokens but does not sign them yet. Returns its
/// `kid`.
///
/// # Errors
/// [`KeysError`], for example if an existing file is invalid.
pub fn add(path: &Path, algorithm: Algorithm) -> Result<String, KeysError> {
    read(path, Want::Signing)?;
    Writer::open(path)?.add(algorithm)
}

/// Performs the second step, after every verifier has the new key: activates the key, which then signs. Without a
/// `kid`, it activates the only inactive key. Returns its `kid`.
///
/// # Errors
/// [`KeysError`].
pub fn promote(path: &Path, kid: Option<&str>) -> Result<String, KeysError> {
    let writer = Writer::open(path)?;
    // The active key is not read: it may be invalid, and this repairs that.
    let keys = read(path, Want::Verifying)?;
    let active = active(&writer.directory).unwrap_or_default();
    let candidates: Vec<String> = writer
        .private()?
        .into_iter()
        .filter(|kid| Some(kid) != active.as_ref())
        .collect();
    let kid = match (kid, candidates.as_slice()) {
        (Some(kid), _) => kid,
        (None, [only]) => only,
        (None, []) => {
            return Err(KeysError::new(
                path,
                "it contains no inactive key: add one with `rotate add`",
            ));
        }
        (None, several) => {
            let why = format!("it contains several inactive keys: name one of {}", several.join(", "));
            return Err(KeysError::new(path, why));
        }
    };
    writer.can_sign(&keys, kid)?;
    writer.activate(kid)?;
    Ok(kid.to_owned())
}

/// Performs the third step, after the last token that the key signed has expired: removes the key. From then on, its
/// tokens are rejected.
///
/// # Errors
/// [`KeysError`], for example if the key is active.
pub fn retire(path: &Path, kid: &str) -> Result<(), KeysError> {
    let writer = Writer::open(path)?;
    let keys = read(path, Want::Signing)?;
    if keys.signing().is_some_and(|signing| signing.kid() == kid) {
        let why = format!("the key {kid} is active: activate another key first with `rotate promote`");
        return Err(KeysError::new(path, why));
    }
    if !is_file_name(kid) {
        return Err(writer.no_such_key(kid));
    }
    let refused = |e: Refusal| KeysError::refused(path, &e);
    let mut removed = false;
    for (name, file) in [(SIGNING, format!("{kid}.pem")), (HS256, format!("{kid}.jwk"))] {
        if let Some(directory) = writer.inner(name)? {
            removed |= directory.remove(file.as_ref()).map_err(refused)?;
        }
    }
    removed |= writer.directory.remove(public_name(kid).as_ref()).map_err(refused)?;
    match read(path, Want::Signing)?.verifying().get(kid) {
        Some(_) => Err(KeysError::new(
            path,
            format!("a file with another name also contains the key {kid}: remove it there, too"),
        )),
        None if removed => Ok(()),
        None => Err(writer.no_such_key(kid)),
    }
}

/// Restricts an existing directory of private keys to its owner. All directories of the path are trusted, so the path
/// still denotes the opened directory.
fn close(path: &Path) -> Result<(), KeysError> {
    let mode = fs::metadata(path).map_err(|e| KeysError::new(path, e))?.mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(PRIVATE_DIRECTORY)).map_err(|e| {
        let why = format!("mode {mode:04o} allows access by others, and could not be changed ({e}): use chmod 0700");
        KeysError::new(path, why)
    })
}

fn public_name(kid: &str) -> String {
    format!("{kid}.pub.jwk")
}

/// A key directory that is locked for writing.
struct Writer {
    directory: Directory,
    _lock: OwnedFd,
}

impl Writer {
    fn open(path: &Path) -> Result<Self, KeysError> {
        Self::new(path, secure_path::open_directory(path, Owners::process()))
    }

    fn new(path: &Path, directory: Result<Directory, Refusal>) -> Result<Self, KeysError> {
        let refused = |e: Refusal| KeysError::refused(path, &e);
        let directory = directory.map_err(refused)?;
        match directory.lock().map_err(refused)? {
            Some(lock) => Ok(Self { directory, _lock: lock }),
            None => Err(KeysError::new(path, "another command is writing to it: try again")),
        }
    }

    fn inner(&self, name: &str) -> Result<Option<Directory>, KeysError> {
        match self.directory.directory(name.as_ref()) {
            Ok(directory) => Ok(Some(directory)),
            Err(Refusal::Io(e)) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(KeysError::refused(&self.directory.path().join(name), &e)),
        }
    }

    /// Returns whether it contains any file that may contain a key.
    fn has_any(&self, name: Option<&str>) -> Result<bool, KeysError> {
        let inner;
        let directory = match name {
            None => &self.directory,
            Some(name) => match self.inner(name)? {
                None => return Ok(false),
                Some(directory) => {
                    inner = directory;
                    &inner
                }
            },
        };
        let names = directory
            .names(usize::MAX)
            .map_err(|e| KeysError::refused(directory.path(), &e))?;
        Ok(names
            .iter()
            .any(|name| ![SIGNING, HS256].iter().any(|inner| name == inner)))
    }

    fn add(&self, algorithm: Algorithm) -> Result<String, KeysError> {
        let key = SigningKey::generate(algorithm);
        let kid = key.kid().to_owned();
        let write = |directory: &Directory, name: String, mode: u32, content: &[u8]| {
            let written = directory.write(name.as_ref(), mode, content, false);
            written.map_err(|e| KeysError::refused(&directory.path().join(name), &e))
        };
        let inner = |name: &str| {
            let made = self.directory.make_directory(name.as_ref(), PRIVATE_DIRECTORY);
            let made = made.map_err(|e| KeysError::refused(&self.directory.path().join(name), &e))?;
            close(made.path())?;
            Ok(made)
        };
        match (key.to_pem(), key.verifying_key().to_jwk()) {
            (Some(pem), Some(public)) => {
                write(
                    &inner(SIGNING)?,
                    format!("{kid}.pem"),
                    PRIVATE,
                    pem.expose_secret().as_bytes(),
                )?;
                write(
                    &self.directory,
                    public_name(&kid),
                    PUBLIC,
                    format!("{public}\n").as_bytes(),
                )?;
            }
            // A secret has no public part.
            _ => write(
                &inner(HS256)?,
                format!("{kid}.jwk"),
                PRIVATE,
                key.to_jwk().expose_secret().as_bytes(),
            )?,
        }
        Ok(kid)
    }

    fn activate(&self, kid: &str) -> Result<(), KeysError> {
        let written = self
            .directory
            .write(ACTIVE.as_ref(), PUBLIC, format!("{kid}\n").as_bytes(), true);
        written.map_err(|e| KeysError::refused(&self.directory.path().join(ACTIVE), &e))
    }

    /// Returns the `kid` of each key that can sign, by the names of the files.
    fn private(&self) -> Result<Vec<String>, KeysError> {
        let mut kids = Vec::new();
        for (name, extension) in [(SIGNING, ".pem"), (HS256, ".jwk")] {
            let Some(directory) = self.inner(name)? else { continue };
            let names = directory
                .names(usize::MAX)
                .map_err(|e| KeysError::refused(directory.path(), &e))?;
            kids.extend(
                names
                    .iter()
                    .filter_map(|name| Some(name.to_str()?.strip_suffix(extension)?.to_owned())),
            );
        }
        Ok(kids)
    }

    /// Checks that a key can sign tokens and that its public key verifies them.
    fn can_sign(&self, keys: &Keys, kid: &str) -> Result<(), KeysError> {
        if !is_file_name(kid) || !self.private()?.iter().any(|private| private == kid) {
            return Err(self.no_such_key(kid));
        }
        let Some(public) = keys.verifying().get(kid) else {
            let why = format!("the public key of {kid} is missing, so no service could verify its tokens: restore it");
            return Err(KeysError::new(self.directory.path(), why));
        };
        // A secret has no other part, and was already read.
        if public.algorithm().is_asymmetric()
            && let Some(signing) = self.inner(SIGNING)?
            && private_key(&signing, kid)?.verifying_key().thumbprint() != public.thumbprint()
        {
            let why = format!("the public key of {kid} does not belong to its private key: restore the right one");
            return Err(KeysError::new(self.directory.path(), why));
        }
        Ok(())
    }

    fn no_such_key(&self, kid: &str) -> KeysError {
        let why = format!("there is no key {}: see `rotate list`", kid.escape_debug());
        KeysError::new(self.directory.path(), why)
    }
}
