// SPDX-License-Identifier: MIT OR Apache-2.0

//! A service that verifies workflow tokens: a layer of axum, and a handler that asks whose token it is.
//!
//! ```text
//! cargo run -p workflow-token-jwt --features axum --example axum -- jwks.json https://hpc.example.org copy-offload
//! curl -H "Authorization: Bearer $DW_WORKFLOW_TOKEN" http://localhost:3000/objects/hydro/f4dVSvb/out.h5
//! ```

use std::sync::Arc;

use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Extension, Router};
use token::{Claims, KeySet, ObjectKey, RequireToken, Tokens, Verifier, authorize};

/// Only the token of the job itself, or of a user of its workspace, opens an object.
async fn object(
    Extension(claims): Extension<Arc<Claims>>,
    Path(key): Path<String>,
) -> Result<String, (StatusCode, String)> {
    let key = ObjectKey::parse(&key).map_err(|reason| (StatusCode::BAD_REQUEST, reason.to_string()))?;
    authorize(&claims, &key, Tokens::Any).map_err(|reason| (StatusCode::FORBIDDEN, reason.to_string()))?;
    Ok(format!("{} for {}\n", key.object(), claims.sub().unwrap_or("nobody")))
}

fn service(verifier: Verifier) -> Router {
    Router::new()
        .route("/objects/{*key}", get(object))
        .layer(RequireToken::new(verifier))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [jwks, issuer, audience] = args.as_slice() else {
        return Err("usage: axum JWKS ISSUER AUDIENCE".into());
    };
    let (keys, skipped) = KeySet::from_jwks(&std::fs::read(jwks)?)?;
    for key in skipped {
        eprintln!("{jwks}: key {} is not used: {}", key.index, key.reason);
    }
    let verifier = Verifier::new(keys).issuer(issuer).audience(audience);
    let listener = tokio::net::TcpListener::bind("localhost:3000").await?;
    Ok(axum::serve(listener, service(verifier)).await?)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use axum::body::Body;
    use axum::http::{
        Request,
        header::{AUTHORIZATION, WWW_AUTHENTICATE},
    };
    use http_body_util::BodyExt;
    use secrecy::ExposeSecret;
    use token::{Algorithm, ClaimsToIssue, Grant, Job, JobScheduler, SigningKey, mint};
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn a_request_is_let_through_with_its_own_token_only() {
        let key = SigningKey::generate(Algorithm::EdDsa);
        let token = |audience: &str, age: u64| {
            let claims = ClaimsToIssue {
                iss: "https://hpc.example.org".into(),
                sub: "alice".into(),
                aud: vec![audience.into()],
                iat: SystemTime::now() - Duration::from_secs(age),
                lifetime: Duration::from_secs(600),
                grant: Grant::Session {
                    workspace: "hydro".parse().unwrap(),
                    job: Job {
                        id: "f4dVSvb".parse().unwrap(),
                        uid: 1000,
                        instance: "ƒ2u".into(),
                        scheduler: JobScheduler::default(),
                    },
                },
                status: None,
            };
            format!("Bearer {}", mint(&key, &claims).expose_secret())
        };
        let verifier = Verifier::new(KeySet::from(key.verifying_key()));
        let service = service(verifier.issuer("https://hpc.example.org").audience("copy-offload"));

        for (path, authorization, status, says) in [
            (
                "hydro/f4dVSvb/out.h5",
                token("copy-offload", 0),
                StatusCode::OK,
                "out.h5 for alice\n",
            ),
            (
                "hydro/f999/out.h5",
                token("copy-offload", 0),
                StatusCode::FORBIDDEN,
                "the token is of another job",
            ),
            (
                "fusion/f4dVSvb/out.h5",
                token("copy-offload", 0),
                StatusCode::FORBIDDEN,
                "the token is not for the workspace",
            ),
            (
                "hydro",
                token("copy-offload", 0),
                StatusCode::BAD_REQUEST,
                "the key is not workspace/session/object",
            ),
            (
                "hydro/f4dVSvb/out.h5",
                token("other", 0),
                StatusCode::UNAUTHORIZED,
                "the token is for \"other\"",
            ),
            (
                "hydro/f4dVSvb/out.h5",
                token("copy-offload", 6000),
                StatusCode::UNAUTHORIZED,
                "the token expired",
            ),
            (
                "hydro/f4dVSvb/out.h5",
                "Basic YTpi".into(),
                StatusCode::UNAUTHORIZED,
                "send one header",
            ),
        ] {
            let request = Request::get(format!("/objects/{path}")).header(AUTHORIZATION, authorization);
            let response = service
                .clone()
                .oneshot(request.body(Body::empty()).unwrap())
                .await
                .unwrap();
            assert_eq!(response.status(), status, "{path}");
            let challenge = response
                .headers()
                .get(WWW_AUTHENTICATE)
                .map(|value| value.to_str().unwrap().to_owned());
            assert_eq!(challenge.is_some(), status == StatusCode::UNAUTHORIZED);
            assert!(challenge.is_none_or(|challenge| challenge.starts_with("Bearer")));
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let body = std::str::from_utf8(&body).unwrap();
            assert!(body.starts_with(says), "{body}");
        }
    }
}
