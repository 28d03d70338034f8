// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reads a key directory, or a single file of keys.
//!
//! | in the directory | contents |
//! |---|---|
//! | `*.pem`, `*.jwk`, `*.jwks` | public keys, which verify tokens |
//! | `signing/KID.pem` | private keys, which only their owner can read |
//! | `hs256/*.jwk` | secrets for HS256, which only their owner can read |
//! | `active` | the `kid` of the key that signs |
//!
//! Other files are ignored. Only this user and root may be able to change the directory. If one file is invalid, none
//! is used.

use std::{
    ffi::OsStr,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use secure_path::{Directory, Owners};
use token::{Algorithm, HmacKey, KeyError, KeySet, SigningKey, VerifyingKey};
use zeroize::Zeroizing;

use crate::secure_file::{self, Refusal};

/// The file that names the key that signs.
pub(super) const ACTIVE: &str = "active";
/// The directory of private keys.
pub(super) const SIGNING: &str = "signing";
/// The directory of secrets for HS256.
pub(super) const HS256: &str = "hs256";

/// The maximum number of entries of one directory.
const MAX_ENTRIES: usize = 1024;

/// The longest file with one key, in bytes. An RSA key of 16,384 bits takes 13 KiB.
pub const MAX_KEY_FILE: usize = 64 * 1024;

/// The longest JWKS, in bytes.
const MAX_JWKS: usize = 1024 * 1024;

/// The keys of an issuer. [`Want`] determines which of them were read.
#[derive(Debug)]
pub struct Keys {
    verifying: Arc<KeySet>,
    signing: Option<Arc<SigningKey>>,
    private: Vec<String>,
    notes: Vec<String>,
}

impl Keys {
    /// Returns the keys that verify tokens.
    pub fn verifying(&self) -> &Arc<KeySet> {
        &self.verifying
    }

    /// Returns the active key, which signs tokens.
    pub fn signing(&self) -> Option<&Arc<SigningKey>> {
        self.signing.as_ref()
    }

    /// Returns the `kid` of each key that can become the active one.
    pub fn private(&self) -> &[String] {
        &self.private
    }

    /// Returns lines for the operator about unused keys, with the reasons.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// The reason why no keys are available: the path, the cause and the next step. It contains no key material. It is one
/// line of plain characters, because the creators of keys choose their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeysError {
    path: PathBuf,
    why: String,
    pub(super) is_missing: bool,
}

impl KeysError {
    pub(super) fn new(path: &Path, why: impl fmt::Display) -> Self {
        Self {
            path: path.to_owned(),
            why: why.to_string(),
            is_missing: false,
        }
    }

    pub(super) fn refused(path: &Path, refusal: &Refusal) -> Self {
        Self {
            is_missing: matches!(refusal, Refusal::Io(e) if e.kind() == io::ErrorKind::NotFound),
            ..Self::new(path, refusal)
        }
    }
}

impl fmt::Display for KeysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}: {}", self.path.display(), self.why);
        f.write_str(&token::plain(&text))
    }
}

impl std::error::Error for KeysError {}

/// The keys to read from a key directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Want {
    /// Keys that verify tokens. Private keys need not be readable.
    Verifying,
    /// Keys that verify tokens, and the key that signs them.
    Signing,
}

/// Reads a key directory, or a file with public keys: a JWKS, a JWK or a PEM block.
///
/// # Errors
/// [`KeysError`] if any file is invalid.
pub fn read(path: &Path, want: Want) -> Result<Keys, KeysError> {
    if path.is_dir() || want == Want::Signing {
        let directory =
            secure_path::open_directory(path, Owners::process()).map_err(|e| KeysError::refused(path, &e))?;
        return Reader::default().directory(&directory, want);
    }
    let bytes = secure_file::read_public(path, MAX_JWKS).map_err(|e| KeysError::refused(path, &e))?;
    let mut reader = Reader::default();
    if bytes.trim_ascii_start().starts_with(b"{") && is_jwks(&bytes) {
        reader.jwks(path, &bytes)?;
    } else {
        reader.public(path, &bytes)?;
    }
    reader.some(path)
}

/// Reads a file with a secret for HS256: a JWK of type `oct`; a PEM block with a private key, whose DER bytes are the
/// secret, as for the rabbit software; or the bytes of the secret, with an optional newline at the end.
///
/// # Errors
/// [`KeysError`].
pub fn read_secret(path: &Path) -> Result<Keys, KeysError> {
    let bytes = secure_file::read_private(path, MAX_KEY_FILE).map_err(|e| KeysError::refused(path, &e))?;
    const PEM: &[u8] = b"-----BEGIN ";
    let wrong = |e: KeyError| KeysError::new(path, e);
    let text = bytes.trim_ascii_start();
    let key = if text.starts_with(b"{") {
        secret_of_jwk(path, &bytes)?.verifying_key()
    } else if bytes.windows(PEM.len()).any(|part| part == PEM) {
        // This includes a block after other text, which the parser rejects with a better message.
        HmacKey::from_pem(&bytes).map_err(wrong)?.verifying_key()
    } else {
        let secret = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
        VerifyingKey::from_secret(secret).map_err(wrong)?
    };
    Ok(Keys {
        verifying: Arc::new(KeySet::from(key)),
        signing: None,
        private: Vec::new(),
        notes: Vec::new(),
    })
}

#[derive(Default)]
struct Reader {
    verifying: KeySet,
    notes: Vec<String>,
}

impl Reader {
    fn directory(mut self, directory: &Directory, want: Want) -> Result<Keys, KeysError> {
        let at = |name: &OsStr| directory.path().join(name);
        for name in names(directory)? {
            let path = at(&name);
            match path.extension().and_then(OsStr::to_str) {
                Some("pem" | "jwk") => self.public(&path, &content(directory, &name, MAX_KEY_FILE)?)?,
                Some("jwks") => self.jwks(&path, &content(directory, &name, MAX_JWKS)?)?,
                _ => {}
            }
        }
        let mut secrets = Vec::new();
        if let Some(directory) = optional(directory.directory(HS256.as_ref()), &at(HS256.as_ref()))? {
            for name in names(&directory)? {
                let path = directory.path().join(&name);
                if path.extension().is_some_and(|extension| extension == "jwk") {
                    let key = secret_of_jwk(&path, &private_content(&directory, &name)?)?;
                    self.insert(&path, &KeySet::from(key.verifying_key()))?;
                    secrets.push(Arc::new(key));
                }
            }
        }
        if want == Want::Verifying {
            return self.some(directory.path());
        }

        let mut private = Vec::new();
        let signing_directory = optional(directory.directory(SIGNING.as_ref()), &at(SIGNING.as_ref()))?;
        if let Some(directory) = &signing_directory {
            for name in names(directory)? {
                let path = directory.path().join(&name);
                let Some(kid) = path
                    .to_str()
                    .filter(|path| path.ends_with(".pem"))
                    .and(path.file_stem())
                else {
                    continue;
                };
                // Inactive keys are checked, too: if others could read a key before, they may have copied it.
                open_private(directory, &name)?;
                private.push(kid.to_string_lossy().into_owned());
            }
        }
        let signing = match active(directory)? {
            None => None,
            Some(kid) => {
                let path = at(ACTIVE.as_ref());
                let key = match &signing_directory {
                    Some(directory) if private.contains(&kid) => Some(Arc::new(private_key(directory, &kid)?)),
                    _ => secrets.iter().find(|key| key.kid() == kid).cloned(),
                };
                let Some(key) = key else {
                    let why = format!(
                        "it names the key {kid}, but there is neither {SIGNING}/{kid}.pem nor a secret in {HS256}: \
                         restore it, or activate another key with `[flux] workflow-token rotate promote`"
                    );
                    return Err(KeysError {
                        is_missing: true,
                        ..KeysError::new(&path, why)
                    });
                };
                let verifies = self.verifying.find(&kid, key.algorithm());
                if verifies.is_none_or(|public| public.thumbprint() != key.verifying_key().thumbprint()) {
                    let why = format!(
                        "it names the key {kid}, whose public key is missing, so no service could verify its tokens: \
                         restore it, or activate another key with `[flux] workflow-token rotate promote`"
                    );
                    return Err(KeysError::new(&path, why));
                }
                Some(key)
            }
        };
        private.extend(secrets.iter().map(|key| key.kid().to_owned()));
        Ok(Keys {
            signing,
            private,
            ..self.some(directory.path())?
        })
    }

    fn some(self, path: &Path) -> Result<Keys, KeysError> {
        if self.verifying.is_empty() {
            let skipped = self.notes.first().map(|note| format!(" ({note})")).unwrap_or_default();
            return Err(KeysError::new(
                path,
                format!("it contains no key that can verify tokens{skipped}"),
            ));
        }
        Ok(Keys {
            verifying: Arc::new(self.verifying),
            signing: None,
            private: Vec::new(),
            notes: self.notes,
        })
    }

    /// Adds the key in a file with one public key.
    fn public(&mut self, path: &Path, bytes: &[u8]) -> Result<(), KeysError> {
        let key = if bytes.trim_ascii_start().starts_with(b"{") {
            VerifyingKey::from_jwk(bytes)
        } else {
            VerifyingKey::from_pem(bytes)
        };
        let key = key.map_err(|e| KeysError::new(path, e))?;
        self.insert(path, &KeySet::from(key))
    }

    fn jwks(&mut self, path: &Path, bytes: &[u8]) -> Result<(), KeysError> {
        let (keys, skipped) = KeySet::from_jwks(bytes).map_err(|e| KeysError::new(path, e))?;
        for key in skipped {
            let why = format!("the key keys[{}] is ignored: {}", key.index, key.reason);
            self.notes.push(KeysError::new(path, why).to_string());
        }
        self.insert(path, &keys)
    }

    /// Adds the keys of a file. Only keys of one file may share a kid.
    fn insert(&mut self, path: &Path, keys: &KeySet) -> Result<(), KeysError> {
        for key in keys.iter() {
            let same = self.verifying.find(key.kid(), key.algorithm());
            let is_known = same.is_some_and(|same| same.thumbprint() == key.thumbprint());
            if self.verifying.get(key.kid()).is_some() && !is_known {
                let why = format!(
                    "another file contains a different key with the same kid, {}: give one of them another kid",
                    key.kid()
                );
                return Err(KeysError::new(path, why));
            }
        }
        keys.iter().for_each(|key| drop(self.verifying.insert(key.clone())));
        Ok(())
    }
}

/// Returns the `kid` in the file `active`; none if the file does not exist.
pub(super) fn active(directory: &Directory) -> Result<Option<String>, KeysError> {
    let path = directory.path().join(ACTIVE);
    let Some(file) = optional(directory.open(ACTIVE.as_ref()), &path)? else {
        return Ok(None);
    };
    let bytes = secure_file::read_all(file, MAX_KEY_FILE).map_err(|e| KeysError::refused(&path, &e))?;
    match std::str::from_utf8(&bytes).map(str::trim_ascii) {
        Ok(kid) if is_file_name(kid) => Ok(Some(kid.to_owned())),
        _ => Err(KeysError::new(
            &path,
            "it does not contain a kid: activate a key with `[flux] workflow-token rotate promote`",
        )),
    }
}

/// Returns whether a `kid` is a valid file name. Every thumbprint of RFC 7638 is one.
pub(super) fn is_file_name(kid: &str) -> bool {
    (1..=128).contains(&kid.len()) && kid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Reads the private key of a `kid`.
pub(super) fn private_key(signing: &Directory, kid: &str) -> Result<SigningKey, KeysError> {
    let name = format!("{kid}.pem");
    let path = signing.path().join(&name);
    let key = SigningKey::from_pem(&private_content(signing, name.as_ref())?).map_err(|e| KeysError::new(&path, e))?;
    if key.kid() != kid {
        let why = format!(
            "it contains the key {}, but is named after another one: rename it",
            key.kid()
        );
        return Err(KeysError::new(&path, why));
    }
    Ok(key)
}

fn secret_of_jwk(path: &Path, bytes: &[u8]) -> Result<SigningKey, KeysError> {
    let key = SigningKey::from_jwk(bytes).map_err(|e| KeysError::new(path, e))?;
    if key.algorithm() != Algorithm::Hs256 {
        return Err(KeysError::new(path, "it is not a secret for HS256 (a JWK of type oct)"));
    }
    Ok(key)
}

fn is_jwks(bytes: &[u8]) -> bool {
    KeySet::from_jwks(bytes).is_ok()
}

fn names(directory: &Directory) -> Result<Vec<std::ffi::OsString>, KeysError> {
    let names = directory.names(MAX_ENTRIES);
    names.map_err(|e| KeysError::refused(directory.path(), &e))
}

fn content(directory: &Directory, name: &OsStr, limit: usize) -> Result<Zeroizing<Vec<u8>>, KeysError> {
    let bytes = directory.open(name).and_then(|file| secure_file::read_all(file, limit));
    bytes.map_err(|e| KeysError::refused(&directory.path().join(name), &e))
}

fn private_content(directory: &Directory, name: &OsStr) -> Result<Zeroizing<Vec<u8>>, KeysError> {
    let bytes = open_private(directory, name).map(|file| secure_file::read_all(file, MAX_KEY_FILE))?;
    bytes.map_err(|e| KeysError::refused(&directory.path().join(name), &e))
}

fn open_private(directory: &Directory, name: &OsStr) -> Result<std::fs::File, KeysError> {
    let file = directory.open(name).and_then(|file| {
        secure_file::check_private(&file.metadata()?)?;
        Ok(file)
    });
    file.map_err(|e| KeysError::refused(&directory.path().join(name), &e))
}

fn optional<T>(opened: Result<T, Refusal>, path: &Path) -> Result<Option<T>, KeysError> {
    match opened {
        Ok(opened) => Ok(Some(opened)),
        Err(Refusal::Io(e)) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(KeysError::refused(path, &e)),
    }
}
