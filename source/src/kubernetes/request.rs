//! One request, and what its answer says.
//!
//! The request's header, which has the bearer token, is not zeroized.

use std::time::Duration;

use ::http::{
    Method, Request, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT},
};
use http_body_util::Full;
use seal::ExposeSecret;
use serde::Deserialize;
use tokio::{sync::Semaphore, time::timeout};
use zeroize::Zeroizing;

use super::{
    connection::Connection,
    trouble::{API_SERVER, CREDENTIAL, Kind, NOT_READY, Trouble, UNREACHABLE, UNWELL, credential, quote},
};
use crate::http::{self, Answer};

/// The longest body, in bytes. An object is of 1.5 MiB at most in etcd, and a Secret of 1 MiB before its base64.
pub(super) const MAX_BODY: usize = 3 << 20;

/// What is asked for, in the words of the API.
pub(super) struct Target {
    pub path: String,
    /// As in `workflows.dataworkflowservices.github.io`.
    pub resource: &'static str,
    /// As in `Workflow default/fluxjob-1`.
    pub name: String,
    /// Where it is, if that is a namespace.
    pub namespace: Option<String>,
}

/// What the server says about a failure: the type `Status` of the API group `meta/v1`.
#[derive(Deserialize)]
struct Status {
    message: Option<String>,
}

impl Connection {
    /// Reads what is there.
    pub async fn get(
        &self,
        permits: &Semaphore,
        target: &Target,
        limit: Duration,
    ) -> Result<Zeroizing<Vec<u8>>, Trouble> {
        self.ask(permits, Method::GET, target, Vec::new(), limit).await
    }

    /// Asks a question, which changes nothing (such as a `SelfSubjectAccessReview`).
    pub async fn post(
        &self,
        permits: &Semaphore,
        target: &Target,
        body: Vec<u8>,
        limit: Duration,
    ) -> Result<Zeroizing<Vec<u8>>, Trouble> {
        self.ask(permits, Method::POST, target, body, limit).await
    }

    async fn ask(
        &self,
        permits: &Semaphore,
        method: Method,
        target: &Target,
        body: Vec<u8>,
        limit: Duration,
    ) -> Result<Zeroizing<Vec<u8>>, Trouble> {
        let verb = if method == Method::GET { "get" } else { "create" };
        // Its time begins with its turn.
        let _permit = permits
            .acquire()
            .await
            .map_err(|_| Trouble::passing(UNREACHABLE, "an internal error", "report it"))?;
        let answer = match timeout(limit, self.send(method, &target.path, body)).await {
            Ok(answer) => answer?,
            Err(_) => return Err(API_SERVER.silent(limit)),
        };
        self.judge(answer, verb, target)
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Answer, Trouble> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, http::USER_AGENT);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(Full::from(body)).map_err(|_| {
            credential(
                "the address of the server, with a path, is not valid",
                "correct server in the kubeconfig file",
            )
        })?;
        http::exchange(&self.http, request, MAX_BODY, &API_SERVER).await
    }

    fn judge(&self, answer: Answer, verb: &str, target: &Target) -> Result<Zeroizing<Vec<u8>>, Trouble> {
        let status = answer.status;
        if status.is_success() {
            return Ok(answer.body);
        }
        let says = self.message(&answer.body);
        Err(match status {
            StatusCode::UNAUTHORIZED => Trouble::new(
                Kind::Refused,
                CREDENTIAL,
                format_args!("it did not accept the credential (401){says}"),
                "renew the token or client certificate that the kubeconfig file, or its exec command, gives",
            ),
            StatusCode::FORBIDDEN => {
                let place = match &target.namespace {
                    Some(namespace) => format!(" in the namespace {namespace}"),
                    None => String::new(),
                };
                credential(
                    format_args!("the credential may not {verb} {}{place} (403){says}", target.resource),
                    "grant it as doc/kubernetes-rbac.yaml does",
                )
            }
            StatusCode::NOT_FOUND => Trouble::new(
                Kind::Missing,
                NOT_READY,
                format_args!("the {} is not there (404){says}", target.name),
                "see the keys object and namespace, and whether the service that creates Workflows is well",
            ),
            StatusCode::CONFLICT | StatusCode::GONE => busy(&answer, &says),
            _ if answer.is_passing() => busy(&answer, &says),
            status => Trouble::permanent(
                UNWELL,
                format_args!("it answered with the status {}{says}", status.as_u16()),
                "see that the address in the kubeconfig file is the one of an API server",
            ),
        })
    }

    /// What the server says, in brackets.
    fn message(&self, body: &[u8]) -> String {
        let secrets: Vec<&str> = self.token.iter().map(ExposeSecret::expose_secret).collect();
        match serde_json::from_slice(body) {
            Ok(Status {
                message: Some(message), ..
            }) if !message.is_empty() => format!(" (it says: {})", quote(&message, &secrets)),
            _ => String::new(),
        }
    }
}

fn busy(answer: &Answer, says: &str) -> Trouble {
    Trouble::new(
        Kind::Passing(answer.retry_after()),
        UNWELL,
        format_args!("it answered with the status {}{says}", answer.status.as_u16()),
        "see the API server's log",
    )
}
