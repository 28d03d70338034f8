// SPDX-License-Identifier: MIT OR Apache-2.0

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey};
use aws_lc_rs::{digest, hmac};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::crypto::JwtVerifier;
use jsonwebtoken::signature::{self, Verifier};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::jwk::Jwk;
use super::secret::Secret;
use super::{KeyError, MAX_KID_LEN, der, ed25519, pem, rsa};
use crate::Algorithm;

/// A key that verifies tokens, by one algorithm only.
///
/// Public, but for HS256, where it is the secret itself, which is zeroized with the last clone. Cheap to clone.
#[derive(Clone)]
pub struct VerifyingKey(Arc<BoundKey>);

struct BoundKey {
    kid: String,
    public: Public,
}

/// A public key as aws-lc keeps it: parsed once, and used by all threads.
///
/// It is one of jsonwebtoken's verifiers, and not one that its provider makes, as those parse the key again for each
/// token (see [`SigningKey`](super::SigningKey)'s).
#[derive(Clone)]
pub(super) enum Public {
    Ed(ParsedPublicKey),
    Es(ParsedPublicKey),
    Rs(rsa::Public),
    Hs(Arc<Secret>),
}

impl VerifyingKey {
    /// Reads a public key from a PEM file's contents (RFC 7468): `PUBLIC KEY` (SubjectPublicKeyInfo, RFC 5280
    /// section 4.1) or `RSA PUBLIC KEY` (PKCS #1, RFC 8017 appendix A.1.1). Its `kid` is its thumbprint.
    ///
    /// ```
    /// use token::{Algorithm, SigningKey, VerifyingKey};
    ///
    /// let key = SigningKey::generate(Algorithm::EdDsa).verifying_key();
    /// let pem = key.to_pem().expect("a public key");
    /// assert_eq!(VerifyingKey::from_pem(pem.as_bytes())?.kid(), key.kid());
    /// # Ok::<(), token::KeyError>(())
    /// ```
    ///
    /// # Errors
    /// [`KeyError`] tells what is wrong; private keys and certificates are refused.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        if let Some(command) = pem::certificate_command(pem) {
            return Err(KeyError::Certificate(command));
        }
        let (label, der) = pem::read_key(pem)?;
        let public = match label {
            "PUBLIC KEY" => Public::from_spki(&der)?,
            "RSA PUBLIC KEY" => Public::rs(&der)?,
            _ if label.ends_with("PRIVATE KEY") => return Err(KeyError::PrivateAsPublic),
            _ => return Err(KeyError::NotPublic(pem::printable(label))),
        };
        Ok(Self::of(public, None))
    }

    /// Reads a public key from a JWK (RFC 7517 section 4). Its `kid` is the JWK's, or its thumbprint where it has none.
    ///
    /// ```
    /// use token::{Algorithm, KeyError, VerifyingKey};
    ///
    /// // The key of RFC 8037, appendix A.2.
    /// let jwk = br#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    /// assert_eq!(VerifyingKey::from_jwk(jwk)?.algorithm(), Algorithm::EdDsa);
    /// # Ok::<(), KeyError>(())
    /// ```
    ///
    /// # Errors
    /// [`KeyError`] tells what is wrong; private keys and secrets (`"kty":"oct"`) are refused, and so are keys whose `alg`,
    /// `use` or `key_ops` say that they are for something else.
    pub fn from_jwk(jwk: &[u8]) -> Result<Self, KeyError> {
        let jwk = Jwk::read(jwk)?;
        let algorithm = jwk.algorithm()?;
        if algorithm == Algorithm::Hs256 {
            return Err(KeyError::SecretAsPublic);
        }
        if jwk.is_private() {
            return Err(KeyError::PrivateAsPublic);
        }
        jwk.is_for("verify")?;
        Ok(Self::of(Public::from_jwk(&jwk, algorithm)?, jwk.kid()?))
    }

    /// A secret for HS256, of at least [`MIN_KEY_LEN`](super::MIN_KEY_LEN) bytes, which are used as they are. Its `kid` is
    /// its thumbprint.
    ///
    /// ```
    /// use token::{Algorithm, KeyError, VerifyingKey};
    ///
    /// let key = VerifyingKey::from_secret(b"an example and the secret of nobody")?;
    /// assert_eq!(key.algorithm(), Algorithm::Hs256);
    /// assert_eq!(VerifyingKey::from_secret(&[7; 32]).err(), Some(KeyError::Repetition));
    /// # Ok::<(), KeyError>(())
    /// ```
    ///
    /// # Errors
    /// [`KeyError::TooShort`]; [`KeyError::Repetition`] where it repeats a few bytes; [`KeyError::KeyAsSecret`] where it is a
    /// file of a key that may be a public one: PEM, a JWK, a key of SSH, a public key in DER or a point of P-256, or one of
    /// these in base64 or hexadecimal. Other bare numbers, such as the 32 bytes of an Ed25519 key, cannot be told from a
    /// secret.
    pub fn from_secret(secret: &[u8]) -> Result<Self, KeyError> {
        Secret::new(secret).map(|secret| Self::of(Public::Hs(secret.into()), None))
    }

    pub(super) fn of(public: Public, kid: Option<&str>) -> Self {
        let kid = kid.map_or_else(|| public.thumbprint(), str::to_owned);
        Self(Arc::new(BoundKey { kid, public }))
    }

    /// The same key under another name, such as the one that its issuer gives it.
    ///
    /// ```
    /// use token::{Algorithm, SigningKey};
    ///
    /// let key = SigningKey::generate(Algorithm::EdDsa).verifying_key();
    /// assert_eq!(key.with_kid("2026")?.kid(), "2026");
    /// # Ok::<(), token::KeyError>(())
    /// ```
    ///
    /// # Errors
    /// [`KeyError::Kid`] where the name is empty or too long.
    pub fn with_kid(&self, kid: &str) -> Result<Self, KeyError> {
        if kid.is_empty() || kid.len() > MAX_KID_LEN {
            return Err(KeyError::Kid);
        }
        Ok(Self(Arc::new(BoundKey {
            kid: kid.to_owned(),
            public: self.0.public.clone(),
        })))
    }

    /// The name that a token's header refers to the key by (RFC 7515 section 4.1.4).
    ///
    /// ```
    /// use token::{Algorithm, SigningKey};
    ///
    /// let key = SigningKey::generate(Algorithm::EdDsa).verifying_key();
    /// assert_eq!(key.kid(), key.thumbprint());
    /// ```
    pub fn kid(&self) -> &str {
        &self.0.kid
    }

    /// The SHA-256 thumbprint, in base64url (RFC 7638 section 3).
    ///
    /// That of a secret is computed from the secret: who has it can try secrets at his leisure (section 7), as he can
    /// with any token, so that secrets must be random.
    ///
    /// ```
    /// use token::VerifyingKey;
    ///
    /// // The key of RFC 8037, appendix A.2, and its thumbprint in appendix A.3.
    /// let jwk = br#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    /// let key = VerifyingKey::from_jwk(jwk)?;
    /// assert_eq!(key.thumbprint(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    /// # Ok::<(), token::KeyError>(())
    /// ```
    pub fn thumbprint(&self) -> String {
        self.0.public.thumbprint()
    }

    /// The only algorithm that the key verifies.
    ///
    /// ```
    /// use token::{Algorithm, SigningKey};
    ///
    /// assert_eq!(SigningKey::generate(Algorithm::Es256).verifying_key().algorithm(), Algorithm::Es256);
    /// ```
    pub fn algorithm(&self) -> Algorithm {
        match self.0.public {
            Public::Ed(_) => Algorithm::EdDsa,
            Public::Es(_) => Algorithm::Es256,
            Public::Rs(_) => Algorithm::Rs256,
            Public::Hs(_) => Algorithm::Hs256,
        }
    }

    /// The key as a JWK with `kid`, `alg` and `use`; `None` for HS256, whose key is not public.
    ///
    /// ```
    /// use token::{Algorithm, SigningKey};
    ///
    /// let key = SigningKey::generate(Algorithm::EdDsa).verifying_key();
    /// assert_eq!(key.to_jwk().expect("a public key")["crv"], "Ed25519");
    /// assert!(SigningKey::generate(Algorithm::Hs256).verifying_key().to_jwk().is_none());
    /// ```
    pub fn to_jwk(&self) -> Option<Value> {
        let mut jwk = json!({"kid": self.kid(), "alg": self.algorithm().as_str(), "use": "sig"});
        if !self.algorithm().is_asymmetric() {
            return None;
        }
        for (name, value) in self.0.public.members() {
            jwk[name] = Value::String(value.to_string());
        }
        Some(jwk)
    }

    /// The key as PEM (`PUBLIC KEY`); `None` for HS256, whose key is not public.
    ///
    /// ```
    /// use token::{Algorithm, SigningKey};
    ///
    /// let pem = SigningKey::generate(Algorithm::Es256).verifying_key().to_pem().expect("a public key");
    /// assert!(pem.starts_with("-----BEGIN PUBLIC KEY-----"));
    /// ```
    pub fn to_pem(&self) -> Option<String> {
        let pem = match &self.0.public {
            Public::Ed(key) => der::ed25519_pem(key.as_ref()),
            Public::Es(key) => der::p256_pem(key.as_ref()),
            Public::Rs(key) => der::rsa_pem(&key.n, &key.e),
            Public::Hs(_) => return None,
        };
        // Each of them is a few numbers of limited length.
        Some(pem.expect("a public key can be encoded"))
    }

    /// The members of the JWK that its thumbprint is of.
    pub(super) fn members(&self) -> Vec<(&'static str, Zeroizing<String>)> {
        self.0.public.members()
    }

    /// Returns whether `signature` is one of `message` by this key.
    pub(crate) fn verifies(&self, message: &[u8], signature: &Vec<u8>) -> bool {
        self.0.public.verify(message, signature).is_ok()
    }
}

/// Shows which key it is, and nothing of it.
impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({} {:?})", self.algorithm(), self.kid())
    }
}

impl Verifier<Vec<u8>> for Public {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        match self {
            Self::Ed(key) | Self::Es(key) | Self::Rs(rsa::Public { key, .. }) => key.verify_sig(message, signature),
            // In a time that does not depend on where they differ.
            Self::Hs(secret) => hmac::verify(&secret.key, message, signature),
        }
        .map_err(signature::Error::from_source)
    }
}

impl JwtVerifier for Public {
    fn algorithm(&self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Ed(_) => jsonwebtoken::Algorithm::EdDSA,
            Self::Es(_) => jsonwebtoken::Algorithm::ES256,
            Self::Rs(_) => jsonwebtoken::Algorithm::RS256,
            Self::Hs(_) => jsonwebtoken::Algorithm::HS256,
        }
    }
}

impl Public {
    pub(super) fn ed(key: &[u8]) -> Result<Self, KeyError> {
        const INVALID: KeyError = KeyError::Invalid("Ed25519");
        ed25519::check(key.try_into().map_err(|_| INVALID)?)?;
        ParsedPublicKey::new(&ED25519, key).map(Self::Ed).map_err(|_| INVALID)
    }

    /// An uncompressed point (SEC 1 section 2.3.3).
    pub(super) fn es(point: &[u8]) -> Result<Self, KeyError> {
        const INVALID: KeyError = KeyError::Invalid("P-256");
        match (point.len(), point.first()) {
            (65, Some(4)) => ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                .map(Self::Es)
                .map_err(|_| INVALID),
            (33, Some(2 | 3)) => Err(KeyError::CompressedPoint),
            _ => Err(INVALID),
        }
    }

    /// PKCS #1 (RFC 8017 appendix A.1.1).
    fn rs(der: &[u8]) -> Result<Self, KeyError> {
        let [n, e] = der::rsa_public(der)?;
        rsa::Public::new(n, e).map(Self::Rs)
    }

    fn from_spki(der: &[u8]) -> Result<Self, KeyError> {
        match der::public(der)? {
            der::DerKey::Ed25519(key) => Self::ed(key),
            der::DerKey::P256(point) => Self::es(point),
            der::DerKey::Rsa(key) => Self::rs(key),
        }
    }

    pub(super) fn from_jwk(jwk: &Jwk, algorithm: Algorithm) -> Result<Self, KeyError> {
        match algorithm {
            Algorithm::EdDsa => Self::ed(&*jwk.bytes32("x", "`x` is missing")?),
            Algorithm::Es256 => {
                let (x, y) = (jwk.bytes32("x", "`x` is missing")?, jwk.bytes32("y", "`y` is missing")?);
                Self::es(&[&[4][..], &*x, &*y].concat())
            }
            Algorithm::Rs256 => {
                let (n, e) = (jwk.bytes("n", "`n` is missing")?, jwk.bytes("e", "`e` is missing")?);
                rsa::Public::new(&n, &e).map(Self::Rs)
            }
            Algorithm::Hs256 => Ok(Self::Hs(Secret::new(&jwk.bytes("k", "`k` is missing")?)?.into())),
        }
    }

    /// The members of the JWK that its thumbprint is of, in the order of their names (RFC 7638 section 3.2).
    fn members(&self) -> Vec<(&'static str, Zeroizing<String>)> {
        let base64 = |bytes: &[u8]| Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes));
        let name = |name: &str| Zeroizing::new(name.to_owned());
        match self {
            Self::Ed(key) => vec![
                ("crv", name("Ed25519")),
                ("kty", name("OKP")),
                ("x", base64(key.as_ref())),
            ],
            Self::Es(key) => {
                let (x, y) = key.as_ref()[1..].split_at(32);
                vec![
                    ("crv", name("P-256")),
                    ("kty", name("EC")),
                    ("x", base64(x)),
                    ("y", base64(y)),
                ]
            }
            Self::Rs(key) => vec![("e", base64(&key.e)), ("kty", name("RSA")), ("n", base64(&key.n))],
            Self::Hs(secret) => vec![("k", base64(secret.bytes())), ("kty", name("oct"))],
        }
    }

    fn thumbprint(&self) -> String {
        let mut hash = digest::Context::new(&digest::SHA256);
        for (i, (name, value)) in self.members().iter().enumerate() {
            for piece in [if i == 0 { "{\"" } else { ",\"" }, name, "\":\"", value, "\""] {
                hash.update(piece.as_bytes());
            }
        }
        hash.update(b"}");
        URL_SAFE_NO_PAD.encode(hash.finish())
    }
}
