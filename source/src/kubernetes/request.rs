// SPDX-License-Identifier: MIT OR Apache-2.0

//! One request and its answer.

use std::time::Duration;

use ::http::{
    Method, Request, StatusCode,
    header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, USER_AGENT},
};
use kube::client::Body;
use seal::ExposeSecret;
use serde::Deserialize;
use tokio::time::timeout;
use tower::buffer::error::Closed;
use zeroize::Zeroizing;

use super::{
    connection::{Connection, MAX_BODY},
    error::{API_SERVER, CREDENTIAL, NOT_READY, Retry, SourceError, UNREACHABLE, UNWELL, credential, quote},
};
use crate::http::{self, HttpReply};

/// The object of a request, in terms of the API.
pub(super) struct Target {
    pub path: String,
    /// For example, `workflows.dataworkflowservices.github.io`.
    pub resource: &'static str,
    /// For example, `Workflow default/fluxjob-1`.
    pub name: String,
    /// Its namespace, if any.
    pub namespace: Option<String>,
}

/// An error of the server: the type `Status` of the API group `meta/v1`.
#[derive(Deserialize)]
struct ApiStatus {
    message: Option<String>,
}

impl Connection {
    /// Reads an object.
    pub async fn get(&self, target: &Target, limit: Duration) -> Result<Zeroizing<Vec<u8>>, SourceError> {
        self.ask(Method::GET, target, Vec::new(), limit).await
    }

    /// Sends a request that changes nothing, and reads the answer. A `POST` creates a `SelfSubjectAccessReview`.
    pub async fn ask(
        &self,
        method: Method,
        target: &Target,
        body: Vec<u8>,
        limit: Duration,
    ) -> Result<Zeroizing<Vec<u8>>, SourceError> {
        let verb = if method == Method::GET { "get" } else { "create" };
        let request = Request::builder()
            .method(method)
            .uri(&target.path)
            .header(ACCEPT, "application/json")
            .header(ACCEPT_ENCODING, "identity")
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, http::USER_AGENT)
            .body(Body::from(body))
            .map_err(|_| {
                credential(
                    "the path of an object is not valid",
                    "correct the keys object and namespace",
                )
            })?;
        // The time limit starts when the request has a permit.
        let turn = self.permits.acquire().await;
        let _turn = turn.map_err(|_| SourceError::retryable(UNREACHABLE, "an internal error", "report it"))?;
        // `Client::request` logs a body that it cannot parse, which may be that of a Secret.
        let answer = async {
            let response = self.client.send(request).await.map_err(|e| of_client(&e))?;
            HttpReply::read(response, MAX_BODY, &API_SERVER).await
        };
        match timeout(limit, answer).await {
            Ok(answer) => self.judge(answer?, verb, target),
            Err(_) => Err(API_SERVER.silent(limit)),
        }
    }

    fn judge(&self, answer: HttpReply, verb: &str, target: &Target) -> Result<Zeroizing<Vec<u8>>, SourceError> {
        let status = answer.status;
        if status.is_success() {
            return Ok(answer.body);
        }
        let says = self.message(&answer.body);
        Err(match status {
            StatusCode::UNAUTHORIZED => SourceError::new(
                Retry::NewClient,
                CREDENTIAL,
                format_args!("it did not accept the credential (401){says}"),
                "renew the token or client certificate of the kubeconfig file or its exec command",
            ),
            StatusCode::FORBIDDEN => {
                let place = match &target.namespace {
                    Some(namespace) => format!(" in the namespace {namespace}"),
                    None => String::new(),
                };
                credential(
                    format_args!("the credential may not {verb} {}{place} (403){says}", target.resource),
                    "grant it as in doc/kubernetes-rbac.yaml",
                )
            }
            StatusCode::NOT_FOUND => SourceError::new(
                Retry::NotFound,
                NOT_READY,
                format_args!("the {} does not exist (404){says}", target.name),
                "check the keys object and namespace, and the service that creates Workflows",
            ),
            _ => {
                let retry = match answer.retry() {
                    Retry::Never if matches!(status, StatusCode::CONFLICT | StatusCode::GONE) => Retry::Backoff(None),
                    retry => retry,
                };
                let remedy = match retry {
                    Retry::Never => "check that the address in the kubeconfig file is that of an API server",
                    _ => "see the API server's log",
                };
                let cause = format_args!("it answered with the status {}{says}", answer.status_text());
                SourceError::new(retry, UNWELL, cause, remedy)
            }
        })
    }

    /// Returns the message of the server in parentheses.
    fn message(&self, body: &[u8]) -> String {
        let secrets: Vec<&str> = self.token.iter().map(ExposeSecret::expose_secret).collect();
        match serde_json::from_slice(body) {
            Ok(ApiStatus {
                message: Some(message), ..
            }) if !message.is_empty() => format!(" (it says: {})", quote(&message, &secrets)),
            _ => String::new(),
        }
    }
}

/// Returns the error of a request without an answer.
fn of_client(error: &kube::Error) -> SourceError {
    let mut found = SourceError::of_request(error, &API_SERVER);
    // The task of the client has ended with its runtime.
    if http::causes(error).any(|cause| cause.is::<Closed>()) {
        found.retry = Retry::NewClient;
    }
    found
}
