// SPDX-License-Identifier: MIT OR Apache-2.0

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::encoding::AsBigEndian;
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand::{self, SystemRandom};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use aws_lc_rs::{encoding, hmac};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::crypto::JwtSigner;
use jsonwebtoken::signature::{self, Signer, Verifier};
use secrecy::SecretString;
use zeroize::Zeroizing;

use super::jwk::Jwk;
use super::secret::Secret;
use super::verifying::Public;
use super::{KeyError, MIN_KEY_LEN, VerifyingKey, der, pem, rsa};
use crate::{Algorithm, json};

/// A key that signs tokens, by one algorithm only. Zeroized when it is dropped.
pub struct SigningKey {
    private: Private,
    verifying: VerifyingKey,
    /// The header of a JWT, encoded.
    jwt_header: String,
}

/// A private key as aws-lc keeps it: parsed once, used by all threads, and zeroized.
///
/// It is one of jsonwebtoken's signers, and not one that its provider makes: those come as `Box<dyn JwtSigner>`, which
/// threads cannot share, and the one for RSA parses and checks the key again for each token.
enum Private {
    Ed(Ed25519KeyPair),
    Es(EcdsaKeyPair),
    Rs(RsaKeyPair),
    Hs(Arc<Secret>),
}

impl SigningKey {
    /// A new key, of randomness of the operating system. RSA keys have [`MIN_RSA_BITS`](super::MIN_RSA_BITS), secrets
    /// for HS256 have [`MIN_KEY_LEN`] bytes.
    ///
    /// ```
    /// use token::{Algorithm, SigningKey};
    ///
    /// let key = SigningKey::generate(Algorithm::EdDsa);
    /// assert_eq!(key.algorithm(), Algorithm::EdDsa);
    /// ```
    pub fn generate(algorithm: Algorithm) -> Self {
        // aws-lc fails where there is no memory, and ends the process where there is no randomness.
        const GENERATED: &str = "a key can be generated";
        let private = match algorithm {
            Algorithm::EdDsa => Private::Ed(Ed25519KeyPair::generate().expect(GENERATED)),
            Algorithm::Es256 => Private::Es(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect(GENERATED)),
            Algorithm::Rs256 => Private::Rs(rsa::generate().expect(GENERATED)),
            Algorithm::Hs256 => {
                let mut bytes = Zeroizing::new([0; MIN_KEY_LEN]);
                // Bytes that look like the text of a key file are as improbable as any others.
                loop {
                    rand::fill(&mut *bytes).expect(GENERATED);
                    if let Ok(secret) = Secret::new(&*bytes) {
                        break Private::Hs(secret.into());
                    }
                }
            }
        };
        // A key that was just generated is none of the weak ones, but for a chance of no account.
        Self::of(private).expect("a new key is valid")
    }

    /// Reads a private key from a PEM file's contents (RFC 7468): `PRIVATE KEY` (PKCS #8, RFC 5958), `EC PRIVATE KEY`
    /// (SEC 1, RFC 5915) or `RSA PRIVATE KEY` (PKCS #1, RFC 8017 appendix A.1.2), without a passphrase, also after a block `EC PARAMETERS`. Its
    /// `kid` is its thumbprint.
    ///
    /// ```
    /// use secrecy::ExposeSecret;
    /// use token::{Algorithm, SigningKey};
    ///
    /// let key = SigningKey::generate(Algorithm::Es256);
    /// let pem = key.to_pem().expect("the private key");
    /// let read = SigningKey::from_pem(pem.expose_secret().as_bytes())?;
    /// assert_eq!(read.kid(), key.kid());
    /// # Ok::<(), token::KeyError>(())
    /// ```
    ///
    /// # Errors
    /// [`KeyError`] tells what is wrong; it holds nothing of the key. The caller adds which file it was.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let (label, der) = pem::read_key(pem)?;
        match label {
            "PRIVATE KEY" => match der::private(&der)? {
                der::DerKey::Ed25519(_) => {
                    let pair = Ed25519KeyPair::from_pkcs8(&der);
                    Self::of(Private::Ed(pair.map_err(|_| KeyError::Invalid("Ed25519"))?))
                }
                der::DerKey::P256(_) => Self::of_p256(&der),
                der::DerKey::Rsa(key) => Self::from_pkcs1(key),
            },
            "EC PRIVATE KEY" => {
                der::check_sec1(&der)?;
                Self::of_p256(&der)
            }
            "RSA PRIVATE KEY" => Self::from_pkcs1(&der),
            _ => Err(KeyError::NotPrivate(pem::printable(label))),
        }
    }

    /// PKCS #8 or SEC 1.
    fn of_p256(der: &[u8]) -> Result<Self, KeyError> {
        let pair = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, der);
        Self::of(Private::Es(pair.map_err(|_| KeyError::Invalid("P-256"))?))
    }

    fn from_pkcs1(der: &[u8]) -> Result<Self, KeyError> {
        let [n, e, private @ ..] = der::rsa_private(der)?;
        let public = rsa::Public::new(n, e)?;
        let private = Private::Rs(public.private(private)?);
        Self::with(private, Public::Rs(public), None)
    }

    /// Reads a private key, or a secret for HS256 (`"kty":"oct"`), from a JWK (RFC 7517 section 4). Its `kid` is the JWK's,
    /// or its thumbprint where it has none. An RSA key needs `p`, `q`, `dp`, `dq` and `qi`, which RFC 7518 section 6.3.2
    /// recommends.
    ///
    /// ```
    /// use secrecy::ExposeSecret;
    /// use token::{Algorithm, SigningKey};
    ///
    /// let key = SigningKey::generate(Algorithm::EdDsa);
    /// let read = SigningKey::from_jwk(key.to_jwk().expose_secret().as_bytes())?;
    /// assert_eq!(read.kid(), key.kid());
    /// # Ok::<(), token::KeyError>(())
    /// ```
    ///
    /// # Errors
    /// [`KeyError`] tells what is wrong; it holds nothing of the key.
    pub fn from_jwk(jwk: &[u8]) -> Result<Self, KeyError> {
        const MISSING: &str = "`d` is missing: what is public cannot sign";
        let jwk = Jwk::read(jwk)?;
        let algorithm = jwk.algorithm()?;
        jwk.is_for("sign")?;
        let public = Public::from_jwk(&jwk, algorithm)?;
        let private = match &public {
            Public::Ed(key) => {
                let d = jwk.bytes32("d", MISSING)?;
                let pair = Ed25519KeyPair::from_seed_and_public_key(&*d, key.as_ref());
                Private::Ed(pair.map_err(|_| KeyError::Mismatch)?)
            }
            Public::Es(key) => {
                let d = jwk.bytes32("d", MISSING)?;
                if *d == [0; 32] || *d >= P256_ORDER {
                    return Err(KeyError::Invalid("P-256"));
                }
                let alg = &ECDSA_P256_SHA256_FIXED_SIGNING;
                let pair = EcdsaKeyPair::from_private_key_and_public_key(alg, &*d, key.as_ref());
                Private::Es(pair.map_err(|_| KeyError::Mismatch)?)
            }
            Public::Rs(key) => {
                let d = jwk.bytes("d", MISSING)?;
                let number = |name| jwk.bytes(name, "one of `p`, `q`, `dp`, `dq` and `qi` is missing");
                let [p, q, dp, dq, qi] = [number("p")?, number("q")?, number("dp")?, number("dq")?, number("qi")?];
                Private::Rs(key.private([&d, &p, &q, &dp, &dq, &qi])?)
            }
            Public::Hs(secret) => Private::Hs(secret.clone()),
        };
        Self::with(private, public, jwk.kid()?)
    }

    /// A secret for HS256, of at least [`MIN_KEY_LEN`] bytes, which are used as they are. Its `kid` is its thumbprint.
    ///
    /// ```
    /// use token::{Algorithm, KeyError, SigningKey};
    ///
    /// let key = SigningKey::from_secret(b"an example and the secret of nobody")?;
    /// assert_eq!(key.algorithm(), Algorithm::Hs256);
    /// assert_eq!(SigningKey::from_secret(b"short").err(), Some(KeyError::TooShort(5)));
    /// # Ok::<(), KeyError>(())
    /// ```
    ///
    /// # Errors
    /// As for [`VerifyingKey::from_secret`].
    pub fn from_secret(secret: &[u8]) -> Result<Self, KeyError> {
        Self::of(Private::Hs(Secret::new(secret)?.into()))
    }

    fn of(private: Private) -> Result<Self, KeyError> {
        let public = match &private {
            Private::Ed(key) => Public::ed(key.public_key().as_ref())?,
            Private::Es(key) => Public::es(key.public_key().as_ref())?,
            Private::Rs(key) => Public::Rs(rsa::with_numbers(key, |[n, e, ..]| rsa::Public::new(n, e))?),
            Private::Hs(secret) => Public::Hs(secret.clone()),
        };
        Self::with(private, public, None)
    }

    fn with(private: Private, public: Public, kid: Option<&str>) -> Result<Self, KeyError> {
        // Nothing looks whether the factors of an RSA key are primes. One that signs once signs anything.
        let signed = private
            .try_sign(b"any")
            .is_ok_and(|signature| public.verify(b"any", &signature).is_ok());
        if !signed {
            return Err(KeyError::Mismatch);
        }
        let verifying = VerifyingKey::of(public, kid);
        let jwt_header = header(&verifying, &[("typ", "JWT")]);
        Ok(Self {
            private,
            verifying,
            jwt_header,
        })
    }

    /// The only algorithm that the key signs by.
    ///
    /// ```
    /// use token::{Algorithm, SigningKey};
    ///
    /// assert_eq!(SigningKey::generate(Algorithm::Es256).algorithm(), Algorithm::Es256);
    /// ```
    pub fn algorithm(&self) -> Algorithm {
        self.verifying.algorithm()
    }

    /// The name of the key, in the header of each token that it signs: its thumbprint (RFC 7638), unless it came from a
    /// JWK with a `kid` of its own.
    ///
    /// ```
    /// use token::{Algorithm, SigningKey};
    ///
    /// let key = SigningKey::generate(Algorithm::EdDsa);
    /// assert_eq!(key.kid(), key.verifying_key().thumbprint());
    /// ```
    pub fn kid(&self) -> &str {
        self.verifying.kid()
    }

    /// The key that verifies what this one signs.
    ///
    /// ```
    /// use token::{Algorithm, KeySet, SigningKey, Verifier};
    ///
    /// let key = SigningKey::generate(Algorithm::EdDsa);
    /// let verifier = Verifier::new(KeySet::from(key.verifying_key()));
    /// ```
    pub fn verifying_key(&self) -> VerifyingKey {
        self.verifying.clone()
    }

    /// The key as PEM (`PRIVATE KEY`, PKCS #8); `None` for HS256, whose secrets have no such form.
    ///
    /// ```
    /// use secrecy::ExposeSecret;
    /// use token::{Algorithm, SigningKey};
    ///
    /// let pem = SigningKey::generate(Algorithm::EdDsa).to_pem().expect("the private key");
    /// assert!(pem.expose_secret().starts_with("-----BEGIN PRIVATE KEY-----"));
    /// assert!(SigningKey::generate(Algorithm::Hs256).to_pem().is_none());
    /// ```
    pub fn to_pem(&self) -> Option<SecretString> {
        let pem = |der: &[u8]| Zeroizing::new(der::pem("PRIVATE KEY", der));
        let pem = match &self.private {
            // Without the public key: OpenSSL before 3.0 reads nothing else.
            Private::Ed(key) => key.to_pkcs8v1().map(|der| pem(der.as_ref())),
            Private::Es(key) => key.to_pkcs8v1().map(|der| pem(der.as_ref())),
            Private::Rs(key) => rsa::to_pkcs8(key).map(|der| pem(der.as_ref())),
            Private::Hs(_) => return None,
        };
        // Each of them is a few numbers of limited length.
        Some(SecretString::from(pem.expect("a private key can be encoded").as_str()))
    }

    /// The key as a JWK, with `kid`, `alg` and `use`.
    ///
    /// ```
    /// use secrecy::ExposeSecret;
    /// use token::{Algorithm, SigningKey};
    ///
    /// let jwk = SigningKey::generate(Algorithm::EdDsa).to_jwk();
    /// assert!(jwk.expose_secret().contains(r#""alg":"EdDSA""#));
    /// ```
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
        let private = self.private.members().expect("a private key can be encoded");
        for (name, value) in self.verifying.members().iter().chain(&private) {
            member(name, &quoted(value));
        }
        jwk.push('}');
        jwk.replace_range(..1, "{");
        SecretString::from(jwk.as_str())
    }

    /// Signs `payload`: a JWS in compact serialization (RFC 7515 section 7.1), whose header has `alg`, `kid`, and the
    /// members of `header`, which are strings, such as `("typ", "JWT")`.
    ///
    /// ```
    /// use secrecy::ExposeSecret;
    /// use token::{Algorithm, KeySet, SigningKey};
    ///
    /// let key = SigningKey::generate(Algorithm::EdDsa);
    /// let signed = key.sign(&[("typ", "example")], b"a payload");
    /// assert_eq!(KeySet::from(key.verifying_key()).verify_jws(signed.expose_secret())?, b"a payload");
    /// # Ok::<(), token::VerifyError>(())
    /// ```
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
        // It did so when the key was read, and aws-lc fails where there is no memory only.
        let signature = Zeroizing::new(self.private.try_sign(token.as_bytes()).expect("the key signs"));
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(&*signature, &mut token);
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

/// The order of the group of P-256, big-endian (FIPS 186-4 appendix D.1.2.3): a private key is a number from 1 to below
/// it.
const P256_ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa, 0xad, 0xa7,
    0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

impl Signer<Vec<u8>> for Private {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        // aws-lc uses its own randomness, and the argument is there for those who used another library.
        let random = SystemRandom::new();
        match self {
            Self::Ed(key) => key.try_sign(message).map(|signature| signature.as_ref().to_vec()),
            Self::Es(key) => key.sign(&random, message).map(|signature| signature.as_ref().to_vec()),
            Self::Rs(key) => {
                let mut signature = vec![0; self.signature_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .map(|()| signature)
            }
            Self::Hs(secret) => Ok(hmac::sign(&secret.key, message).as_ref().to_vec()),
        }
        .map_err(signature::Error::from_source)
    }
}

impl JwtSigner for Private {
    fn algorithm(&self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Ed(_) => jsonwebtoken::Algorithm::EdDSA,
            Self::Es(_) => jsonwebtoken::Algorithm::ES256,
            Self::Rs(_) => jsonwebtoken::Algorithm::RS256,
            Self::Hs(_) => jsonwebtoken::Algorithm::HS256,
        }
    }
}

impl Private {
    /// In bytes.
    fn signature_len(&self) -> usize {
        match self {
            Self::Ed(_) | Self::Es(_) => 64,
            Self::Rs(key) => key.public_modulus_len(),
            Self::Hs(_) => 32,
        }
    }

    /// The private members of the JWK (RFC 7518 section 6, RFC 8037 section 2).
    fn members(&self) -> Result<Vec<(&'static str, Zeroizing<String>)>, Unspecified> {
        let base64 = |bytes: &[u8]| Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes));
        Ok(match self {
            Self::Ed(key) => {
                let seed: encoding::Curve25519SeedBin<'_> = key.seed()?.as_be_bytes()?;
                vec![("d", base64(seed.as_ref()))]
            }
            Self::Es(key) => {
                let d: encoding::EcPrivateKeyBin<'_> = key.private_key().as_be_bytes()?;
                vec![("d", base64(d.as_ref()))]
            }
            Self::Rs(key) => rsa::with_numbers(key, |[_, _, numbers @ ..]| {
                let names = ["d", "p", "q", "dp", "dq", "qi"];
                names.into_iter().zip(numbers.map(base64)).collect()
            }),
            Self::Hs(_) => Vec::new(),
        })
    }
}
