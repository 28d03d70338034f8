use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, KeypairBytes};
use p256::ecdsa::signature::{RandomizedSigner, SignatureEncoding, Signer};
use rsa::pkcs8::PrivateKeyInfo;
use rsa::rand_core::{OsRng, RngCore};
use rsa::traits::{PrivateKeyParts, PublicKeyParts};
use rsa::{RsaPrivateKey, pkcs1v15};
use secrecy::SecretString;
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use super::jwk::{self, Jwk};
use super::mac::Secret;
use super::verifying::{EC, ED25519, P256, Public, RSA};
use super::{KeyError, MAX_SIGNATURE_LEN, MIN_KEY_LEN, MIN_RSA_BITS, VerifyingKey, pem, rsa as rsa_key};
use crate::{Algorithm, json};

/// A key that signs tokens, by one algorithm only. Zeroized when it is dropped.
pub struct SigningKey {
    private: Private,
    verifying: VerifyingKey,
    /// The header of a JWT, encoded.
    jwt_header: String,
}

enum Private {
    Ed(ed25519_dalek::SigningKey),
    Es(p256::ecdsa::SigningKey),
    Rs(Box<pkcs1v15::SigningKey<Sha256>>),
    Hs(Arc<Secret>),
}

impl SigningKey {
    /// A new key, of randomness of the operating system. RSA keys have [`MIN_RSA_BITS`], and take a while; secrets for HS256
    /// have [`MIN_KEY_LEN`] bytes.
    pub fn generate(algorithm: Algorithm) -> Self {
        let mut bytes = Zeroizing::new([0; MIN_KEY_LEN]);
        let private = match algorithm {
            Algorithm::EdDsa => {
                OsRng.fill_bytes(&mut *bytes);
                Private::Ed(ed25519_dalek::SigningKey::from_bytes(&bytes))
            }
            Algorithm::Es256 => Private::Es(p256::ecdsa::SigningKey::random(&mut OsRng)),
            Algorithm::Rs256 => {
                // It fails for a size or an exponent that is not possible.
                Private::rs(RsaPrivateKey::new(&mut OsRng, MIN_RSA_BITS).expect("an RSA key can have that many bits"))
            }
            Algorithm::Hs256 => {
                // Bytes that look like the text of a key file are as improbable as any others.
                loop {
                    OsRng.fill_bytes(&mut *bytes);
                    if let Ok(secret) = Secret::new(&*bytes) {
                        break Private::Hs(secret.into());
                    }
                }
            }
        };
        // A key that was just generated is none of the weak ones, but for a chance of no account.
        Self::of(private, None).expect("a new key is valid")
    }

    /// Reads a private key from a PEM file's contents (RFC 7468): `PRIVATE KEY` (PKCS #8, RFC 5958), `EC PRIVATE KEY`
    /// (SEC 1, RFC 5915) or `RSA PRIVATE KEY` (PKCS #1, RFC 8017 appendix A.1.2), without a passphrase. Its `kid` is its
    /// thumbprint.
    ///
    /// # Errors
    /// [`KeyError`] tells what is wrong; it holds nothing of the key. The caller adds which file it was.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let (label, der) = pem::read(pem)?;
        let private = match label {
            "PRIVATE KEY" => Private::from_pkcs8(&der)?,
            "EC PRIVATE KEY" => Private::from_sec1(&der)?,
            "RSA PRIVATE KEY" => Private::from_pkcs1(&der)?,
            _ => return Err(KeyError::NotPrivate(pem::printable(label))),
        };
        Self::of(private, None)
    }

    /// Reads a private key, or a secret for HS256 (`"kty":"oct"`), from a JWK (RFC 7517 section 4). Its `kid` is the JWK's,
    /// or its thumbprint where it has none.
    ///
    /// # Errors
    /// [`KeyError`] tells what is wrong; it holds nothing of the key.
    pub fn from_jwk(jwk: &[u8]) -> Result<Self, KeyError> {
        let jwk = Jwk::read(jwk)?;
        let algorithm = jwk.algorithm()?;
        jwk.is_for("sign")?;
        let public = Public::from_jwk(&jwk, algorithm)?;
        const MISSING: &str = "`d` is missing: what is public cannot sign";
        let private = match algorithm {
            Algorithm::EdDsa => Private::Ed(ed25519_dalek::SigningKey::from_bytes(&*jwk::bytes32(jwk.d, MISSING)?)),
            Algorithm::Es256 => {
                let key = p256::ecdsa::SigningKey::from_slice(&*jwk::bytes32(jwk.d, MISSING)?);
                Private::Es(key.map_err(|_| KeyError::Invalid("P-256"))?)
            }
            Algorithm::Rs256 => {
                let (n, e) = (
                    jwk::bytes(jwk.n, "`n` is missing")?,
                    jwk::bytes(jwk.e, "`e` is missing")?,
                );
                let d = jwk::bytes(jwk.d, MISSING)?;
                let primes = match (jwk.p, jwk.q) {
                    (None, None) => Vec::new(),
                    (p, q) => vec![jwk::bytes(p, "`p` is missing")?, jwk::bytes(q, "`q` is missing")?],
                };
                let primes: Vec<&[u8]> = primes.iter().map(|prime| prime.as_slice()).collect();
                Private::rs(rsa_key::private(&n, &e, &d, &primes)?)
            }
            Algorithm::Hs256 => Private::Hs(Secret::new(&jwk::bytes(jwk.k, "`k` is missing")?)?.into()),
        };
        if private.public()?.members() != public.members() {
            return Err(KeyError::Mismatch);
        }
        Self::of(private, jwk.kid()?)
    }

    /// A secret for HS256, of at least [`MIN_KEY_LEN`] bytes, which are used as they are. Its `kid` is its thumbprint.
    ///
    /// # Errors
    /// As for [`VerifyingKey::from_secret`].
    pub fn from_secret(secret: &[u8]) -> Result<Self, KeyError> {
        Self::of(Private::Hs(Secret::new(secret)?.into()), None)
    }

    fn of(private: Private, kid: Option<&str>) -> Result<Self, KeyError> {
        Ok(Self::with(VerifyingKey::of(private.public()?, kid), private))
    }

    fn with(verifying: VerifyingKey, private: Private) -> Self {
        let jwt_header = header(&verifying, &[("typ", "JWT")]);
        Self {
            private,
            verifying,
            jwt_header,
        }
    }

    /// The only algorithm that the key signs by.
    pub fn algorithm(&self) -> Algorithm {
        self.verifying.algorithm()
    }

    /// The name of the key, in the header of each token that it signs: its thumbprint (RFC 7638), unless it came from a JWK
    /// with a `kid` of its own.
    pub fn kid(&self) -> &str {
        self.verifying.kid()
    }

    /// The key that verifies what this one signs.
    pub fn verifying_key(&self) -> VerifyingKey {
        self.verifying.clone()
    }

    /// The key as PEM (`PRIVATE KEY`, PKCS #8); `None` for HS256, whose secrets have no such form.
    pub fn to_pem(&self) -> Option<SecretString> {
        let pem = match &self.private {
            // Without the public key: OpenSSL before 3.0 reads nothing else.
            Private::Ed(key) => KeypairBytes {
                secret_key: key.to_bytes(),
                public_key: None,
            }
            .to_pkcs8_pem(LineEnding::LF),
            Private::Es(key) => key.to_pkcs8_pem(LineEnding::LF),
            Private::Rs(key) => AsRef::<RsaPrivateKey>::as_ref(&**key).to_pkcs8_pem(LineEnding::LF),
            Private::Hs(_) => return None,
        };
        // Each of them is a few numbers of limited length.
        Some(SecretString::from(pem.expect("a private key can be encoded").as_str()))
    }

    /// The key as a JWK, with `kid`, `alg` and `use`.
    pub fn to_jwk(&self) -> SecretString {
        // Sized up front: a string that grows would leave copies behind. An RSA key of 4096 bits has less than 4000.
        let mut jwk = Zeroizing::new(String::with_capacity(8192));
        let mut member = |name: &str, value: &str| {
            for piece in [",\"", name, "\":", value] {
                jwk.push_str(piece);
            }
        };
        member("kid", &json::quoted(self.kid()));
        let quoted = |text: &str| Zeroizing::new(format!("\"{text}\""));
        member("alg", &quoted(self.algorithm().as_str()));
        member("use", &quoted("sig"));
        // The secret of HS256 is what is private and public of it.
        let public = self.private.public().expect("the key was valid when it was made");
        for (name, value) in public.members().iter().chain(&self.private.members()) {
            member(name, &quoted(value));
        }
        jwk.push('}');
        jwk.replace_range(..1, "{");
        SecretString::from(jwk.as_str())
    }

    /// Signs `payload`: a JWS in compact serialization (RFC 7515 section 7.1), whose header has `alg`, `kid`, and the
    /// members of `header`, which are strings, such as `("typ", "JWT")`.
    pub fn sign(&self, header_members: &[(&str, &str)], payload: &[u8]) -> SecretString {
        self.compact(&header(&self.verifying, header_members), payload)
    }

    /// A JWT (RFC 7519) with these claims, which are JSON.
    pub(crate) fn sign_jwt(&self, claims: &[u8]) -> SecretString {
        self.compact(&self.jwt_header, claims)
    }

    /// `header` is encoded already.
    pub(super) fn compact(&self, header: &str, payload: &[u8]) -> SecretString {
        let encoded_len = |len| base64::encoded_len(len, false).expect("what is in memory can be encoded");
        // Sized to the byte, so that making it a boxed str does not move it and leave a copy behind.
        let len = header.len() + encoded_len(payload.len()) + encoded_len(self.private.signature_len()) + 2;
        let mut token = String::with_capacity(len);
        token.push_str(header);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(payload, &mut token);
        let mut buffer = [0; MAX_SIGNATURE_LEN];
        let signature = self.private.sign(token.as_bytes(), &mut buffer);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(&*signature, &mut token);
        signature.zeroize();
        SecretString::from(token)
    }
}

/// Shows which key it is, and nothing of it.
impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({} {:?})", self.algorithm(), self.kid())
    }
}

/// A header, encoded.
fn header(key: &VerifyingKey, members: &[(&str, &str)]) -> String {
    let mut header = format!(r#"{{"alg":"{}","kid":{}"#, key.algorithm(), json::quoted(key.kid()));
    for (name, value) in members {
        header.push_str(&format!(",{}:{}", json::quoted(name), json::quoted(value)));
    }
    header.push('}');
    encode(header.as_bytes())
}

pub(super) fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Private {
    fn rs(key: RsaPrivateKey) -> Self {
        Self::Rs(Box::new(pkcs1v15::SigningKey::new(key)))
    }

    fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        let info = PrivateKeyInfo::try_from(der).map_err(|_| KeyError::NotDer)?;
        match (info.algorithm.oid, info.algorithm.parameters_oid()) {
            (ED25519, _) => ed25519_dalek::SigningKey::from_pkcs8_der(der)
                .map(Self::Ed)
                .map_err(|_| KeyError::Invalid("Ed25519")),
            (EC, Ok(P256)) => p256::ecdsa::SigningKey::from_pkcs8_der(der)
                .map(Self::Es)
                .map_err(|_| KeyError::Invalid("P-256")),
            (RSA, _) => Self::from_pkcs1(info.private_key),
            _ => Err(KeyError::OtherKind),
        }
    }

    fn from_sec1(der: &[u8]) -> Result<Self, KeyError> {
        let key = p256::pkcs8::der::Decode::from_der(der);
        let key: sec1::EcPrivateKey = key.map_err(|_| KeyError::NotDer)?;
        if key.parameters.is_none_or(|curve| curve.named_curve() != Some(P256)) {
            return Err(KeyError::OtherKind);
        }
        let key = p256::SecretKey::from_sec1_der(der).map_err(|_| KeyError::Invalid("P-256"))?;
        Ok(Self::Es(key.into()))
    }

    fn from_pkcs1(der: &[u8]) -> Result<Self, KeyError> {
        let key = rsa::pkcs1::RsaPrivateKey::try_from(der).map_err(|_| KeyError::NotDer)?;
        rsa_key::private(
            key.modulus.as_bytes(),
            key.public_exponent.as_bytes(),
            key.private_exponent.as_bytes(),
            &[key.prime1.as_bytes(), key.prime2.as_bytes()],
        )
        .map(Self::rs)
    }

    fn public(&self) -> Result<Public, KeyError> {
        Ok(match self {
            Self::Ed(key) => Public::ed(key.verifying_key().as_bytes())?,
            Self::Es(key) => Public::Es(*key.verifying_key()),
            Self::Rs(key) => Public::rs(AsRef::<RsaPrivateKey>::as_ref(&**key).to_public_key()),
            Self::Hs(secret) => Public::Hs(secret.clone()),
        })
    }

    /// The private members of the JWK (RFC 7518 section 6, RFC 8037 section 2).
    fn members(&self) -> Vec<(&'static str, Zeroizing<String>)> {
        let base64 = |bytes: &[u8]| Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes));
        match self {
            Self::Ed(key) => vec![("d", base64(key.as_bytes()))],
            Self::Es(key) => vec![("d", base64(&Zeroizing::new(<[u8; 32]>::from(key.to_bytes()))[..]))],
            Self::Rs(key) => {
                let key: &RsaPrivateKey = (**key).as_ref();
                let number = |number: &rsa::BigUint| base64(&Zeroizing::new(number.to_bytes_be()));
                let mut members = vec![("d", number(key.d()))];
                for (name, prime) in ["p", "q"].into_iter().zip(key.primes()) {
                    members.push((name, number(prime)));
                }
                // What some readers need besides (RFC 7518 section 6.3.2).
                if let (Some(dp), Some(dq), Some(qi)) = (key.dp(), key.dq(), key.crt_coefficient()) {
                    members.extend([("dp", number(dp)), ("dq", number(dq)), ("qi", number(&qi))]);
                }
                members
            }
            Self::Hs(_) => Vec::new(),
        }
    }

    fn signature_len(&self) -> usize {
        match self {
            Self::Ed(_) | Self::Es(_) => 64,
            Self::Rs(key) => AsRef::<RsaPrivateKey>::as_ref(&**key).size(),
            Self::Hs(_) => 32,
        }
    }

    fn sign<'a>(&self, message: &[u8], buffer: &'a mut [u8; MAX_SIGNATURE_LEN]) -> &'a mut [u8] {
        let signature = &mut buffer[..self.signature_len()];
        match self {
            Self::Ed(key) => signature.copy_from_slice(&key.sign(message).to_bytes()),
            Self::Es(key) => {
                // Deterministic (RFC 6979). It fails where a hash is a multiple of the order of the curve.
                let signed: p256::ecdsa::Signature = key.sign(message);
                signature.copy_from_slice(&signed.to_bytes());
            }
            // Blinded: how long it takes tells nothing of the key. It fails for a key that does not fit its public part,
            // and such a one is refused when it is read.
            Self::Rs(key) => signature.copy_from_slice(&key.sign_with_rng(&mut OsRng, message).to_bytes()),
            Self::Hs(secret) => signature.copy_from_slice(&secret.sign(message)),
        }
        signature
    }
}
