//! What goes wrong on the way to a Workflow, in the words of messages.

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

/// What the user is told where the server could not be asked.
pub(super) const UNREACHABLE: &str = "the Kubernetes API server that has its Workflow could not be reached";
/// What the user is told where the server gave no good answer.
pub(super) const UNWELL: &str = "the Kubernetes API server that has its Workflow is not well";
/// What the user is told where the site's credential is not there, or not good.
pub(super) const CREDENTIAL: &str =
    "the site's access to the Kubernetes API server that has its Workflow is not set up";
/// What the user is told where there is no Workflow, or none yet.
pub(super) const NOT_READY: &str = "its Workflow was not ready in time";
/// What the user is told where the Workflow, or its Secret, cannot be used.
pub(super) const UNUSABLE: &str = "its Workflow has no usable variables";

/// The credential for the API server, or the file that names it, is not good.
pub(super) fn credential(what: impl fmt::Display, todo: impl fmt::Display) -> SourceError {
    SourceError::permanent(CREDENTIAL, what, todo)
}
