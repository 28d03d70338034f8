// SPDX-License-Identifier: MIT OR Apache-2.0

//! The check of a rule for `flux workflow-token doctor`.

use std::time::Duration;

use config::AuthorizationServer;

use super::{SERVER, answer, request::Client};
use crate::{
    Examined,
    remote::{Metadata, Need, Remote, ask_here},
};

/// Checks that the server can be reached, that its metadata are valid, and that the client's secret can be read.
/// Requests no token. Blocks for at most `limit`.
#[must_use]
pub fn examine_oauth2(settings: &config::OAuth2, limit: Duration) -> Vec<Examined> {
    let mut found = Vec::new();
    let how = &settings.authentication;
    found.push(Examined::of(Client::read(how), "", |_| {
        format!("{} is closed to others, and can be used for {}", how.path(), how.name())
    }));
    let remote = Remote::new(&settings.network, &SERVER);
    match &settings.server {
        AuthorizationServer::Issuer(issuer) => {
            let metadata = ask_here(&SERVER, limit, remote.discover(issuer, Need::Tokens, limit));
            match metadata {
                Ok(metadata) => examine_metadata(settings, issuer, &metadata, &mut found),
                Err(error) => found.push(Examined::failed(issuer, &error)),
            }
        }
        AuthorizationServer::TokenEndpoint(url) => {
            // RFC 6749 section 3.2: a token endpoint requires POST, so a GET changes nothing.
            let answer = ask_here(&SERVER, limit, remote.get(url, answer::max_body(0), limit));
            found.push(Examined::of(answer, url, |_| format!("{url} answers")));
        }
    }
    found
}

fn examine_metadata(settings: &config::OAuth2, issuer: &str, metadata: &Metadata, found: &mut Vec<Examined>) {
    found.push(Examined::Good(format!(
        "{issuer} answers, its metadata is valid, and it issues tokens at {}",
        metadata.address
    )));
    // The default of RFC 8414 section 2.
    let default = ["client_secret_basic".to_owned()];
    let ways = metadata.authentications.as_deref().unwrap_or(&default);
    let way = settings.authentication.name();
    if !ways.iter().any(|one| one == way) {
        found.push(Examined::Unwise {
            what: format!("{issuer}: its metadata does not contain the client authentication {way}"),
            todo: "set client-authentication to a method that it supports".to_owned(),
        });
    }
    let grant = settings.grant.uri();
    if let Some(grants) = &metadata.grants
        && !grants.iter().any(|one| one == grant)
    {
        found.push(Examined::Unwise {
            what: format!("{issuer}: its metadata does not contain the grant {grant}"),
            todo: "check the server's configuration".to_owned(),
        });
    }
}
