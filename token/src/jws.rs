// SPDX-License-Identifier: MIT OR Apache-2.0

//! The compact serialization of a JWS (RFC 7515 section 3.1) as far as one can read it without a key.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::NumericDate;
use crate::json::{Members, Unique};
use crate::malformed::{Base64Fault, MAX_LEN, Malformed, Segment};

/// A JSON Web Token that was taken apart but **not verified**: whoever made the text chose every value in it.
///
/// It does not keep the signature, so that it can be printed: without its signature a token authorizes nothing.
#[derive(Clone, Debug)]
pub struct Token {
    header: Map<String, Value>,
    alg: String,
    claims: UnverifiedClaims,
    signature_len: usize,
}

impl Token {
    /// Takes a token in compact serialization apart, to show it to a person (RFC 7515 section 7.1, RFC 7519 section 7.2
    /// without any of the steps that verify).
    ///
    /// This is more lenient than [`check_shape`](crate::check_shape): it reads expired tokens, and unsecured ones
    /// (`"alg":"none"`, see [`is_unsecured`](Self::is_unsecured)) with their empty signature.
    ///
    /// ```
    #[doc = include_str!("doc_example.txt")]
    /// let shown = Token::inspect(token)?;
    /// assert_eq!(shown.claims().subject(), Some("alice"));
    /// assert_eq!(Token::inspect("no token").unwrap_err(), Malformed::Segments(1));
    /// # Ok::<(), token::Malformed>(())
    /// ```
    ///
    /// # Errors
    /// [`Malformed`] tells which part of the text is not as a JWT is; it holds nothing of the text.
    pub fn inspect(token: &str) -> Result<Self, Malformed> {
        let [header, claims, signature] = segments(token)?;
        let header = object(&decode(Segment::Header, header)?, Segment::Header)?;
        let alg = match header.get("alg") {
            Some(Value::String(alg)) => alg.clone(),
            Some(_) => return Err(Malformed::AlgNotString),
            None => return Err(Malformed::NoAlg),
        };
        let claims = UnverifiedClaims(object(&decode(Segment::Claims, claims)?, Segment::Claims)?);
        let signature_len = if signature.is_empty() && is_none(&alg) {
            0
        } else {
            decode(Segment::Signature, signature)?.len()
        };
        Ok(Self {
            header,
            alg,
            claims,
            signature_len,
        })
    }

    /// The JOSE header: a JSON object with a string `alg`.
    ///
    /// ```
    #[doc = include_str!("doc_example.txt")]
    /// let token = Token::inspect(token)?;
    /// assert_eq!(token.header()["typ"], "JWT");
    /// # Ok::<(), token::Malformed>(())
    /// ```
    pub fn header(&self) -> &Map<String, Value> {
        &self.header
    }

    /// The algorithm that the header names (RFC 7515 section 4.1.1), such as `HS256`.
    ///
    /// ```
    #[doc = include_str!("doc_example.txt")]
    /// let token = Token::inspect(token)?;
    /// assert_eq!(token.alg(), "EdDSA");
    /// # Ok::<(), token::Malformed>(())
    /// ```
    pub fn alg(&self) -> &str {
        &self.alg
    }

    /// Returns whether the header says `"alg":"none"`: anyone can make such a token, and no service may accept it
    /// (RFC 7519 section 6, RFC 8725 section 3.2).
    ///
    /// ```
    /// use token::Token;
    ///
    /// // {"alg":"none"}, {"sub":"alice"}, and no signature.
    /// let token = Token::inspect("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.")?;
    /// assert!(token.is_unsecured());
    /// # Ok::<(), token::Malformed>(())
    /// ```
    pub fn is_unsecured(&self) -> bool {
        is_none(&self.alg)
    }

    /// Returns the claims, of which none is verified.
    ///
    /// ```
    #[doc = include_str!("doc_example.txt")]
    /// let token = Token::inspect(token)?;
    /// assert_eq!(token.claims().as_map()["scope"], "session");
    /// # Ok::<(), token::Malformed>(())
    /// ```
    pub fn claims(&self) -> &UnverifiedClaims {
        &self.claims
    }

    /// Length of the decoded signature in bytes, 0 where there is none.
    ///
    /// ```
    #[doc = include_str!("doc_example.txt")]
    /// let token = Token::inspect(token)?;
    /// // An Ed25519 signature.
    /// assert_eq!(token.signature_len(), 64);
    /// # Ok::<(), token::Malformed>(())
    /// ```
    pub fn signature_len(&self) -> usize {
        self.signature_len
    }
}

/// Libraries have been fooled by `nOnE` before, so it is compared without case although RFC 7515 says otherwise.
pub(crate) fn is_none(alg: &str) -> bool {
    alg.eq_ignore_ascii_case("none")
}

/// The claims of a token (RFC 7519 section 4), as whoever made it wrote them.
#[derive(Clone, Debug)]
pub struct UnverifiedClaims(Map<String, Value>);

impl UnverifiedClaims {
    /// All claims, by name.
    ///
    /// ```
    #[doc = include_str!("doc_example.txt")]
    /// let token = Token::inspect(token)?;
    /// assert_eq!(token.claims().as_map()["flux"]["uid"], 1000);
    /// # Ok::<(), token::Malformed>(())
    /// ```
    pub fn as_map(&self) -> &Map<String, Value> {
        &self.0
    }

    /// `sub`, whom the token is about, where it is a string (RFC 7519 section 4.1.2).
    ///
    /// ```
    #[doc = include_str!("doc_example.txt")]
    /// let token = Token::inspect(token)?;
    /// assert_eq!(token.claims().subject(), Some("alice"));
    /// # Ok::<(), token::Malformed>(())
    /// ```
    pub fn subject(&self) -> Option<&str> {
        self.0.get("sub").and_then(Value::as_str)
    }

    /// `exp`, from when on the token is not accepted (RFC 7519 section 4.1.4).
    ///
    /// ```
    #[doc = include_str!("doc_example.txt")]
    /// let token = Token::inspect(token)?;
    /// let expires = token.claims().expires()?.expect("tokens of jobs expire");
    /// assert_eq!(expires.to_string(), "2027-01-15T08:10:00Z");
    /// # Ok::<(), token::Malformed>(())
    /// ```
    ///
    /// # Errors
    /// [`Malformed::NotNumber`] where the claim is there and is not a number.
    pub fn expires(&self) -> Result<Option<NumericDate>, Malformed> {
        self.date("exp")
    }

    /// `nbf`, before when the token is not accepted (RFC 7519 section 4.1.5).
    ///
    /// ```
    #[doc = include_str!("doc_example.txt")]
    /// let token = Token::inspect(token)?;
    /// assert_eq!(token.claims().not_before(), token.claims().issued_at());
    /// # Ok::<(), token::Malformed>(())
    /// ```
    ///
    /// # Errors
    /// [`Malformed::NotNumber`] where the claim is there and is not a number.
    pub fn not_before(&self) -> Result<Option<NumericDate>, Malformed> {
        self.date("nbf")
    }

    /// `iat`, when the token was issued (RFC 7519 section 4.1.6).
    ///
    /// ```
    #[doc = include_str!("doc_example.txt")]
    /// let token = Token::inspect(token)?;
    /// let issued_at = token.claims().issued_at()?.expect("the time of issue");
    /// assert_eq!(issued_at.to_string(), "2027-01-15T08:00:00Z");
    /// # Ok::<(), token::Malformed>(())
    /// ```
    ///
    /// # Errors
    /// [`Malformed::NotNumber`] where the claim is there and is not a number.
    pub fn issued_at(&self) -> Result<Option<NumericDate>, Malformed> {
        self.date("iat")
    }

    fn date(&self, claim: &'static str) -> Result<Option<NumericDate>, Malformed> {
        let Some(value) = self.0.get(claim) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(seconds) => Ok(Some(NumericDate::from_seconds(seconds))),
            None => Err(Malformed::NotNumber(claim)),
        }
    }
}

/// The three segments of a compact serialization. Only that header and claims are not empty is certain of them.
pub(crate) fn segments(token: &str) -> Result<[&str; 3], Malformed> {
    let [header, claims, signature] = split(token)?;
    for (segment, text) in [(Segment::Header, header), (Segment::Claims, claims)] {
        if text.is_empty() {
            return Err(Malformed::EmptySegment(segment));
        }
    }
    Ok([header, claims, signature])
}

/// The three segments of a compact serialization, any of which may be empty.
pub(crate) fn split(token: &str) -> Result<[&str; 3], Malformed> {
    if token.len() > MAX_LEN {
        return Err(Malformed::TooLong);
    }
    split_any(token)
}

/// The same of a text whose length the caller has checked.
pub(crate) fn split_any(token: &str) -> Result<[&str; 3], Malformed> {
    if token.is_empty() {
        return Err(Malformed::Empty);
    }
    let mut parts = token.split('.');
    let (Some(header), Some(claims), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Malformed::Segments(token.split('.').count()));
    };
    Ok([header, claims, signature])
}

/// Decodes one segment, which must not be empty.
pub(crate) fn decode(segment: Segment, text: &str) -> Result<Zeroizing<Vec<u8>>, Malformed> {
    if text.is_empty() {
        return Err(Malformed::EmptySegment(segment));
    }
    // Sized up front: a vector that grows would leave copies behind that nothing zeroizes.
    let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(text.len())]);
    let len = URL_SAFE_NO_PAD
        .decode_slice(text, &mut bytes)
        .map_err(|e| base64(segment, text, &e))?;
    bytes.truncate(len);
    Ok(bytes)
}

/// The decoder's error as a position.
pub(crate) fn base64(segment: Segment, text: &str, error: &base64::DecodeSliceError) -> Malformed {
    let (fault, at) = fault(text, error);
    Malformed::Base64 { segment, fault, at }
}

/// What is wrong with `text`, and at which byte. The error's own message would show the byte.
fn fault(text: &str, error: &base64::DecodeSliceError) -> (Base64Fault, usize) {
    let bad = text
        .bytes()
        .position(|b| !(b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
    if let Some(at) = bad {
        let fault = match text.as_bytes()[at] {
            b'=' => Base64Fault::Padding,
            b'+' | b'/' => Base64Fault::StandardAlphabet,
            b if b.is_ascii_whitespace() => Base64Fault::Whitespace,
            _ => Base64Fault::Character,
        };
        return (fault, at);
    }
    match error {
        base64::DecodeSliceError::DecodeError(base64::DecodeError::InvalidLastSymbol { .. }) => {
            (Base64Fault::TrailingBits, text.len() - 1)
        }
        _ => (Base64Fault::Length, text.len()),
    }
}

/// That decoded bytes are the text of something that starts as a JSON object does.
pub(crate) fn object_text(bytes: &[u8], segment: Segment) -> Result<&str, Malformed> {
    let text = std::str::from_utf8(bytes).map_err(|e| Malformed::NotUtf8 {
        segment,
        at: e.valid_up_to(),
    })?;
    if text.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('{') {
        return Ok(text);
    }
    match serde_json::from_str::<serde::de::IgnoredAny>(text) {
        Ok(_) => Err(Malformed::NotObject(segment)),
        Err(e) => Err(not_json(segment, &e)),
    }
}

/// serde_json's error as a position; its message could quote the text.
pub(crate) fn not_json(segment: Segment, error: &serde_json::Error) -> Malformed {
    let (line, column) = (error.line(), error.column());
    // It has no other words for it, and uses them for nothing else.
    match error.to_string().contains("hex escape") {
        true => Malformed::HalfCharacter { segment, line, column },
        false => Malformed::NotJson { segment, line, column },
    }
}

/// The members of the JSON object in `text` that `T` knows. Its names are there once each.
pub(crate) fn members<'a, T: Members<'a>>(text: &'a str, segment: Segment) -> Result<T, Malformed> {
    match serde_json::from_str(text) {
        Ok(Unique(members)) => Ok(members),
        // A [`json::Value`](crate::json::Value) is read from anything, so this can only be a name that is there twice.
        Err(e) if e.classify() == serde_json::error::Category::Data => Err(Malformed::Repeated(segment)),
        Err(e) => Err(not_json(segment, &e)),
    }
}

fn object(bytes: &[u8], segment: Segment) -> Result<Map<String, Value>, Malformed> {
    serde_json::from_str(object_text(bytes, segment)?).map_err(|e| not_json(segment, &e))
}

#[cfg(test)]
pub(crate) mod tests;
