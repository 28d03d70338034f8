use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::pkcs8::{DecodePublicKey, EncodePublicKey, spki::der::pem::LineEnding};
use p256::ecdsa::signature::Verifier;
use p256::elliptic_curve::sec1::ToEncodedPoint;
use rsa::pkcs8::ObjectIdentifier;
use rsa::pkcs8::spki::SubjectPublicKeyInfoRef;
use rsa::traits::PublicKeyParts;
use rsa::{RsaPublicKey, pkcs1v15};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::jwk::{self, Jwk};
use super::mac::Secret;
use super::{KeyError, MAX_KID_LEN, pem, rsa as rsa_key};
use crate::Algorithm;

/// Object identifiers of kinds of keys: RFC 8410 section 3, RFC 5480 section 2.1.1, RFC 8017 appendix C.
pub(super) const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
pub(super) const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
pub(super) const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
pub(super) const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// A key that verifies tokens, by one algorithm only.
///
/// Public, but for HS256, where it is the secret itself, which is zeroized with the last clone. Cheap to clone.
#[derive(Clone)]
pub struct VerifyingKey(Arc<Inner>);

struct Inner {
    kid: String,
    public: Public,
}

pub(super) enum Public {
    Ed(ed25519_dalek::VerifyingKey),
    Es(p256::ecdsa::VerifyingKey),
    Rs(pkcs1v15::VerifyingKey<Sha256>),
    Hs(Arc<Secret>),
}

impl VerifyingKey {
    /// Reads a public key from a PEM file's contents (RFC 7468): `PUBLIC KEY` (SubjectPublicKeyInfo, RFC 5280
    /// section 4.1) or `RSA PUBLIC KEY` (PKCS #1, RFC 8017 appendix A.1.1). Its `kid` is its thumbprint.
    ///
    /// # Errors
    /// [`KeyError`] tells what is wrong; private keys and certificates are refused.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let (label, der) = pem::read(pem)?;
        let public = match label {
            "PUBLIC KEY" => Public::from_spki(&der)?,
            "RSA PUBLIC KEY" => Public::from_pkcs1(&der)?,
            _ if label.ends_with("PRIVATE KEY") => return Err(KeyError::PrivateAsPublic),
            _ => return Err(KeyError::NotPublic(pem::printable(label))),
        };
        Ok(Self::of(public, None))
    }

    /// Reads a public key from a JWK (RFC 7517 section 4). Its `kid` is the JWK's, or its thumbprint where it has none.
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
    /// # Errors
    /// [`KeyError::TooShort`]; [`KeyError::KeyAsSecret`] where it is a file of a key that may be a public one: PEM, a JWK, a
    /// key of SSH or a public key in DER, or the base64 of one of these. Bare numbers, such as the 32 bytes of an Ed25519
    /// key, cannot be told from a secret.
    pub fn from_secret(secret: &[u8]) -> Result<Self, KeyError> {
        Secret::new(secret).map(|secret| Self::of(Public::Hs(secret.into()), None))
    }

    pub(super) fn of(public: Public, kid: Option<&str>) -> Self {
        let kid = kid.map_or_else(|| public.thumbprint(), str::to_owned);
        Self(Arc::new(Inner { kid, public }))
    }

    /// The same key under another name, such as the one that its issuer gives it.
    ///
    /// # Errors
    /// [`KeyError::Kid`] where the name is empty or too long.
    pub fn with_kid(&self, kid: &str) -> Result<Self, KeyError> {
        if kid.is_empty() || kid.len() > MAX_KID_LEN {
            return Err(KeyError::Kid);
        }
        Ok(Self(Arc::new(Inner {
            kid: kid.to_owned(),
            public: self.0.public.copy(),
        })))
    }

    /// The name that a token's header refers to the key by (RFC 7515 section 4.1.4).
    pub fn kid(&self) -> &str {
        &self.0.kid
    }

    /// The SHA-256 thumbprint, in base64url (RFC 7638 section 3).
    ///
    /// That of a secret is computed from the secret: who has it can try secrets at his leisure (section 7), as he can with
    /// any token, so that secrets must be random.
    pub fn thumbprint(&self) -> String {
        self.0.public.thumbprint()
    }

    /// The only algorithm that the key verifies.
    pub fn algorithm(&self) -> Algorithm {
        match self.0.public {
            Public::Ed(_) => Algorithm::EdDsa,
            Public::Es(_) => Algorithm::Es256,
            Public::Rs(_) => Algorithm::Rs256,
            Public::Hs(_) => Algorithm::Hs256,
        }
    }

    /// The key as a JWK with `kid`, `alg` and `use`; `None` for HS256, whose key is not public.
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
    pub fn to_pem(&self) -> Option<String> {
        let pem = match &self.0.public {
            Public::Ed(key) => key.to_public_key_pem(LineEnding::LF),
            Public::Es(key) => key.to_public_key_pem(LineEnding::LF),
            Public::Rs(key) => key.as_ref().to_public_key_pem(LineEnding::LF),
            Public::Hs(_) => return None,
        };
        // Each of them is a few numbers of limited length.
        Some(pem.expect("a public key can be encoded"))
    }

    /// Whether `signature` is one of `message` by this key.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.0.public {
            // `verify_strict` also refuses points of small order: as a key they are refused when it is read, and as `R`
            // they give nobody but the signer anything.
            Public::Ed(key) => {
                ed25519_dalek::Signature::from_slice(signature).is_ok_and(|s| key.verify(message, &s).is_ok())
            }
            Public::Es(key) => {
                p256::ecdsa::Signature::from_slice(signature).is_ok_and(|s| key.verify(message, &s).is_ok())
            }
            Public::Rs(key) => pkcs1v15::Signature::try_from(signature).is_ok_and(|s| key.verify(message, &s).is_ok()),
            Public::Hs(secret) => secret.verify(message, signature),
        }
    }
}

/// Shows which key it is, and nothing of it.
impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({} {:?})", self.algorithm(), self.kid())
    }
}

impl Public {
    pub(super) fn ed(key: &[u8; 32]) -> Result<Self, KeyError> {
        let key = ed25519_dalek::VerifyingKey::from_bytes(key).map_err(|_| KeyError::Invalid("Ed25519"))?;
        Self::ed_strong(key)
    }

    /// Anyone can sign for a key of small order.
    fn ed_strong(key: ed25519_dalek::VerifyingKey) -> Result<Self, KeyError> {
        if key.is_weak() {
            return Err(KeyError::Invalid("Ed25519"));
        }
        Ok(Self::Ed(key))
    }

    pub(super) fn rs(key: RsaPublicKey) -> Self {
        Self::Rs(pkcs1v15::VerifyingKey::new(key))
    }

    fn from_spki(der: &[u8]) -> Result<Self, KeyError> {
        let info = SubjectPublicKeyInfoRef::try_from(der).map_err(|_| KeyError::NotDer)?;
        match (info.algorithm.oid, info.algorithm.parameters_oid()) {
            (ED25519, _) => {
                let key = ed25519_dalek::VerifyingKey::from_public_key_der(der);
                Self::ed_strong(key.map_err(|_| KeyError::Invalid("Ed25519"))?)
            }
            (EC, Ok(P256)) => p256::ecdsa::VerifyingKey::from_public_key_der(der)
                .map(Self::Es)
                .map_err(|_| KeyError::Invalid("P-256")),
            (RSA, _) => Self::from_pkcs1(info.subject_public_key.raw_bytes()),
            _ => Err(KeyError::OtherKind),
        }
    }

    fn from_pkcs1(der: &[u8]) -> Result<Self, KeyError> {
        let key = rsa::pkcs1::RsaPublicKey::try_from(der).map_err(|_| KeyError::NotDer)?;
        rsa_key::public(key.modulus.as_bytes(), key.public_exponent.as_bytes()).map(Self::rs)
    }

    pub(super) fn from_jwk(jwk: &Jwk, algorithm: Algorithm) -> Result<Self, KeyError> {
        Ok(match algorithm {
            Algorithm::EdDsa => Self::ed(&*jwk::bytes32(jwk.x, "`x` is missing")?)?,
            Algorithm::Es256 => {
                let x = jwk::bytes32(jwk.x, "`x` is missing")?;
                let y = jwk::bytes32(jwk.y, "`y` is missing")?;
                let point = p256::EncodedPoint::from_affine_coordinates(&(*x).into(), &(*y).into(), false);
                let key = p256::ecdsa::VerifyingKey::from_encoded_point(&point);
                Self::Es(key.map_err(|_| KeyError::Invalid("P-256"))?)
            }
            Algorithm::Rs256 => {
                let (n, e) = (
                    jwk::bytes(jwk.n, "`n` is missing")?,
                    jwk::bytes(jwk.e, "`e` is missing")?,
                );
                Self::rs(rsa_key::public(&n, &e)?)
            }
            Algorithm::Hs256 => Self::Hs(Secret::new(&jwk::bytes(jwk.k, "`k` is missing")?)?.into()),
        })
    }

    /// The members of the JWK that its thumbprint is of, in the order of their names (RFC 7638 section 3.2).
    pub(super) fn members(&self) -> Vec<(&'static str, Zeroizing<String>)> {
        let base64 = |bytes: &[u8]| Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes));
        let name = |name: &str| Zeroizing::new(name.to_owned());
        match self {
            Self::Ed(key) => vec![
                ("crv", name("Ed25519")),
                ("kty", name("OKP")),
                ("x", base64(key.as_bytes())),
            ],
            Self::Es(key) => {
                let point = key.as_affine().to_encoded_point(false);
                // A key is not the point at infinity, and the point is not compressed: it has both.
                let (x, y) = (point.x().expect("x of a point"), point.y().expect("y of a point"));
                vec![
                    ("crv", name("P-256")),
                    ("kty", name("EC")),
                    ("x", base64(x)),
                    ("y", base64(y)),
                ]
            }
            Self::Rs(key) => {
                let (e, n) = (key.as_ref().e().to_bytes_be(), key.as_ref().n().to_bytes_be());
                vec![("e", base64(&e)), ("kty", name("RSA")), ("n", base64(&n))]
            }
            Self::Hs(secret) => vec![("k", base64(secret.bytes())), ("kty", name("oct"))],
        }
    }

    fn thumbprint(&self) -> String {
        let mut hash = Sha256::new();
        for (i, (name, value)) in self.members().iter().enumerate() {
            hash.update(if i == 0 { "{\"" } else { ",\"" });
            hash.update(name);
            hash.update("\":\"");
            hash.update(value.as_bytes());
            hash.update("\"");
        }
        hash.update("}");
        URL_SAFE_NO_PAD.encode(hash.finalize())
    }

    fn copy(&self) -> Self {
        match self {
            Self::Ed(key) => Self::Ed(*key),
            Self::Es(key) => Self::Es(*key),
            Self::Rs(key) => Self::rs(key.as_ref().clone()),
            Self::Hs(secret) => Self::Hs(secret.clone()),
        }
    }
}
