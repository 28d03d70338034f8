use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use zeroize::Zeroizing;

use super::{KeyError, MAX_KID_LEN};
use crate::Algorithm;

/// The members of a JWK that are looked at (RFC 7517 section 4, RFC 7518 section 6, RFC 8037 section 2).
///
/// Those that may be secret are borrowed from the text, so that no copy is left behind; base64url needs no escapes.
#[derive(Deserialize)]
pub(super) struct Jwk<'a> {
    #[serde(borrow)]
    kty: Option<Cow<'a, str>>,
    #[serde(borrow)]
    crv: Option<Cow<'a, str>>,
    #[serde(borrow)]
    alg: Option<Cow<'a, str>>,
    #[serde(borrow)]
    kid: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "use")]
    for_what: Option<Cow<'a, str>>,
    key_ops: Option<Vec<Cow<'a, str>>>,
    pub(super) x: Option<&'a str>,
    pub(super) y: Option<&'a str>,
    pub(super) n: Option<&'a str>,
    pub(super) e: Option<&'a str>,
    pub(super) d: Option<&'a str>,
    pub(super) p: Option<&'a str>,
    pub(super) q: Option<&'a str>,
    // What follows from the others, and is as secret as they are: `n` can be factored with any one of them.
    dp: Option<IgnoredAny>,
    dq: Option<IgnoredAny>,
    qi: Option<IgnoredAny>,
    oth: Option<IgnoredAny>,
    pub(super) k: Option<&'a str>,
}

impl<'a> Jwk<'a> {
    pub(super) fn read(text: &'a [u8]) -> Result<Self, KeyError> {
        if !text.trim_ascii_start().starts_with(b"{") {
            return Err(KeyError::NotJwk("it is not a JSON object"));
        }
        serde_json::from_slice(text).map_err(|e| match e.classify() {
            serde_json::error::Category::Data => {
                KeyError::NotJwk("a member is there twice, or is not the string that it should be")
            }
            _ => KeyError::NotJwk("it is not valid JSON"),
        })
    }

    /// The algorithm that this kind of key is for, which an `alg` has to agree with.
    pub(super) fn algorithm(&self) -> Result<Algorithm, KeyError> {
        let algorithm = match (self.kty.as_deref(), self.crv.as_deref()) {
            (None, _) => return Err(KeyError::NotJwk("`kty` is missing")),
            (Some("OKP"), Some("Ed25519")) => Algorithm::EdDsa,
            (Some("EC"), Some("P-256")) => Algorithm::Es256,
            (Some("RSA"), _) if self.oth.is_none() => Algorithm::Rs256,
            (Some("oct"), _) => Algorithm::Hs256,
            _ => return Err(KeyError::OtherKind),
        };
        match self.alg.as_deref() {
            Some(alg) if Algorithm::from_jose(alg) != Some(algorithm) => Err(KeyError::OtherAlgorithm),
            _ => Ok(algorithm),
        }
    }

    /// Checks that the key may be used to `sign` or `verify`.
    pub(super) fn is_for(&self, operation: &str) -> Result<(), KeyError> {
        let used = self.for_what.as_deref().is_none_or(|for_what| for_what == "sig");
        let done = |ops: &Vec<Cow<str>>| ops.iter().any(|op| op == operation);
        if used && self.key_ops.as_ref().is_none_or(done) {
            Ok(())
        } else {
            Err(KeyError::NotForSignatures)
        }
    }

    pub(super) fn kid(&self) -> Result<Option<&str>, KeyError> {
        match self.kid.as_deref() {
            Some(kid) if kid.is_empty() || kid.len() > MAX_KID_LEN => Err(KeyError::Kid),
            kid => Ok(kid),
        }
    }

    /// Whether any member is one of a private key or secret, whatever the type of the key.
    pub(super) fn is_private(&self) -> bool {
        let texts = [self.d, self.p, self.q, self.k];
        let others = [&self.dp, &self.dq, &self.qi, &self.oth];
        texts.iter().any(Option::is_some) || others.iter().any(|member| member.is_some())
    }
}

/// The bytes of a member.
pub(super) fn bytes(member: Option<&str>, missing: &'static str) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let text = member.ok_or(KeyError::NotJwk(missing))?;
    let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(text.len())]);
    let len = URL_SAFE_NO_PAD
        .decode_slice(text, &mut bytes)
        .map_err(|_| KeyError::NotJwk("a member is not base64url without padding"))?;
    bytes.truncate(len);
    Ok(bytes)
}

/// The bytes of a member that has 32 of them.
pub(super) fn bytes32(member: Option<&str>, missing: &'static str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    bytes(member, missing)?
        .as_slice()
        .try_into()
        .map(Zeroizing::new)
        .map_err(|_| KeyError::NotJwk("a member does not have the 32 bytes that its curve needs"))
}
