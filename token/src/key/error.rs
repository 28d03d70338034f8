// SPDX-License-Identifier: MIT OR Apache-2.0

use crate::key::{MIN_KEY_LEN, MIN_RSA_BITS};

/// The reason why something is not taken as a key. Holds nothing of the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// There is no PEM block.
    #[error("no PEM block (-----BEGIN … KEY-----): give the key in PEM, not DER")]
    NotPem,
    /// A block that does not end, or ends with another label.
    #[error("its PEM block has no END line for its label: the file is cut or edited, copy it again")]
    NoEnd,
    /// Something besides the one block.
    #[error(
        "it holds more than one PEM block or other text (openssl ecparam writes a second block unless given -noout): \
         keep the key's block only"
    )]
    NotAlone,
    /// Another kind of block, by its label.
    #[error("it holds a PEM block \"{0}\" where a PRIVATE KEY is needed: what is public cannot sign")]
    NotPrivate(String),
    /// Another kind of block than a public key, by its label.
    #[error("it holds a PEM block \"{0}\" where a PUBLIC KEY is needed: extract it with openssl pkey -pubout")]
    NotPublic(String),
    /// A certificate where a public key is needed.
    #[error("it holds a certificate where a public key is needed: extract it with openssl {0} -in FILE -pubkey -noout")]
    Certificate(&'static str),
    /// A private key where a public one is needed.
    #[error("it holds a private key where a public one is needed: keep it with its owner, and give the public key")]
    PrivateAsPublic,
    /// A secret where a public key is needed.
    #[error(
        "it holds a secret (\"kty\":\"oct\") where a public key is needed, and who reads it could sign: \
         configure HS256 secrets in their own place"
    )]
    SecretAsPublic,
    /// A public key, or another kind of key file, where a secret is needed.
    #[error(
        "it is a key file, not a secret, and a public one would be a secret that everyone knows: \
         give at least {MIN_KEY_LEN} random bytes"
    )]
    KeyAsSecret,
    /// The key is encrypted with a passphrase.
    #[error("the key is encrypted: decrypt it (openssl pkey -in FILE) and protect the file by its permissions")]
    Encrypted,
    /// A line with a character that is not base64; counted from the line after BEGIN.
    #[error("line {0} of its PEM block has a character that is not base64: the file is damaged, copy it again")]
    Base64Line(usize),
    /// The block as a whole is not base64.
    #[error("its PEM block is not base64 of whole bytes: the file is damaged, copy it again")]
    Base64,
    /// Shorter than [`MIN_KEY_LEN`].
    #[error(
        "the key has {0} bytes, and HS256 needs at least {MIN_KEY_LEN} (RFC 7518 section 3.2): generate a longer one"
    )]
    TooShort(usize),
    /// An RSA key of fewer than [`MIN_RSA_BITS`].
    #[error(
        "the RSA key has {0} bits, and RS256 needs at least {MIN_RSA_BITS} (RFC 7518 section 3.3): generate a longer one"
    )]
    RsaTooShort(usize),
    /// An RSA key of more bits than are worth the time.
    #[error("the RSA key has {0} bits, more than the {max} that are taken", max = crate::key::MAX_RSA_BITS)]
    RsaTooLong(usize),
    /// An RSA key of a generator with a defect.
    #[error("the RSA key is one of those that anyone can factor (CVE-2017-15361): generate another, elsewhere")]
    Roca,
    /// An RSA key whose private key anyone can compute.
    #[error(
        "the RSA key's modulus is a prime, a square or has a small factor, so that anyone can use it: generate another"
    )]
    RsaFactors,
    /// A secret that repeats a few bytes.
    #[error(
        "the secret repeats a few bytes, such as zeros, and can be guessed: give at least {MIN_KEY_LEN} random bytes"
    )]
    Repetition,
    /// A public key for P-256 of which only half is written down.
    #[error("its point is compressed: write it again (openssl ec -pubin -conv_form uncompressed)")]
    CompressedPoint,
    /// The content is not one whole DER sequence.
    #[error("its content is not one whole DER sequence as every key is: the file is damaged, copy it again")]
    NotDer,
    /// A key for an algorithm that is not one of [`Algorithm`](crate::Algorithm).
    #[error("a key of a kind that is not used here: use Ed25519, P-256, RSA, or a secret for HS256")]
    OtherKind,
    /// Its numbers are not those of a key of its kind.
    #[error("it is not a valid {0} key: it is damaged, copy or generate it again")]
    Invalid(&'static str),
    /// Public and private part of a key that are not of each other.
    #[error("its public part is not that of its private part: it was put together wrongly, copy or generate it again")]
    Mismatch,
    /// Not a JSON object with the members that its kind of key needs (RFC 7517 section 4).
    #[error("not a JWK: {0}")]
    NotJwk(&'static str),
    /// A JWK that says to be for another algorithm than its kind of key has here.
    #[error("its `alg` is not the algorithm that its kind of key is used for here")]
    OtherAlgorithm,
    /// A JWK that says not to be for signatures (RFC 7517 sections 4.2 and 4.3).
    #[error("its `use` or `key_ops` says that it is not for signatures")]
    NotForSignatures,
    /// A `kid` that cannot be used.
    #[error("its `kid` is empty or longer than {max} bytes", max = crate::key::MAX_KID_LEN)]
    Kid,
    /// A second key of the same `kid` and algorithm in one JWKS.
    #[error("the JWKS has another key of the same `kid` and algorithm before it")]
    SameKid,
    /// More than [`MAX_KEYS`](crate::MAX_KEYS) in one JWKS.
    #[error("the JWKS has more than {max} keys, and those from here on are not looked at", max = crate::MAX_KEYS)]
    TooMany,
    /// Not a JWKS (RFC 7517 section 5).
    #[error("not a JWKS: it must be a JSON object with an array `keys`")]
    NotJwks,
}
