//! A client of the token service: exchanges a MUNGE credential for a token of the user who encoded it.

use std::time::Duration;

use config::{Discovery, check_url};
use seal::Secret;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::{
    http::{HttpReply, Peer, SourceError, quote},
    remote::{Remote, ask_here},
};

/// The longest answer, in bytes.
const MAX_BODY: usize = 256 << 10;

/// The token service, in the words of messages.
static SERVER: Peer = Peer {
    server: "the token service",
    unreachable: "the token service could not be reached",
    unwell: "the token service is not well",
    credential: "the certificates for the token service cannot be used",
    address: "--issuer",
    authorities: "--ca-file",
    name: None,
    client_certificate: None,
};

/// What a user wants of a token.
#[derive(Debug, Default)]
pub struct Wanted {
    /// The audiences; none for all that are allowed.
    pub audience: Vec<String>,
    /// The projects; none for all.
    pub projects: Vec<String>,
    /// The lifetime; none for the longest.
    pub lifetime: Option<Duration>,
}

/// Exchanges a MUNGE credential, which `seal` makes for the uid of the agent, for a token. Blocks, no longer than `limit`.
///
/// # Errors
/// For the user: the service cannot be reached, or gives no token.
pub fn token_of_user(
    issuer: &str,
    network: &Discovery,
    wanted: &Wanted,
    seal: impl FnOnce(u32) -> Result<String, String>,
    limit: Duration,
) -> Result<Secret, String> {
    let remote = Remote::new(network, &SERVER);
    let service = ask_here(&SERVER, limit, async {
        let url = format!("{issuer}/.well-known/openid-configuration");
        let reply = remote.get(&url, MAX_BODY, limit).await?;
        if !reply.status.is_success() {
            return Err(remote.unusable(&reply));
        }
        metadata(issuer, &reply)
    });
    let failed = |e: SourceError| format!("issuer {issuer}: {e}");
    let service = service.map_err(failed)?;
    let form = form(wanted, &seal(service.munge_uid)?);
    let reply = ask_here(
        &SERVER,
        limit,
        remote.post(&service.token_endpoint, None, form, MAX_BODY, limit),
    );
    let reply = reply.map_err(failed)?;
    match serde_json::from_slice(reply.json()) {
        Ok(Reply::Token { access_token }) if reply.status.is_success() => Ok(Secret::from(access_token.as_str())),
        Ok(Reply::Error {
            error,
            error_description,
        }) => Err(format!(
            "{issuer} gave no token [{}]: {}",
            quote(&error, &[]),
            quote(&error_description, &[])
        )),
        _ => Err(failed(remote.unusable(&reply))),
    }
}

/// The metadata of the service, as far as they are used.
#[derive(Deserialize)]
struct Service {
    issuer: String,
    token_endpoint: String,
    munge_uid: u32,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Reply {
    Token {
        access_token: Zeroizing<String>,
    },
    Error {
        error: String,
        #[serde(default)]
        error_description: String,
    },
}

fn metadata(issuer: &str, reply: &HttpReply) -> Result<Service, SourceError> {
    let wrong = |cause: &str| {
        SourceError::permanent(
            SERVER.unwell,
            cause,
            "retry, or check that --issuer is the URL of the token service",
        )
    };
    let service: Service = serde_json::from_slice(reply.json())
        .map_err(|_| wrong("its metadata have no munge_uid or token_endpoint, as before its agent is connected"))?;
    if service.issuer != issuer {
        return Err(wrong("its metadata are of another issuer"));
    }
    match check_url(&service.token_endpoint) {
        Ok(()) => Ok(service),
        Err(_) => Err(wrong("its token_endpoint is not a URL with https")),
    }
}

fn form(wanted: &Wanted, credential: &str) -> Zeroizing<Vec<u8>> {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange")
        .append_pair("subject_token_type", "urn:x-workflow-token:munge")
        .append_pair("subject_token", credential);
    for audience in &wanted.audience {
        form.append_pair("audience", audience);
    }
    if !wanted.projects.is_empty() {
        form.append_pair("project", &wanted.projects.join(" "));
    }
    if let Some(lifetime) = wanted.lifetime {
        form.append_pair("lifetime", &lifetime.as_secs().to_string());
    }
    Zeroizing::new(form.finish().into_bytes())
}
