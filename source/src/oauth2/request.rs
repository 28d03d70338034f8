// SPDX-License-Identifier: MIT OR Apache-2.0

//! Requests to a token endpoint, and the authentication of the client.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use config::ClientAuthentication;
use http::HeaderValue;
use hyper::body::Bytes;
use seal::{ExposeSecret, Secret};
use serde_json::json;
use token::SigningKey;
use zeroize::Zeroizing;

use super::{SERVER, refresh::HeldToken};
use crate::{http::SourceError, secure_file};

/// The longest file with a secret or key, in bytes.
const MAX_FILE: usize = 64 << 10;

/// The lifetime of a JWT that authenticates a client. It covers the duration of a request and the clock skew.
const ASSERTION_LIFETIME: Duration = Duration::from_secs(60);

/// A token that is sent in exchange for the requested one.
pub(crate) enum Subject {
    /// A subject token (RFC 8693 section 2.1). `kind` is the URI of its type.
    Exchanged { token: Secret, kind: String },
    /// A refresh token (RFC 6749 section 6).
    Held(Arc<HeldToken>),
    /// The code of a user who has logged in (RFC 6749 section 4.1.3), with the verifier of RFC 7636 section 4.5.
    Code {
        code: Secret,
        verifier: Secret,
        redirect_uri: String,
    },
}

/// The authentication of this client.
pub(super) enum Client {
    Basic(Secret),
    Post(Secret),
    Key(Box<SigningKey>),
}

/// A request for a token.
pub(super) struct Request {
    pub authorization: Option<HeaderValue>,
    pub form: Zeroizing<Vec<u8>>,
    /// The texts to redact from messages: each secret, and its encoded forms.
    pub secrets: Vec<Secret>,
}

impl Client {
    /// Reads the secret or key. Blocks.
    pub fn read(how: &ClientAuthentication) -> Result<Self, SourceError> {
        let key = match how {
            ClientAuthentication::PrivateKeyJwt(_) => "client-key",
            _ => "client-secret",
        };
        let path = crate::expand(how.path())
            .map_err(|e| SERVER.wrong_credential(format_args!("{key}: {e}"), "correct the path"))?;
        let wrong = |what: &dyn std::fmt::Display, todo: &str| {
            SERVER.wrong_credential(format_args!("{key}: {} {what}", path.display()), todo)
        };
        let bytes = secure_file::read_private(&path, MAX_FILE);
        let bytes = bytes.map_err(|refusal| SourceError::of_file(SERVER.credential, key, &path, refusal))?;
        match how {
            ClientAuthentication::SecretBasic(_) | ClientAuthentication::SecretPost(_) => {
                let secret = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
                let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
                // RFC 6749 appendix A.2.
                let is_secret = !secret.is_empty() && secret.iter().all(|b| b.is_ascii_graphic() || *b == b' ');
                let secret = std::str::from_utf8(secret).ok().filter(|_| is_secret).ok_or_else(|| {
                    wrong(
                        &"is not a client secret (it is empty, or not one line of printable ASCII)",
                        "write only the secret into it",
                    )
                })?;
                let secret = Secret::from(secret);
                Ok(match how {
                    ClientAuthentication::SecretPost(_) => Self::Post(secret),
                    _ => Self::Basic(secret),
                })
            }
            ClientAuthentication::PrivateKeyJwt(_) => {
                let is_jwk = bytes.trim_ascii_start().starts_with(b"{");
                let key = if is_jwk {
                    SigningKey::from_jwk(&bytes)
                } else {
                    SigningKey::from_pem(&bytes)
                };
                key.map(|key| Self::Key(Box::new(key))).map_err(|e| {
                    wrong(
                        &format_args!("contains no private key ({e})"),
                        "write the key again, in PEM or as a JWK",
                    )
                })
            }
        }
    }

    /// Returns a token request of this client. `audience` is the audience of a JWT that authenticates the client.
    pub fn request(
        &self,
        settings: &config::OAuth2,
        subject: Option<&Subject>,
        audience: &str,
    ) -> Result<Request, SourceError> {
        let (mut form, mut secrets) = (Form::default(), Vec::new());
        form.add("grant_type", settings.grant.uri());
        let sent = match subject {
            Some(Subject::Exchanged { token, kind }) => {
                form.add("subject_token", token.expose_secret());
                form.add("subject_token_type", kind);
                Some(token)
            }
            Some(Subject::Held(held)) => {
                form.add("refresh_token", held.token().expose_secret());
                Some(held.token())
            }
            Some(Subject::Code {
                code,
                verifier,
                redirect_uri,
            }) => {
                form.add("code", code.expose_secret());
                form.add("code_verifier", verifier.expose_secret());
                form.add("redirect_uri", redirect_uri);
                secrets.extend([verifier.clone(), encoded(verifier)]);
                Some(code)
            }
            None => None,
        };
        secrets.extend(sent.into_iter().flat_map(|token| [token.clone(), encoded(token)]));
        // The authorization request has determined the scope of a code.
        let is_code = matches!(subject, Some(Subject::Code { .. }));
        if let Some(scope) = settings.scope.as_ref().filter(|_| !is_code) {
            form.add("scope", scope);
        }
        for audience in &settings.audience {
            form.add("audience", audience);
        }
        for resource in &settings.resource {
            form.add("resource", resource);
        }
        let id = &settings.client_id;
        let authorization = match self {
            Self::Basic(secret) => {
                let (header, pair) = basic(id, secret)?;
                secrets.extend([secret.clone(), encoded(secret), pair]);
                Some(header)
            }
            Self::Post(secret) => {
                form.add("client_id", id);
                form.add("client_secret", secret.expose_secret());
                secrets.extend([secret.clone(), encoded(secret)]);
                None
            }
            Self::Key(key) => {
                let assertion = assertion(key, id, audience, SystemTime::now());
                form.add("client_id", id);
                form.add(
                    "client_assertion_type",
                    "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
                );
                form.add("client_assertion", assertion.expose_secret());
                // It consists of base64url and dots, which a form does not encode.
                secrets.push(assertion);
                None
            }
        };
        Ok(Request {
            authorization,
            form: form.0,
            secrets,
        })
    }
}

/// Returns a secret as a form encodes it.
fn encoded(secret: &Secret) -> Secret {
    let mut form = Form::default();
    form.push(secret.expose_secret());
    // An encoded form is ASCII.
    Secret::from(std::str::from_utf8(&form.0).unwrap_or_default())
}

/// Returns the header of RFC 6749 section 2.3.1, and its secret part. The id and the secret are form-encoded before
/// base64.
fn basic(id: &str, secret: &Secret) -> Result<(HeaderValue, Secret), SourceError> {
    let mut pair = Form::default();
    pair.push(id);
    pair.0.push(b':');
    pair.push(secret.expose_secret());
    let mut text = Zeroizing::new(String::with_capacity(pair.0.len() * 2 + 16));
    text.push_str("Basic ");
    STANDARD.encode_string(&*pair.0, &mut text);
    let encoded = Secret::from(&text["Basic ".len()..]);
    let bytes = Bytes::from_owner(Zeroizing::new(text.as_bytes().to_vec()));
    let mut header = HeaderValue::from_maybe_shared(bytes)
        .map_err(|_| SERVER.wrong_credential("the client secret cannot be sent", "write it again"))?;
    header.set_sensitive(true);
    Ok((header, encoded))
}

/// Returns the JWT that authenticates a client (RFC 7523 section 3).
fn assertion(key: &SigningKey, id: &str, audience: &str, now: SystemTime) -> Secret {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let claims = json!({
        "iss": id,
        "sub": id,
        "aud": audience,
        "jti": format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..)),
        "iat": now,
        "exp": now + ASSERTION_LIFETIME.as_secs(),
    });
    let jwt = key.sign(&[("typ", "JWT")], claims.to_string().as_bytes());
    Secret::from(jwt.expose_secret())
}

/// A form (`application/x-www-form-urlencoded`), in memory that is zeroized.
#[derive(Default)]
struct Form(Zeroizing<Vec<u8>>);

impl Form {
    fn add(&mut self, name: &str, value: &str) {
        if !self.0.is_empty() {
            self.append(b"&");
        }
        self.push(name);
        self.append(b"=");
        self.push(value);
    }

    fn push(&mut self, text: &str) {
        for part in form_urlencoded::byte_serialize(text.as_bytes()) {
            self.append(part.as_bytes());
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        crate::http::append(&mut self.0, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The client of RFC 6749 section 2.3.1.
    #[test]
    fn the_header_is_that_of_the_rfc() {
        let (header, _) = basic("s6BhdRkqt3", &Secret::from("gX1fBat3bV")).unwrap();
        assert_eq!(header, "Basic czZCaGRSa3F0MzpnWDFmQmF0M2JW");
        assert!(header.is_sensitive());
    }

    #[test]
    fn id_and_secret_are_encoded_so_that_no_colon_divides_them_elsewhere() {
        let (header, encoded) = basic("a:b c", &Secret::from("p%:+ü")).unwrap();
        let pair = STANDARD.decode(encoded.expose_secret()).unwrap();
        assert_eq!(String::from_utf8(pair).unwrap(), "a%3Ab+c:p%25%3A%2B%C3%BC");
        assert!(!format!("{header:?}").contains("Basic"), "a secret can be printed");
    }

    #[test]
    fn a_form_is_what_servers_read() {
        let mut form = Form::default();
        form.add("scope", "data:read data:write");
        form.add("resource", "https://a.example.org/x?y=1&z");
        let text = String::from_utf8(form.0.to_vec()).unwrap();
        assert_eq!(
            text,
            "scope=data%3Aread+data%3Awrite&resource=https%3A%2F%2Fa.example.org%2Fx%3Fy%3D1%26z"
        );
        let read: Vec<_> = form_urlencoded::parse(text.as_bytes()).collect();
        assert_eq!(read[1].1, "https://a.example.org/x?y=1&z");
    }

    #[test]
    fn the_assertion_is_of_the_client_for_the_server_and_for_a_moment() {
        let key = SigningKey::generate(token::Algorithm::Es256);
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let one = assertion(&key, "flux", "https://login.example.org", now);
        let keys = token::KeySet::from(key.verifying_key());
        let claims: serde_json::Value = serde_json::from_slice(&keys.verify_jws(one.expose_secret()).unwrap()).unwrap();
        assert_eq!((&claims["iss"], &claims["sub"]), (&json!("flux"), &json!("flux")));
        assert_eq!(claims["aud"], "https://login.example.org");
        assert_eq!((&claims["iat"], &claims["exp"]), (&json!(1_000_000), &json!(1_000_060)));
        let other = assertion(&key, "flux", "https://login.example.org", now);
        assert_ne!(
            one.expose_secret(),
            other.expose_secret(),
            "a server would take the second for a replay"
        );
    }
}
