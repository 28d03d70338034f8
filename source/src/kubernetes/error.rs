// SPDX-License-Identifier: MIT OR Apache-2.0

//! Error messages of requests for Workflows.

use std::fmt;

use crate::http::Peer;
pub(super) use crate::http::{Retry, SourceError, quote};

/// The API server in messages.
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

/// The text for the user if the server could not be reached.
pub(super) const UNREACHABLE: &str = "the Kubernetes API server that has its Workflow could not be reached";
/// The text for the user if the answer was not usable.
pub(super) const UNWELL: &str = "the Kubernetes API server that has its Workflow returned no usable answer";
/// The text for the user if the site's credential is missing or rejected.
pub(super) const CREDENTIAL: &str =
    "the site's access to the Kubernetes API server that has its Workflow is not set up correctly";
/// The text for the user if the Workflow does not exist (yet).
pub(super) const NOT_READY: &str = "its Workflow was not ready in time";
/// The text for the user if the Workflow or its Secret is not usable.
pub(super) const UNUSABLE: &str = "its Workflow has no usable variables";

/// Returns the error of an invalid credential for the API server, or of the file that names it.
pub(super) fn credential(what: impl fmt::Display, todo: impl fmt::Display) -> SourceError {
    SourceError::permanent(CREDENTIAL, what, todo)
}
