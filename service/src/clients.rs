// SPDX-License-Identifier: MIT OR Apache-2.0

//! Authenticates clients.

use std::borrow::Cow;

use axum::http::{HeaderMap, header};
use base64::{Engine, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use crate::{
    error::OAuthError,
    form::Form,
    peer::Peer,
    settings::{Client, Proof, Settings},
};

/// Returns the client of a request: by HTTP Basic or the parameters `client_id` and `client_secret` (RFC 6749 section
/// 2.3.1); by its uid over a Unix socket; or, for a public client, by `client_id` alone, without authentication (RFC
/// 6749 section 2.1).
///
/// # Errors
/// [`OAuthError::InvalidRequest`], [`OAuthError::InvalidClient`].
pub fn authenticate<'a>(
    settings: &'a Settings,
    peer: Peer,
    headers: &HeaderMap,
    form: &Form,
) -> Result<&'a Client, OAuthError> {
    let clients = &settings.clients;
    let basic = basic(headers)?;
    match (basic, form.get("client_secret")) {
        (Some(_), Some(_)) => Err(OAuthError::InvalidRequest(
            "the client used two methods of authentication",
        )),
        (Some(Basic { id, secret }), None) => {
            if form.get("client_id").is_some_and(|named| named != id.as_str()) {
                return Err(OAuthError::InvalidRequest("client_id names another client"));
            }
            with_secret(clients, &id, secret.as_bytes())
        }
        (None, Some(secret)) => {
            let id = form.get("client_id").ok_or(OAuthError::InvalidClient)?;
            with_secret(clients, id, secret.as_bytes())
        }
        (None, None) => {
            let is_public = |client: &&Client| client.is_public() && form.get("client_id") == Some(&client.id);
            if let Some(public) = clients.iter().find(is_public) {
                return Ok(public);
            }
            let uid = peer.uid().ok_or(OAuthError::InvalidClient)?;
            let is_named = |client: &&Client| form.get("client_id").is_none_or(|id| id == client.id);
            let mut of_uid = clients
                .iter()
                .filter(|client| matches!(client.proof, Proof::Uid(of) if of == uid));
            of_uid.find(is_named).ok_or(OAuthError::InvalidClient)
        }
    }
}

fn with_secret<'a>(clients: &'a [Client], id: &str, secret: &[u8]) -> Result<&'a Client, OAuthError> {
    // Compare a secret in any case, so that unknown ids take as long as known ones.
    let unknown = Proof::Secret([0; 32]);
    let client = clients.iter().find(|client| client.id == id);
    let is_secret = client.map_or(&unknown, |client| &client.proof).is_secret(secret);
    client.filter(|_| is_secret).ok_or(OAuthError::InvalidClient)
}

struct Basic {
    id: Zeroizing<String>,
    secret: Zeroizing<String>,
}

/// Returns the credentials of HTTP Basic (RFC 7617), whose parts are encoded like parameters (RFC 6749 section 2.3.1).
fn basic(headers: &HeaderMap) -> Result<Option<Basic>, OAuthError> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Ok(None);
    };
    let read = || {
        let (scheme, encoded) = value.to_str().ok()?.split_once(' ')?;
        let decoded = Zeroizing::new(STANDARD.decode(encoded.trim_matches(' ')).ok()?);
        let (id, secret) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
        let id = Zeroizing::new(decode(id)?.into_owned());
        let secret = Zeroizing::new(decode(secret)?.into_owned());
        scheme.eq_ignore_ascii_case("basic").then_some(Basic { id, secret })
    };
    read().map(Some).ok_or(OAuthError::InvalidClient)
}

fn decode(text: &str) -> Option<Cow<'_, str>> {
    if text.contains(['&', '=']) {
        // The client did not encode it.
        return Some(Cow::Borrowed(text));
    }
    let mut parts = form_urlencoded::parse(text.as_bytes());
    match (parts.next(), parts.next()) {
        (None, _) => Some(Cow::Borrowed("")),
        (Some((name, _)), None) if !name.contains('\u{fffd}') => Some(name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest::{SHA256, digest};

    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef%+";

    fn client(id: &str, proof: Proof) -> Client {
        Client {
            id: id.to_owned(),
            proof,
            audience: vec!["a".to_owned()],
            may_introspect: true,
            may_revoke: false,
            redirect_uris: Vec::new(),
        }
    }

    fn settings() -> Settings {
        let mut settings =
            Settings::parse("issuer = \"https://a.example.org\"\n[[listen]]\naddress = \"127.0.0.1:0\"\n").unwrap();
        let mut proof = [0; 32];
        proof.copy_from_slice(digest(&SHA256, SECRET.as_bytes()).as_ref());
        settings.clients = vec![client("copy", Proof::Secret(proof)), client("local", Proof::Uid(1000))];
        settings
    }

    fn ask(peer: Peer, basic: Option<&str>, body: &str) -> Result<String, OAuthError> {
        let mut headers = HeaderMap::new();
        if let Some(basic) = basic {
            let value = format!("Basic {}", STANDARD.encode(basic));
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        }
        let form = Form::parse(body.as_bytes()).unwrap();
        authenticate(&settings(), peer, &headers, &form).map(|client| client.id.clone())
    }

    #[test]
    fn a_client_proves_its_identity_in_one_way() {
        let local = Peer::Tcp;
        let copy = Ok("copy".to_owned());
        let encoded = "0123456789abcdef0123456789abcdef%25%2B";
        assert_eq!(ask(local, Some(&format!("copy:{encoded}")), ""), copy);
        assert_eq!(ask(local, Some(&format!("copy:{encoded}")), "client_id=copy"), copy);
        assert_eq!(
            ask(local, None, &format!("client_id=copy&client_secret={encoded}")),
            copy
        );
        for (basic, body) in [
            (Some("copy:x".to_owned()), String::new()),
            (Some(format!("other:{encoded}")), String::new()),
            (Some(format!("local:{encoded}")), String::new()),
            (Some("local:".to_owned()), String::new()),
            (None, "client_id=copy".to_owned()),
            (None, format!("client_secret={encoded}")),
            // A TCP connection from this machine authenticates nobody.
            (None, "client_id=local".to_owned()),
            (None, String::new()),
        ] {
            assert_eq!(
                ask(local, basic.as_deref(), &body),
                Err(OAuthError::InvalidClient),
                "{basic:?} {body}"
            );
        }
        for body in [
            format!("client_id=copy&client_secret={encoded}"),
            "client_id=local".to_owned(),
        ] {
            let both = ask(local, Some(&format!("copy:{encoded}")), &body);
            assert!(matches!(both, Err(OAuthError::InvalidRequest(_))), "{body}");
        }
    }

    #[test]
    fn a_local_user_is_known_by_its_uid() {
        assert_eq!(ask(Peer::Unix(1000), None, ""), Ok("local".to_owned()));
        assert_eq!(ask(Peer::Unix(1000), None, "client_id=local"), Ok("local".to_owned()));
        assert_eq!(
            ask(Peer::Unix(1000), None, "client_id=copy"),
            Err(OAuthError::InvalidClient)
        );
        // Root is a client only if the configuration contains it.
        assert_eq!(ask(Peer::Unix(0), None, ""), Err(OAuthError::InvalidClient));
    }
}
