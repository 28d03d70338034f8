//! Writing a key directory: a new one, and the three steps of a rotation.
//!
//! Each step is one that a running instance can see at any moment: files are put in their place whole, private keys
//! before their public ones, and taken away in the order that leaves no active key without its public one.

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

/// Everyone may read what is public, and what is private nobody but the owner.
const PUBLIC_DIRECTORY: u32 = 0o755;
const PRIVATE_DIRECTORY: u32 = 0o700;
const PUBLIC: u32 = 0o644;
const PRIVATE: u32 = 0o600;

/// Makes a key directory with one key, which signs. Returns its `kid`.
///
/// # Errors
/// [`KeysError`], also where there are keys already: they are not replaced.
pub fn create(path: &Path, algorithm: Algorithm) -> Result<String, KeysError> {
    let writer = Writer::new(
        path,
        secure_path::make_directory(path, PUBLIC_DIRECTORY, Owners::process()),
    )?;
    for name in [None, Some(SIGNING), Some(HS256)] {
        if writer.has_any(name)? {
            let why = "there are keys already: add one with `flux workflow-token rotate add`";
            return Err(KeysError::new(path, why));
        }
    }
    let kid = writer.add(algorithm)?;
    writer.activate(&kid)?;
    Ok(kid)
}

/// The first step of a rotation: adds a key, with which tokens are verified from now on, and not yet signed. Returns its
/// `kid`.
///
/// # Errors
/// [`KeysError`], also where what is there is not in order.
pub fn add(path: &Path, algorithm: Algorithm) -> Result<String, KeysError> {
    read(path, Want::Signing)?;
    Writer::open(path)?.add(algorithm)
}

/// The second step, to be taken when every verifier has the new key: signs with it from now on. Without a `kid`, the only
/// key that was added and is not active. Returns its `kid`.
///
/// # Errors
/// [`KeysError`].
pub fn promote(path: &Path, kid: Option<&str>) -> Result<String, KeysError> {
    let writer = Writer::open(path)?;
    // Without the active key, which may be what is wrong, and is going to be put right.
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
                "there is no other key to sign with: add one with `rotate add`",
            ));
        }
        (None, several) => {
            let why = format!(
                "there are several keys to sign with: name one of {}",
                several.join(", ")
            );
            return Err(KeysError::new(path, why));
        }
    };
    writer.can_sign(&keys, kid)?;
    writer.activate(kid)?;
    Ok(kid.to_owned())
}

/// The third step, to be taken when the last token that was signed with the key has expired: takes the key away. From now
/// on its tokens are refused.
///
/// # Errors
/// [`KeysError`], also for the active key.
pub fn retire(path: &Path, kid: &str) -> Result<(), KeysError> {
    let writer = Writer::open(path)?;
    let keys = read(path, Want::Signing)?;
    if keys.signing().is_some_and(|signing| signing.kid() == kid) {
        let why = format!("the key {kid} is the active one: have another sign first, with `rotate promote`");
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
            format!("a file of another name has the key {kid}, so that it stays: remove it there"),
        )),
        None if removed => Ok(()),
        None => Err(writer.no_such_key(kid)),
    }
}

/// Closes a directory of private keys that was there before, and let others in. The way to it is trusted, so that its
/// path is what was opened.
fn close(path: &Path) -> Result<(), KeysError> {
    let mode = fs::metadata(path).map_err(|e| KeysError::new(path, e))?.mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(PRIVATE_DIRECTORY)).map_err(|e| {
        let why =
            format!("mode {mode:04o} lets others than its owner in, and could not be changed ({e}): use chmod 0700");
        KeysError::new(path, why)
    })
}

fn public_name(kid: &str) -> String {
    format!("{kid}.pub.jwk")
}

/// A key directory that nobody else writes to meanwhile.
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

    /// Returns whether there is any file that a key could be in.
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

    /// The `kid` of all keys that could sign, by the names of their files.
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

    /// Checks that a key signs tokens, which can be verified.
    fn can_sign(&self, keys: &Keys, kid: &str) -> Result<(), KeysError> {
        if !is_file_name(kid) || !self.private()?.iter().any(|private| private == kid) {
            return Err(self.no_such_key(kid));
        }
        let Some(public) = keys.verifying().get(kid) else {
            let why = format!("the public key of {kid} is not there: no service could verify its tokens");
            return Err(KeysError::new(self.directory.path(), why));
        };
        // A secret was read with the others.
        if public.algorithm().is_asymmetric()
            && let Some(signing) = self.inner(SIGNING)?
            && private_key(&signing, kid)?.verifying_key().thumbprint() != public.thumbprint()
        {
            let why = format!("the public key of {kid} is not that of its private key");
            return Err(KeysError::new(self.directory.path(), why));
        }
        Ok(())
    }

    fn no_such_key(&self, kid: &str) -> KeysError {
        let why = format!("there is no key {}: see `rotate list`", kid.escape_debug());
        KeysError::new(self.directory.path(), why)
    }
}
