// SPDX-License-Identifier: MIT OR Apache-2.0

//! Verification of tokens (RFC 7515 section 5.2, RFC 7519 section 7.2), as RFC 8725 demands.

mod error;
mod header;
mod status_list;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::jws;
use crate::malformed::{Malformed, Segment};
use crate::{Claims, KeySet, LEEWAY, NumericDate};
use header::Header;

pub use error::{Shown, VerifyError};
pub use status_list::{MAX_STATUS_TOKEN, VerifiedStatusList};

/// Verifies tokens of one issuer for one service.
///
/// A token is accepted that is signed with one of the keys, by that key's own algorithm, is of the issuer, for one of the
/// audiences, and has not expired. Cheap to call, and without a lock.
///
/// ```
/// use std::time::SystemTime;
/// use token::{Algorithm, KeySet, SigningKey, Verifier, VerifyError};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let key = SigningKey::generate(Algorithm::EdDsa);
/// let (keys, skipped) = KeySet::from_jwks(KeySet::from(key.verifying_key()).public_jwks().as_bytes())?;
/// assert!(skipped.is_empty());
///
/// let verifier = Verifier::new(keys).issuer("https://hpc.example.org").audience("copy-offload");
/// assert!(matches!(verifier.verify("", SystemTime::now()), Err(VerifyError::Malformed(_))));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Verifier {
    keys: Arc<KeySet>,
    rules: Arc<Rules>,
}

#[derive(Clone, Debug)]
struct Rules {
    issuer: Option<String>,
    audiences: Option<Vec<String>>,
    types: Vec<String>,
    instance: Option<String>,
    leeway: Duration,
}

impl Verifier {
    /// Verifies with these keys. No token is accepted until there is an [`audience`](Self::audience).
    ///
    /// ```
    #[doc = include_str!("../doc_example.txt")]
    /// let verifier = Verifier::new(keys);
    /// assert!(matches!(verifier.verify(token, now), Err(VerifyError::WrongAudience(_))));
    /// assert!(verifier.audience("copy-offload").verify(token, now).is_ok());
    /// ```
    pub fn new(keys: impl Into<Arc<KeySet>>) -> Self {
        Self {
            keys: keys.into(),
            rules: Arc::new(Rules {
                issuer: None,
                audiences: Some(Vec::new()),
                types: Vec::new(),
                instance: None,
                leeway: LEEWAY,
            }),
        }
    }

    /// Demands this `iss`, to the letter. Without it, tokens of any issuer are accepted that has one of the keys.
    ///
    /// ```
    #[doc = include_str!("../doc_example.txt")]
    /// let verifier = Verifier::new(keys).audience("copy-offload").issuer("https://other.example.org");
    /// assert!(matches!(verifier.verify(token, now), Err(VerifyError::WrongIssuer(_))));
    /// ```
    pub fn issuer(self, issuer: impl Into<String>) -> Self {
        self.with(|rules| rules.issuer = Some(issuer.into()))
    }

    /// Accepts tokens whose `aud` is or has this. May be called for several.
    ///
    /// ```
    #[doc = include_str!("../doc_example.txt")]
    /// let verifier = Verifier::new(keys).audience("files").audience("copy-offload");
    /// assert!(verifier.verify(token, now).is_ok());
    /// ```
    pub fn audience(self, audience: impl Into<String>) -> Self {
        self.with(|rules| rules.audiences.get_or_insert_default().push(audience.into()))
    }

    /// Accepts tokens for any audience, which is for tools that show tokens, and not for services.
    ///
    /// ```
    #[doc = include_str!("../doc_example.txt")]
    /// assert!(Verifier::new(keys).any_audience().verify(token, now).is_ok());
    /// ```
    pub fn any_audience(self) -> Self {
        self.with(|rules| rules.audiences = None)
    }

    /// Accepts tokens whose header has this `typ` only, such as `at+jwt` (RFC 9068 section 2.1). May be called for
    /// several. Without it, `typ` is `JWT` or missing.
    ///
    /// ```
    #[doc = include_str!("../doc_example.txt")]
    /// // The token is a `JWT`.
    /// assert!(matches!(verifier.typ("at+jwt").verify(token, now), Err(VerifyError::WrongType(_))));
    /// ```
    pub fn typ(self, typ: impl Into<String>) -> Self {
        self.with(|rules| rules.types.push(typ.into()))
    }

    /// Accepts workflow tokens of jobs of this Flux instance only, to the letter; user tokens as without it. Jobs of
    /// different instances can have the same id, so that without it, instances of the same issuer must not share
    /// workspaces.
    ///
    /// ```
    #[doc = include_str!("../doc_example.txt")]
    /// // The job of the token runs in the instance ƒ2u.
    /// assert!(verifier.clone().instance("ƒ2u").verify(token, now).is_ok());
    /// assert!(matches!(verifier.instance("ƒ3v").verify(token, now), Err(VerifyError::WrongInstance(_))));
    /// ```
    pub fn instance(self, instance: impl Into<String>) -> Self {
        self.with(|rules| rules.instance = Some(instance.into()))
    }

    /// Sets the accepted difference of this clock and that of the issuer. Default: [`LEEWAY`].
    ///
    /// ```
    #[doc = include_str!("../doc_example.txt")]
    /// // The token has a lifetime of 600 s.
    /// let later = now + Duration::from_secs(630);
    /// assert!(verifier.verify(token, later).is_ok());
    /// assert!(verifier.leeway(Duration::ZERO).verify(token, later).is_err());
    /// ```
    pub fn leeway(self, leeway: Duration) -> Self {
        self.with(|rules| rules.leeway = leeway)
    }

    fn with(mut self, change: impl FnOnce(&mut Rules)) -> Self {
        change(Arc::make_mut(&mut self.rules));
        self
    }

    /// The same verifier with other keys, such as those that its issuer has now.
    ///
    /// ```
    #[doc = include_str!("../doc_example.txt")]
    /// assert!(verifier.verify(token, now).is_ok());
    /// let verifier = verifier.with_keys(KeySet::new());
    /// assert_eq!(verifier.verify(token, now).unwrap_err(), VerifyError::NoKeys);
    /// ```
    pub fn with_keys(&self, keys: impl Into<Arc<KeySet>>) -> Self {
        Self {
            keys: keys.into(),
            rules: self.rules.clone(),
        }
    }

    /// The keys that it verifies with.
    ///
    /// ```
    /// use token::{KeySet, Verifier};
    ///
    /// assert!(Verifier::new(KeySet::new()).keys().is_empty());
    /// ```
    pub fn keys(&self) -> &Arc<KeySet> {
        &self.keys
    }

    /// Verifies a token at the time `now`.
    ///
    /// `exp` and `aud` must be there, and `iss` where one is demanded. A token is accepted until `exp` plus the leeway, and
    /// from `nbf` minus the leeway on. The claims that this project defines must be in their form where `scope` names one
    /// of its scopes.
    ///
    /// ```
    #[doc = include_str!("../doc_example.txt")]
    /// let claims = verifier.verify(token, now)?;
    /// assert_eq!(claims.sub(), Some("alice"));
    ///
    /// let later = now + Duration::from_secs(3600);
    /// assert!(matches!(verifier.verify(token, later), Err(VerifyError::Expired { .. })));
    /// # Ok::<(), token::VerifyError>(())
    /// ```
    ///
    /// # Errors
    /// [`VerifyError`] tells why it is refused. [`VerifyError::UnknownKid`] may be worth reading the keys again.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Claims, VerifyError> {
        let parts = Parts::of(token)?;
        if parts.payload.is_empty() {
            return Err(Malformed::EmptySegment(Segment::Claims).into());
        }
        let mut buffer = Buffer::default();
        let header = Header::read(buffer.decode(parts.header)?)?;
        self.rules.check_type(header.typ.as_deref())?;
        let claims = Claims::read(parts.verified_payload(&header, &self.keys)?)?;
        self.rules.check(&claims, now)?;
        Ok(claims)
    }
}

impl Rules {
    fn check_type(&self, typ: Option<&str>) -> Result<(), VerifyError> {
        match typ {
            None if self.types.is_empty() => Ok(()),
            Some(typ) if self.types.is_empty() && is_type(typ, "JWT") => Ok(()),
            Some(typ) if self.types.iter().any(|accepted| is_type(typ, accepted)) => Ok(()),
            typ => Err(VerifyError::WrongType(Shown::new(typ.unwrap_or("none")))),
        }
    }

    fn check(&self, claims: &Claims, now: SystemTime) -> Result<(), VerifyError> {
        self.check_times(claims.exp(), claims.nbf(), now)?;
        self.check_issuer(claims.iss())?;
        if let Some(audiences) = &self.audiences
            && !claims.aud().any(|aud| audiences.iter().any(|audience| audience == aud))
        {
            let aud = claims.aud().next().unwrap_or("nobody");
            return Err(VerifyError::WrongAudience(Shown::new(aud)));
        }
        if let (Some(instance), Some(job)) = (&self.instance, claims.job())
            && job.instance != instance
        {
            return Err(VerifyError::WrongInstance(Shown::new(job.instance)));
        }
        Ok(())
    }

    fn check_times(&self, exp: NumericDate, nbf: Option<NumericDate>, now: SystemTime) -> Result<(), VerifyError> {
        let (seconds, leeway) = (NumericDate::from(now).seconds(), self.leeway.as_secs_f64());
        if exp.seconds() + leeway <= seconds {
            return Err(VerifyError::Expired { at: exp, now });
        }
        match nbf.filter(|nbf| nbf.seconds() > seconds + leeway) {
            Some(at) => Err(VerifyError::NotYet { at, now }),
            None => Ok(()),
        }
    }

    fn check_issuer(&self, iss: Option<&str>) -> Result<(), VerifyError> {
        match (&self.issuer, iss) {
            (Some(issuer), Some(iss)) if iss != issuer => Err(VerifyError::WrongIssuer(Shown::new(iss))),
            (Some(_), None) => Err(VerifyError::Missing("iss")),
            _ => Ok(()),
        }
    }
}

impl KeySet {
    /// Checks the signature of a JWS in compact serialization (RFC 7515 section 5.2), and returns its payload, whatever
    /// that is.
    ///
    /// The key is the one that the header's `kid` names, or the only one of the set where the header names none. Nothing
    /// else that the header says chooses a key or algorithm, and what could is refused (RFC 8725 sections 3.1 and 3.10).
    ///
    /// This is not enough to accept a token: its claims are not looked at. [`Verifier`](crate::Verifier) does that.
    ///
    /// ```
    /// use secrecy::ExposeSecret;
    /// use token::{Algorithm, KeySet, SigningKey};
    ///
    /// let key = SigningKey::generate(Algorithm::EdDsa);
    /// let signed = key.sign(&[], b"a payload");
    /// assert_eq!(KeySet::from(key.verifying_key()).verify_jws(signed.expose_secret())?, b"a payload");
    /// # Ok::<(), token::VerifyError>(())
    /// ```
    ///
    /// # Errors
    /// [`VerifyError`] tells why it is refused.
    pub fn verify_jws(&self, compact: &str) -> Result<Vec<u8>, VerifyError> {
        let parts = Parts::of(compact)?;
        let mut buffer = Buffer::default();
        parts.verified_payload(&Header::read(buffer.decode(parts.header)?)?, self)
    }
}

struct Parts<'a> {
    header: &'a str,
    payload: &'a str,
    signature: &'a str,
    /// The signed text.
    message: &'a str,
}

impl<'a> Parts<'a> {
    fn of(token: &'a str) -> Result<Self, Malformed> {
        Self::of_segments(token, jws::split(token)?)
    }

    fn of_segments(token: &'a str, segments: [&'a str; 3]) -> Result<Self, Malformed> {
        let [header, payload, signature] = segments;
        for (segment, text) in [(Segment::Header, header), (Segment::Signature, signature)] {
            // An unsecured token has no signature either, and its header tells why it is refused.
            if text.is_empty() && segment == Segment::Header {
                return Err(Malformed::EmptySegment(segment));
            }
        }
        Ok(Self {
            header,
            payload,
            signature,
            message: &token[..header.len() + 1 + payload.len()],
        })
    }

    /// The payload, decoded, if the signature is one of it. Without its signature, it is no secret, and not zeroized.
    fn verified_payload(&self, header: &Header, keys: &KeySet) -> Result<Vec<u8>, VerifyError> {
        let key = match header.kid.as_deref() {
            _ if keys.is_empty() => return Err(VerifyError::NoKeys),
            Some(kid) => {
                let key = keys.find(kid, header.algorithm).or_else(|| keys.get(kid));
                key.ok_or_else(|| VerifyError::UnknownKid(Shown::new(kid)))?
            }
            None if keys.len() == 1 => keys.iter().next().ok_or(VerifyError::NoKeys)?,
            // Only one of them can be meant: each is for one algorithm.
            None => {
                let mut matching = keys.iter().filter(|key| key.algorithm() == header.algorithm);
                let only = matching.next().filter(|_| matching.next().is_none());
                only.ok_or(VerifyError::NoKid)?
            }
        };
        match (header.algorithm, key.algorithm()) {
            (token, key) if token == key => (),
            (crate::Algorithm::Hs256, key) => return Err(VerifyError::PublicKeyAsSecret { key }),
            (token, key) => return Err(VerifyError::OtherAlgorithm { key, token }),
        }
        if self.signature.is_empty() {
            return Err(Malformed::EmptySegment(Segment::Signature).into());
        }
        // One allocation serves both: they are not needed at the same time.
        let longest = self.payload.len().max(self.signature.len());
        let mut bytes = Vec::with_capacity(base64::decoded_len_estimate(longest));
        decode(Segment::Signature, self.signature, &mut bytes)?;
        if !key.verifies(self.message.as_bytes(), &bytes) {
            return Err(VerifyError::BadSignature);
        }
        bytes.clear();
        decode(Segment::Claims, self.payload, &mut bytes)?;
        Ok(bytes)
    }
}

/// Returns whether two media types are the same: they are compared without case, and `application/` is left out
/// (RFC 7515 section 4.1.9).
fn is_type(typ: &str, other: &str) -> bool {
    let plain = |typ: &str| match typ.get(..12) {
        Some(prefix) if prefix.eq_ignore_ascii_case("application/") => 12,
        _ => 0,
    };
    typ[plain(typ)..].eq_ignore_ascii_case(&other[plain(other)..])
}

/// Where a header is decoded to: on the stack, unless it is longer than headers are.
struct Buffer {
    short: [u8; 512],
    long: Vec<u8>,
}

impl Default for Buffer {
    fn default() -> Self {
        Self {
            short: [0; 512],
            long: Vec::new(),
        }
    }
}

impl Buffer {
    fn decode(&mut self, header: &str) -> Result<&[u8], Malformed> {
        let estimate = base64::decoded_len_estimate(header.len());
        let bytes = if estimate <= self.short.len() {
            &mut self.short[..]
        } else {
            self.long.resize(estimate, 0);
            &mut self.long[..]
        };
        match URL_SAFE_NO_PAD.decode_slice(header, bytes) {
            Ok(len) => Ok(&bytes[..len]),
            Err(e) => Err(jws::base64(Segment::Header, header, &e)),
        }
    }
}

fn decode(segment: Segment, text: &str, into: &mut Vec<u8>) -> Result<(), Malformed> {
    URL_SAFE_NO_PAD
        .decode_vec(text, into)
        .map_err(|e| jws::base64(segment, text, &e.into()))
}
