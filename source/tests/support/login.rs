// SPDX-License-Identifier: MIT OR Apache-2.0

//! A simulated authorization server: its metadata, its keys, and its token endpoint.
#![allow(dead_code, unused_imports, reason = "each test program uses a part of it")]

#[path = "server.rs"]
mod server;

use std::{collections::HashMap, ops::Deref};

use hyper::{
    Response,
    header::{CACHE_CONTROL, HeaderValue},
};
use serde_json::{Value, json};
use token::{Algorithm, SigningKey};

pub use server::{Asked, Authority, FAR_AHEAD, Fault, NO_PAUSE, Setup};
use server::{Script, StandIn};

/// The paths of the server.
pub const METADATA: &str = "/.well-known/oauth-authorization-server";
pub const OIDC: &str = "/.well-known/openid-configuration";
pub const JWKS: &str = "/jwks";
pub const TOKEN: &str = "/token";

/// The state of the server.
#[derive(Default)]
pub struct World {
    /// The document at a path, and its `Cache-Control`.
    pub documents: HashMap<String, (Value, Option<&'static str>)>,
    /// The answers of the token endpoint in order. The last one is repeated.
    pub answers: Vec<(u16, Value)>,
    /// The number of issued tokens.
    pub given: usize,
    /// The only content type of its keys, as on some servers.
    pub jwks_type: Option<&'static str>,
}

impl server::World for World {
    fn answer(&mut self, asked: &Asked) -> Response<Script> {
        if asked.method == "POST" && asked.path == TOKEN {
            self.given += 1;
            let answer = if self.answers.len() > 1 {
                self.answers.remove(0)
            } else {
                self.answers[0].clone()
            };
            let text = answer.1.to_string().replace("{n}", &self.given.to_string());
            return server::json(answer.0, &serde_json::from_str(&text).unwrap());
        }
        if let Some(jwks_type) = self.jwks_type
            && asked.path == JWKS
            && !asked.accept.contains(jwks_type)
        {
            return Self::failure(406, "not acceptable");
        }
        match self.documents.get(&asked.path) {
            Some((document, cache_control)) if asked.method == "GET" => {
                let mut response = server::json(200, document);
                if let Some(value) = cache_control {
                    let value = HeaderValue::from_static(value);
                    response.headers_mut().insert(CACHE_CONTROL, value);
                }
                response
            }
            _ => Self::failure(404, "no such thing"),
        }
    }

    fn failure(code: u16, message: &str) -> Response<Script> {
        let mut response = Response::new(Script::of(format!("<html>{message}</html>").into_bytes()));
        *response.status_mut() = hyper::StatusCode::from_u16(code).unwrap();
        response
    }
}

/// A server.
pub struct Login(StandIn<World>);

impl Deref for Login {
    type Target = StandIn<World>;

    fn deref(&self) -> &StandIn<World> {
        &self.0
    }
}

impl Login {
    /// Starts a server that has metadata and no keys, and issues tokens.
    pub fn start() -> Self {
        Self::with(Setup::default())
    }

    pub fn with(setup: Setup) -> Self {
        Self::of(Authority::new("the site's authority"), setup)
    }

    pub fn of(authority: Authority, setup: Setup) -> Self {
        let login = Self(StandIn::of(authority, setup, World::default()));
        login.metadata(METADATA, &login.url());
        login.publish(&[]);
        login.gives(
            200,
            json!({"access_token": "canary-{n}", "token_type": "Bearer", "expires_in": 600}),
        );
        login
    }

    /// Serves the metadata of this issuer at a path.
    pub fn metadata(&self, path: &str, issuer: &str) {
        let url = self.url();
        self.document(
            path,
            json!({
                "issuer": issuer, "jwks_uri": format!("{url}{JWKS}"), "token_endpoint": format!("{url}{TOKEN}"),
            }),
        );
    }

    pub fn document(&self, path: &str, document: Value) {
        self.cached(path, document, None);
    }

    pub fn cached(&self, path: &str, document: Value, cache_control: Option<&'static str>) {
        self.0
            .world(|world| world.documents.insert(path.to_owned(), (document, cache_control)));
    }

    pub fn no_document(&self, path: &str) {
        self.0.world(|world| world.documents.remove(path));
    }

    /// Sets the answers to token requests.
    pub fn gives(&self, code: u16, answer: Value) {
        self.gives_in_turn(vec![(code, answer)]);
    }

    pub fn gives_in_turn(&self, answers: Vec<(u16, Value)>) {
        self.0.world(|world| world.answers = answers);
    }

    /// Publishes these keys.
    pub fn publish(&self, keys: &[&SigningKey]) {
        let keys: Vec<_> = keys.iter().map(|key| key.verifying_key().to_jwk()).collect();
        self.document(JWKS, json!({"keys": keys}));
    }
}

/// Returns a key that signs.
pub fn key() -> SigningKey {
    SigningKey::generate(Algorithm::EdDsa)
}
