//! One request, and what its answer says.
//!
//! A body with a Secret in it is collected in memory that is zeroized. What comes before that is not in our hands: the
//! buffers of hyper and rustls, which live as long as their connection, and the request's header, which has the bearer
//! token.

use std::time::Duration;

use http::{
    Method, Request, Response, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, USER_AGENT},
};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use seal::ExposeSecret;
use serde::Deserialize;
use tokio::{sync::Semaphore, time::timeout};
use zeroize::Zeroizing;

use super::{
    connection::Connection,
    trouble::{CREDENTIAL, Kind, NOT_READY, Trouble, UNREACHABLE, UNWELL, quote},
};
use crate::seconds;

/// The longest body, in bytes. An object is of 1.5 MiB at most in etcd, and a Secret of 1 MiB before its base64.
pub(super) const MAX_BODY: usize = 3 << 20;

/// The memory that a body is begun with, in bytes, where the server does not say how long it is.
const FIRST_BODY: usize = 16 << 10;

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

struct Answer {
    status: StatusCode,
    retry_after: Option<Duration>,
    body: Zeroizing<Vec<u8>>,
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
            Err(_) => {
                return Err(Trouble::passing(
                    UNREACHABLE,
                    format_args!("it did not answer within {}", seconds(limit)),
                    "see that the server is well, and that no firewall is in between",
                ));
            }
        };
        self.judge(answer, verb, target)
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Answer, Trouble> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("flux-workflow-token/", env!("CARGO_PKG_VERSION")));
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(|_| {
            Trouble::credential(
                "the address of the server, with a path, is not valid",
                "correct server in the kubeconfig file",
            )
        })?;
        let response = self.http.request(request).await.map_err(|e| Trouble::of_request(&e))?;
        Ok(Answer {
            status: response.status(),
            retry_after: retry_after(&response),
            body: collect(response.into_body()).await?,
        })
    }

    fn judge(&self, answer: Answer, verb: &str, target: &Target) -> Result<Zeroizing<Vec<u8>>, Trouble> {
        let Answer {
            status,
            retry_after,
            body,
        } = answer;
        if status.is_success() {
            return Ok(body);
        }
        let says = self.message(&body);
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
                Trouble::credential(
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
            StatusCode::REQUEST_TIMEOUT
            | StatusCode::CONFLICT
            | StatusCode::GONE
            | StatusCode::TOO_EARLY
            | StatusCode::TOO_MANY_REQUESTS => busy(status, retry_after, &says),
            status if status.is_server_error() => busy(status, retry_after, &says),
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

fn busy(status: StatusCode, retry_after: Option<Duration>, says: &str) -> Trouble {
    Trouble::new(
        Kind::Passing(retry_after),
        UNWELL,
        format_args!("it answered with the status {}{says}", status.as_u16()),
        "see the API server's log",
    )
}

/// The seconds to wait (RFC 9110, section 10.2.3). API servers send no dates there.
fn retry_after(response: &Response<Incoming>) -> Option<Duration> {
    let seconds = response
        .headers()
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds))
}

async fn collect(mut body: Incoming) -> Result<Zeroizing<Vec<u8>>, Trouble> {
    let too_long = || {
        Trouble::permanent(
            UNWELL,
            format_args!("it answered with more than {MAX_BODY} bytes"),
            "see that the address in the kubeconfig file is the one of an API server",
        )
    };
    let known = body.size_hint().upper().map(usize::try_from);
    let known = known.transpose().map_err(|_| too_long())?;
    if known.is_some_and(|len| len > MAX_BODY) {
        return Err(too_long());
    }
    let mut all = Zeroizing::new(Vec::with_capacity(known.unwrap_or(FIRST_BODY)));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Trouble::of_request(&e))?;
        let Some(data) = frame.data_ref() else { continue };
        if all.len() + data.len() > MAX_BODY {
            return Err(too_long());
        }
        append(&mut all, data);
    }
    Ok(all)
}

/// A vector that grows leaves what it held behind, as it is. This one does not.
fn append(all: &mut Zeroizing<Vec<u8>>, data: &[u8]) {
    if all.capacity() - all.len() < data.len() {
        let mut larger = Zeroizing::new(Vec::with_capacity((all.len() + data.len()) * 2));
        larger.extend_from_slice(all);
        *all = larger;
    }
    all.extend_from_slice(data);
}
