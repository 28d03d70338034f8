//! Tokens for users and clients: client credentials (RFC 6749 section 4.4) and token exchange (RFC 8693). The agent checks the proof
//! and decides.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Extension, Json,
    body::Bytes,
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use protocol::{Answer, Denial, DenialCode, Evidence, IssuerQuestion, MintRequest, Question, SecretText};
use serde_json::json;
use zeroize::Zeroizing;

use crate::{
    audit::Event,
    clients::authenticate,
    error::OAuthError,
    form::Form,
    introspect::{is_for, read_form},
    log::Kind,
    metadata::{CLIENT_CREDENTIALS, TOKEN_EXCHANGE},
    peer::Peer,
    service::Service,
    settings::{Client, Settings},
};

/// The type of a MUNGE credential, of which no standard has one.
pub const MUNGE: &str = "urn:x-workflow-token:munge";

/// The longest MUNGE credential, in bytes: ours has a payload of a line.
const MAX_MUNGE: usize = 8 << 10;

/// The most audiences and projects of a request.
const MAX_WORDS: usize = 64;

/// The types of tokens that can be exchanged (RFC 8693 section 3).
const TOKEN_TYPES: [&str; 3] = [
    "urn:ietf:params:oauth:token-type:access_token",
    "urn:ietf:params:oauth:token-type:jwt",
    "urn:ietf:params:oauth:token-type:id_token",
];

/// The types of tokens that can be requested: all are the same JWT.
const REQUESTED: [&str; 2] = [TOKEN_TYPES[0], TOKEN_TYPES[1]];

/// The parameters that may be there more than once (RFC 8693 section 2.1).
const REPEATABLE: [&str; 2] = ["audience", "resource"];

static UNMINTED: Kind = Kind::new();

/// Answers a request for a token.
pub async fn token(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, OAuthError> {
    let settings = service.settings();
    let form = read_form(&headers, &body, &REPEATABLE)?;
    let client = client(&settings, peer, &headers, &form)?;
    let grant_type = form.get("grant_type").unwrap_or_default();
    let (evidence, issued_type) = match grant_type {
        CLIENT_CREDENTIALS => {
            client.ok_or(OAuthError::InvalidClient)?;
            (Evidence::Client, None)
        }
        TOKEN_EXCHANGE => exchanged(&service, client, &form).await?,
        "" => return Err(OAuthError::InvalidRequest("the parameter grant_type is missing")),
        _ => return Err(OAuthError::UnsupportedGrantType),
    };
    let request = MintRequest {
        evidence,
        client: client.map(|client| client.id.clone()),
        audience: audience(&settings, &form)?,
        scope: form.get("scope").map(str::to_owned),
        workspaces: words(form.get("project"))?,
        lifetime_secs: lifetime(&form)?,
    };
    let token = mint(&service, &settings, request).await?;
    respond(&service, client, &token, issued_type, grant_type).await
}

/// Returns the client, if the request names one. A token exchange needs none.
fn client<'a>(
    settings: &'a Settings,
    peer: Peer,
    headers: &HeaderMap,
    form: &Form,
) -> Result<Option<&'a Client>, OAuthError> {
    let names_one = headers.contains_key(header::AUTHORIZATION) || form.get("client_secret").is_some();
    match authenticate(settings, peer, headers, form) {
        Ok(client) => Ok(Some(client)),
        Err(OAuthError::InvalidClient) if !names_one => Ok(None),
        Err(e) => Err(e),
    }
}

/// Returns the proof of a token exchange, and the type of the token that is issued.
async fn exchanged(
    service: &Service,
    client: Option<&Client>,
    form: &Form<'_>,
) -> Result<(Evidence, Option<&'static str>), OAuthError> {
    let missing = "the parameters subject_token and subject_token_type are needed";
    let (Some(subject), Some(kind)) = (form.get("subject_token"), form.get("subject_token_type")) else {
        return Err(OAuthError::InvalidRequest(missing));
    };
    if form.get("actor_token").is_some() {
        return Err(OAuthError::InvalidRequest("actor tokens are not supported"));
    }
    let requested = form.get("requested_token_type").unwrap_or(REQUESTED[0]);
    let issued = REQUESTED.into_iter().find(|known| *known == requested);
    let issued = issued.ok_or(OAuthError::InvalidRequest("this requested_token_type is not supported"))?;
    let secret = SecretText(Zeroizing::new(subject.to_owned()));
    let evidence = match kind {
        MUNGE if !subject.starts_with("MUNGE:") || subject.len() > MAX_MUNGE => {
            return Err(OAuthError::InvalidRequest("the subject_token is no MUNGE credential"));
        }
        MUNGE => Evidence::Munge(secret),
        kind if TOKEN_TYPES.contains(&kind) => {
            // A client exchanges the tokens that are for it, and not those that another one got.
            if let Some(client) = client
                && let Ok(claims) = service.keys.verify(subject).await
                && !is_for(client, &claims)
            {
                return Err(OAuthError::InvalidGrant("the token is not for this client".to_owned()));
            }
            Evidence::Token(secret)
        }
        _ => return Err(OAuthError::InvalidRequest("this subject_token_type is not supported")),
    };
    Ok((evidence, Some(issued)))
}

async fn mint(service: &Service, settings: &Settings, request: MintRequest) -> Result<SecretText, OAuthError> {
    // A MUNGE credential is good once: a question that may have been received is not sent again.
    let question = Question::Issuer {
        name: settings.issuer.url().to_owned(),
        question: IssuerQuestion::Mint(request),
    };
    // Whoever asks for tokens delays nobody who asks whether tokens are valid.
    let _turn = service.minting.try_acquire().map_err(|_| OAuthError::Unavailable)?;
    match service.agent.ask_once(question).await {
        Ok(Answer::Minted(token)) => Ok(token),
        Ok(Answer::Denied(Denial { code, text })) => Err(match code {
            DenialCode::InvalidGrant => OAuthError::InvalidGrant(text),
            DenialCode::InvalidTarget => OAuthError::InvalidTarget(text),
            DenialCode::InvalidScope => OAuthError::InvalidScope(text),
            DenialCode::UnauthorizedClient => {
                OAuthError::UnauthorizedClient("no grant allows this client or kind of proof")
            }
        }),
        Ok(_) => Err(OAuthError::Unavailable),
        Err(e) => {
            UNMINTED.log(format_args!("a token could not be minted: {e}"));
            Err(OAuthError::Unavailable)
        }
    }
}

async fn respond(
    service: &Service,
    client: Option<&Client>,
    token: &SecretText,
    issued_type: Option<&str>,
    grant_type: &str,
) -> Result<Response, OAuthError> {
    // Its key may be newer than those that are known here.
    let claims = service
        .keys
        .verify(&token.0)
        .await
        .map_err(|_| OAuthError::Unavailable)?;
    let event = if grant_type == TOKEN_EXCHANGE {
        "exchange"
    } else {
        "issue"
    };
    service
        .audit
        .write(&Event::new(event, client.map(|client| client.id.as_str()), &claims));
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64();
    let mut body = json!({
        "access_token": *token.0,
        "token_type": "Bearer",
        "expires_in": (claims.exp().seconds() - now).max(0.0) as u64,
        "scope": claims.scope().map(|scope| scope.as_str()),
    });
    if let Some(issued) = issued_type {
        body["issued_token_type"] = json!(issued);
    }
    let no_store = [(header::CACHE_CONTROL, "no-store"), (header::PRAGMA, "no-cache")];
    Ok((no_store, Json(body)).into_response())
}

/// Returns the wanted audiences: by name, or by the URL of a protected service (RFC 8707).
fn audience(settings: &Settings, form: &Form) -> Result<Vec<String>, OAuthError> {
    let mut audience: Vec<String> = form.all("audience").map(str::to_owned).collect();
    for url in form.all("resource") {
        let known = settings.resources.iter().find(|resource| resource.url == url);
        let known = known.ok_or_else(|| OAuthError::InvalidTarget("the resource is not known".to_owned()))?;
        audience.push(known.name.clone());
    }
    Ok(audience)
}

/// The lifetime is a parameter of our own, in seconds.
fn lifetime(form: &Form) -> Result<Option<u64>, OAuthError> {
    let lifetime = form.get("lifetime").map(str::parse).transpose();
    lifetime.map_err(|_| OAuthError::InvalidRequest("the lifetime must be a number of seconds"))
}

fn words(text: Option<&str>) -> Result<Vec<String>, OAuthError> {
    let words = text.unwrap_or_default().split(' ').filter(|word| !word.is_empty());
    let words: Vec<String> = words.map(str::to_owned).collect();
    match words.len() > MAX_WORDS {
        true => Err(OAuthError::InvalidRequest(
            "the parameter project has more than 64 words",
        )),
        false => Ok(words),
    }
}
