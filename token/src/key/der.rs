// SPDX-License-Identifier: MIT OR Apache-2.0

//! The encodings of keys in DER, as far as aws-lc-rs does not read or write them, or does not tell which part is wrong.

use pkcs8::der::asn1::{BitStringRef, OctetStringRef, UintRef};
use pkcs8::der::pem::{LineEnding, encode_string};
use pkcs8::der::{AnyRef, Decode, Encode, Error, Reader, SliceReader, TagMode, TagNumber};
use pkcs8::spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};
use pkcs8::{ObjectIdentifier, PrivateKeyInfoRef};

use super::KeyError;

/// Object identifiers of kinds of keys: RFC 8410 section 3, RFC 5480 section 2.1.1, RFC 8017 appendix C.
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// A key whose kind is known, and the part of the DER that is the key itself.
pub(super) enum DerKey<'a> {
    Ed25519(&'a [u8]),
    P256(&'a [u8]),
    Rsa(&'a [u8]),
}

impl<'a> DerKey<'a> {
    fn of(algorithm: &AlgorithmIdentifierRef<'_>, key: &'a [u8]) -> Result<Self, KeyError> {
        match (algorithm.oid, algorithm.parameters_oid()) {
            (ED25519, _) => Ok(Self::Ed25519(key)),
            (EC, Ok(P256)) => Ok(Self::P256(key)),
            (RSA, _) => Ok(Self::Rsa(key)),
            _ => Err(KeyError::OtherKind),
        }
    }
}

/// Reads a `PrivateKeyInfo` (PKCS #8, RFC 5958).
pub(super) fn private(der: &[u8]) -> Result<DerKey<'_>, KeyError> {
    let info = PrivateKeyInfoRef::try_from(der).map_err(|_| KeyError::NotDer)?;
    DerKey::of(&info.algorithm, info.private_key.as_bytes())
}

/// Reads a `SubjectPublicKeyInfo` (RFC 5280 section 4.1).
pub(super) fn public(der: &[u8]) -> Result<DerKey<'_>, KeyError> {
    let info = SubjectPublicKeyInfoRef::try_from(der).map_err(|_| KeyError::NotDer)?;
    DerKey::of(&info.algorithm, info.subject_public_key.raw_bytes())
}

/// The PEM (`PUBLIC KEY`) of an Ed25519 key.
pub(super) fn ed25519_pem(key: &[u8]) -> Result<String, Error> {
    public_pem(
        AlgorithmIdentifierRef {
            oid: ED25519,
            parameters: None,
        },
        key,
    )
}

/// The PEM (`PUBLIC KEY`) of an uncompressed point of P-256.
pub(super) fn p256_pem(point: &[u8]) -> Result<String, Error> {
    public_pem(
        AlgorithmIdentifierRef {
            oid: EC,
            parameters: Some((&P256).into()),
        },
        point,
    )
}

/// The PEM (`PUBLIC KEY`) of an RSA key.
pub(super) fn rsa_pem(n: &[u8], e: &[u8]) -> Result<String, Error> {
    let key = [UintRef::new(n)?, UintRef::new(e)?].to_der()?;
    public_pem(
        AlgorithmIdentifierRef {
            oid: RSA,
            parameters: Some(AnyRef::NULL),
        },
        &key,
    )
}

fn public_pem(algorithm: AlgorithmIdentifierRef<'_>, key: &[u8]) -> Result<String, Error> {
    let subject_public_key = BitStringRef::from_bytes(key)?;
    let der = SubjectPublicKeyInfoRef {
        algorithm,
        subject_public_key,
    }
    .to_der()?;
    Ok(pem("PUBLIC KEY", &der))
}

/// A PEM block (RFC 7468).
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    // It fails for lengths that no key has.
    encode_string(label, LineEnding::LF, der).expect("a key can be encoded")
}

/// Checks that an `ECPrivateKey` (SEC 1, RFC 5915 section 3) names the curve P-256.
pub(super) fn check_sec1(der: &[u8]) -> Result<(), KeyError> {
    let curve = || -> Result<Option<ObjectIdentifier>, Error> {
        let mut reader = SliceReader::new(der)?;
        let curve = reader.sequence(|key| {
            u8::decode(key)?;
            <&OctetStringRef>::decode(key)?;
            let curve = key.context_specific(TagNumber(0), TagMode::Explicit)?;
            key.context_specific::<BitStringRef<'_>>(TagNumber(1), TagMode::Explicit)?;
            Ok::<_, Error>(curve)
        })?;
        reader.finish()?;
        Ok(curve)
    };
    match curve().map_err(|_| KeyError::NotDer)? {
        Some(P256) => Ok(()),
        _ => Err(KeyError::OtherKind),
    }
}

/// The numbers of an `RSAPublicKey` (PKCS #1, RFC 8017 appendix A.1.1), `n` and `e`, without leading zeros.
pub(super) fn rsa_public(der: &[u8]) -> Result<[&[u8]; 2], KeyError> {
    let numbers = || -> Result<_, Error> {
        let mut reader = SliceReader::new(der)?;
        let numbers = reader.sequence(|key| Ok::<_, Error>([UintRef::decode(key)?, UintRef::decode(key)?]))?;
        reader.finish()?;
        Ok(numbers.map(|number| number.as_bytes()))
    };
    numbers().map_err(|_| KeyError::NotDer)
}

/// The numbers of an `RSAPrivateKey` of two primes (PKCS #1, RFC 8017 appendix A.1.2): `n`, `e`, `d`, `p`, `q`, `dp`,
/// `dq` and `qi`, without leading zeros.
pub(super) fn rsa_private(der: &[u8]) -> Result<[&[u8]; 8], KeyError> {
    let numbers = || -> Result<_, Error> {
        let mut reader = SliceReader::new(der)?;
        let numbers = reader.sequence(|key| {
            let mut numbers = [[].as_slice(); 8];
            if u8::decode(key)? != 0 {
                return Err(key.error(pkcs8::der::ErrorKind::Failed));
            }
            for number in &mut numbers {
                *number = UintRef::decode(key)?.as_bytes();
            }
            Ok(numbers)
        })?;
        reader.finish()?;
        Ok(numbers)
    };
    numbers().map_err(|_| KeyError::NotDer)
}
