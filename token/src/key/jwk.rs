// SPDX-License-Identifier: MIT OR Apache-2.0

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{IgnoredAny, MapAccess};
use zeroize::Zeroizing;

use super::{KeyError, MAX_KID_LEN};
use crate::Algorithm;
use crate::json::{Members, Skipped, Text, Unique, without_mark};

/// The members of a JWK that are looked at (RFC 7517 section 4, RFC 7518 section 6, RFC 8037 section 2).
#[derive(Default)]
pub(super) struct Jwk<'a> {
    kty: Option<Text<'a>>,
    crv: Option<Text<'a>>,
    alg: Option<Text<'a>>,
    kid: Option<Text<'a>>,
    for_what: Option<Text<'a>>,
    key_ops: Option<Vec<Text<'a>>>,
    /// Those of [`NUMBERS`] that are there. They are borrowed from the text, so that no copy of a secret is left
    /// behind; base64url needs no escapes.
    numbers: BTreeMap<&'static str, &'a str>,
    /// Other primes of an RSA key, of which two are taken only.
    has_others: bool,
}

/// The members in base64url. Those from the fourth on are of private keys and secrets: of an RSA key, `n` can be
/// factored with any one of them.
const NUMBERS: [&str; 11] = ["x", "y", "n", "e", "d", "p", "q", "dp", "dq", "qi", "k"];
const PUBLIC_NUMBERS: usize = 4;

impl<'de> Members<'de> for Jwk<'de> {
    type Unknown = Skipped;

    fn take<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        match name {
            "kty" => self.kty = map.next_value()?,
            "crv" => self.crv = map.next_value()?,
            "alg" => self.alg = map.next_value()?,
            "kid" => self.kid = map.next_value()?,
            "use" => self.for_what = map.next_value()?,
            "key_ops" => self.key_ops = map.next_value()?,
            "oth" => self.has_others = map.next_value::<Option<IgnoredAny>>()?.is_some(),
            name => {
                let Some(name) = NUMBERS.into_iter().find(|number| *number == name) else {
                    return Ok(false);
                };
                if let Some(value) = map.next_value()? {
                    self.numbers.insert(name, value);
                }
            }
        }
        Ok(true)
    }
}

impl<'a> Jwk<'a> {
    pub(super) fn read(text: &'a [u8]) -> Result<Self, KeyError> {
        let text = without_mark(text);
        if !text.trim_ascii_start().starts_with(b"{") {
            return Err(KeyError::NotJwk("it is not a JSON object"));
        }
        let Unique(jwk) = serde_json::from_slice::<Unique<Self>>(text).map_err(|e| match e.classify() {
            serde_json::error::Category::Data => {
                KeyError::NotJwk("a member is there twice, or is not the string that it should be")
            }
            _ => KeyError::NotJwk("it is not valid JSON"),
        })?;
        let operations = jwk.key_ops.as_deref().unwrap_or_default();
        // RFC 7517 section 4.3 forbids it.
        if operations
            .iter()
            .enumerate()
            .any(|(i, operation)| operations[..i].contains(operation))
        {
            return Err(KeyError::NotJwk("its `key_ops` has a value twice"));
        }
        Ok(jwk)
    }

    /// The algorithm that this kind of key is for, which an `alg` has to agree with.
    pub(super) fn algorithm(&self) -> Result<Algorithm, KeyError> {
        let algorithm = match (text(&self.kty), text(&self.crv)) {
            (None, _) => return Err(KeyError::NotJwk("`kty` is missing")),
            (Some("OKP"), Some("Ed25519")) => Algorithm::EdDsa,
            (Some("EC"), Some("P-256")) => Algorithm::Es256,
            (Some("RSA"), _) if !self.has_others => Algorithm::Rs256,
            (Some("oct"), _) => Algorithm::Hs256,
            _ => return Err(KeyError::OtherKind),
        };
        match text(&self.alg) {
            Some(alg) if Algorithm::from_jose(alg) != Some(algorithm) => Err(KeyError::OtherAlgorithm),
            _ => Ok(algorithm),
        }
    }

    /// Checks that the key may be used to `sign` or `verify`.
    pub(super) fn is_for(&self, operation: &str) -> Result<(), KeyError> {
        let used = text(&self.for_what).is_none_or(|for_what| for_what == "sig");
        let done = |operations: &Vec<Text>| operations.iter().any(|Text(other)| other == operation);
        if used && self.key_ops.as_ref().is_none_or(done) {
            Ok(())
        } else {
            Err(KeyError::NotForSignatures)
        }
    }

    pub(super) fn kid(&self) -> Result<Option<&str>, KeyError> {
        match text(&self.kid) {
            Some(kid) if kid.is_empty() || kid.len() > MAX_KID_LEN => Err(KeyError::Kid),
            kid => Ok(kid),
        }
    }

    /// Returns whether any member is one of a private key or secret, whatever the type of the key.
    pub(super) fn is_private(&self) -> bool {
        let is_there = |name: &&str| self.numbers.contains_key(name);
        self.has_others || NUMBERS[PUBLIC_NUMBERS..].iter().any(is_there)
    }

    /// The bytes of a member; `missing` says that it is not there.
    pub(super) fn bytes(&self, name: &str, missing: &'static str) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let text = self.numbers.get(name).ok_or(KeyError::NotJwk(missing))?;
        let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(text.len())]);
        let len = URL_SAFE_NO_PAD
            .decode_slice(text, &mut bytes)
            .map_err(|_| KeyError::NotJwk("a member is not base64url without padding"))?;
        bytes.truncate(len);
        Ok(bytes)
    }

    /// The bytes of a member that has 32 of them.
    pub(super) fn bytes32(&self, name: &str, missing: &'static str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
        self.bytes(name, missing)?
            .as_slice()
            .try_into()
            .map(Zeroizing::new)
            .map_err(|_| KeyError::NotJwk("a member does not have the 32 bytes that its curve needs"))
    }
}

fn text<'a>(member: &'a Option<Text<'_>>) -> Option<&'a str> {
    member.as_ref().map(|Text(text)| Cow::as_ref(text))
}
