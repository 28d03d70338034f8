// SPDX-License-Identifier: MIT OR Apache-2.0

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

use crate::{Claims, StatusCache, TokenStatus, Verifier, VerifyError};

/// Lets requests through that have one valid token in `Authorization: Bearer` (RFC 6750 section 2.1), with its
/// [`Claims`](crate::Claims) in an `Arc` as an extension. Others get 401 with a challenge.
///
/// Without a [`status_cache`](Self::status_cache), it does not check whether the token was revoked or its job has ended: ask the
/// token service for that.
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
    statuses: Option<Arc<StatusCache>>,
}

impl RequireToken {
    /// Demands tokens that this verifier accepts.
    ///
    /// ```
    /// use axum::{Router, routing::get};
    /// use token::{KeySet, RequireToken, Verifier};
    ///
    /// let verifier = Verifier::new(KeySet::new()).issuer("https://hpc.example.org").audience("copy-offload");
    /// let router: Router = Router::new().route("/", get(|| async { "hello" })).layer(RequireToken::new(verifier));
    /// ```
    pub fn new(verifier: Verifier) -> Self {
        Self(Arc::new(Demand {
            verifier,
            metadata: None,
            statuses: None,
        }))
    }

    /// Demands that tokens are still valid, as the lists of this cache say, which the service keeps fresh. A token in no list is
    /// refused. While the list of a token is not there, its requests get 503.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use axum::{Router, routing::get};
    /// use token::{KeySet, RequireToken, StatusCache, Verifier};
    ///
    /// let verifier = Verifier::new(KeySet::new()).issuer("https://hpc.example.org").audience("copy-offload");
    /// // A task of the service fetches the lists, and inserts them.
    /// let statuses = Arc::new(StatusCache::new(verifier.clone(), 16));
    /// let layer = RequireToken::new(verifier).status_cache(Arc::clone(&statuses));
    /// let router: Router = Router::new().route("/", get(|| async { "hello" })).layer(layer);
    /// ```
    pub fn status_cache(self, statuses: Arc<StatusCache>) -> Self {
        Self(Arc::new(Demand {
            verifier: self.0.verifier.clone(),
            metadata: self.0.metadata.clone(),
            statuses: Some(statuses),
        }))
    }

    /// Adds `resource_metadata` (RFC 9728) to every challenge. A URL that is not visible ASCII, or contains quotes or
    /// backslashes, is ignored.
    ///
    /// ```
    /// use token::{KeySet, RequireToken, Verifier};
    ///
    /// let layer = RequireToken::new(Verifier::new(KeySet::new()).audience("copy-offload"))
    ///     .resource_metadata("https://files.example.org/.well-known/oauth-protected-resource");
    /// ```
    pub fn resource_metadata(self, url: &str) -> Self {
        let is_plain = url
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\');
        Self(Arc::new(Demand {
            verifier: self.0.verifier.clone(),
            metadata: is_plain.then(|| url.to_owned()),
            statuses: self.0.statuses.clone(),
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
            Some(token) => self.demand.check(token, SystemTime::now()),
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
    Ended,
    Unlisted,
    Unknown,
}

impl Demand {
    fn check(&self, token: &str, now: SystemTime) -> Result<Claims, Refused> {
        let claims = self.verifier.verify(token, now).map_err(Refused::Invalid)?;
        match self.statuses.as_ref().map(|statuses| statuses.status(&claims, now)) {
            None | Some(TokenStatus::Valid) => Ok(claims),
            Some(TokenStatus::Invalid) => Err(Refused::Ended),
            Some(TokenStatus::Unlisted) => Err(Refused::Unlisted),
            Some(TokenStatus::Stale { .. }) => Err(Refused::Unknown),
        }
    }

    fn refuse<R: From<String>>(&self, refused: &Refused) -> Response<R> {
        if let Refused::Unknown = refused {
            let why = "it is not known at the moment whether the token is still valid: retry\n";
            let mut response = Response::new(R::from(why.to_owned()));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            return response;
        }
        let mut challenge = "Bearer".to_owned();
        let mut separator = " ";
        if !matches!(refused, Refused::Missing) {
            challenge += " error=\"invalid_token\"";
            separator = ", ";
        }
        if let Some(url) = &self.metadata {
            challenge += &format!("{separator}resource_metadata=\"{url}\"");
        }
        let why = match refused {
            Refused::Missing => "send one header Authorization: Bearer TOKEN\n".to_owned(),
            Refused::Invalid(error) => format!("{error}\n"),
            Refused::Ended | Refused::Unknown => "the token was revoked, or its job has ended\n".to_owned(),
            Refused::Unlisted => "the token is in no status list, which this service demands\n".to_owned(),
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
