//! Errors of requests for Workflows, as messages show them.

use std::fmt;

use crate::http::Peer;
pub(super) use crate::http::{Retry, SourceError, quote};

/// The API server, in the words of messages.
pub(super) static API_SERVER: Peer = Peer {
    server: "an API server",
    unreachable: UNREACHABLE,
    unwell: UNWELL,
    credential: CREDENTIAL,
    address: "the address in the kubeconfig file",
    authorities: "certificate-authority in the kubeconfig file",
    name: Some("tls-server-name in the kubeconfig file"),
    client_certificate: Some("the client certificate in the kubeconfig file"),
};

/// The text for the user if the server could not be asked.
pub(super) const UNREACHABLE: &str = "the Kubernetes API server that has its Workflow could not be reached";
/// The text for the user if the answer was not usable.
pub(super) const UNWELL: &str = "the Kubernetes API server that has its Workflow is not well";
/// The text for the user if the site's credential is missing or rejected.
pub(super) const CREDENTIAL: &str =
    "the site's access to the Kubernetes API server that has its Workflow is not set up";
/// The text for the user if the Workflow does not exist, or not yet.
pub(super) const NOT_READY: &str = "its Workflow was not ready in time";
/// The text for the user if the Workflow, or its Secret, is not usable.
pub(super) const UNUSABLE: &str = "its Workflow has no usable variables";

/// The credential for the API server, or the file that names it, is not good.
pub(super) fn credential(what: impl fmt::Display, todo: impl fmt::Display) -> SourceError {
    SourceError::permanent(CREDENTIAL, what, todo)
}
