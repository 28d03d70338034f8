//! Protects a service of axum, or any other of tower, that no proxy protects.

use std::{
    future::{Future, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::SystemTime,
};

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use tower_layer::Layer;
use tower_service::Service;

use crate::{Verifier, VerifyError};

/// Lets requests through that have one valid token in `Authorization: Bearer` (RFC 6750 section 2.1), with its
/// [`Claims`](crate::Claims) in an `Arc` as an extension. Others get 401 with a challenge.
///
/// It does not check whether the token was revoked or its job has ended: ask the token service for that.
///
/// ```
/// use std::sync::Arc;
/// use axum::{Extension, Router, routing::get};
/// use token::{Claims, KeySet, RequireToken, Verifier};
///
/// async fn whose(Extension(claims): Extension<Arc<Claims>>) -> String {
///     claims.sub().unwrap_or("nobody").to_owned()
/// }
///
/// let verifier = Verifier::new(KeySet::new()).issuer("https://hpc.example.org").audience("copy-offload");
/// let router: Router = Router::new().route("/", get(whose)).layer(RequireToken::new(verifier));
/// ```
#[derive(Clone, Debug)]
pub struct RequireToken(Arc<Demand>);

#[derive(Debug)]
struct Demand {
    verifier: Verifier,
    /// The parameter `resource_metadata` of challenges (RFC 9728 section 5.1).
    metadata: Option<String>,
}

impl RequireToken {
    /// Demands tokens that this verifier accepts.
    pub fn new(verifier: Verifier) -> Self {
        Self(Arc::new(Demand {
            verifier,
            metadata: None,
        }))
    }

    /// Adds `resource_metadata` (RFC 9728) to every challenge. A URL that is not visible ASCII, or contains quotes or
    /// backslashes, is ignored.
    pub fn resource_metadata(self, url: &str) -> Self {
        let is_plain = url
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\');
        Self(Arc::new(Demand {
            verifier: self.0.verifier.clone(),
            metadata: is_plain.then(|| url.to_owned()),
        }))
    }
}

impl<S> Layer<S> for RequireToken {
    type Service = Required<S>;

    fn layer(&self, service: S) -> Required<S> {
        Required {
            demand: Arc::clone(&self.0),
            service,
        }
    }
}

/// A service that [`RequireToken`] protects.
#[derive(Clone, Debug)]
pub struct Required<S> {
    demand: Arc<Demand>,
    service: S,
}

impl<S, B, R> Service<Request<B>> for Required<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    R: From<String> + Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let verified = match bearer(request.headers()) {
            Some(token) => self
                .demand
                .verifier
                .verify(token, SystemTime::now())
                .map_err(Refused::Invalid),
            None => Err(Refused::Missing),
        };
        match verified {
            Ok(claims) => {
                request.extensions_mut().insert(Arc::new(claims));
                Box::pin(self.service.call(request))
            }
            Err(refused) => Box::pin(ready(Ok(self.demand.refuse(&refused)))),
        }
    }
}

enum Refused {
    Missing,
    Invalid(VerifyError),
}

impl Demand {
    fn refuse<R: From<String>>(&self, refused: &Refused) -> Response<R> {
        let mut challenge = "Bearer".to_owned();
        let mut separator = " ";
        if let Refused::Invalid(_) = refused {
            challenge += " error=\"invalid_token\"";
            separator = ", ";
        }
        if let Some(url) = &self.metadata {
            challenge += &format!("{separator}resource_metadata=\"{url}\"");
        }
        let why = match refused {
            Refused::Missing => "send one header Authorization: Bearer TOKEN\n".to_owned(),
            Refused::Invalid(error) => format!("{error}\n"),
        };
        let mut response = Response::new(R::from(why));
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        // All of it is visible ASCII.
        let challenge = HeaderValue::from_str(&challenge).unwrap_or(HeaderValue::from_static("Bearer"));
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        response
    }
}

/// Returns the token of a request that has one header `Authorization` with it.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim_start_matches(' '))
}
