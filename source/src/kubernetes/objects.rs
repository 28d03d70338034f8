// SPDX-License-Identifier: MIT OR Apache-2.0

//! The used parts of API objects: the API group, the Workflow and the Secret.
//!
//! The Workflow is that of the Data Workflow Services (`Status` in api/*/workflow_types.go of
//! DataWorkflowServices/dws). The members that are read have had the same names since DWS introduced the token. Errors
//! name the member and never contain the message of the parser, which quotes values.

use std::collections::BTreeMap;

use seal::{Secret, Variables, check_name};
use serde::{Deserialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::{
    access::decode,
    error::{NOT_READY, Retry, SourceError, UNUSABLE, UNWELL, quote},
};
use crate::value::{self, max_value};

/// The API group of Workflows.
pub(super) const GROUP: &str = "dataworkflowservices.github.io";

/// The key of the token in a Secret.
const KEY: &str = "token";

/// The type `APIGroup` of the API group `meta/v1`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ApiGroup {
    preferred_version: Option<GroupVersion>,
}

#[derive(Deserialize)]
struct GroupVersion {
    version: String,
}

#[derive(Deserialize)]
struct Workflow {
    kind: String,
    spec: Option<Spec>,
    status: Option<WorkflowStatus>,
}

#[derive(Deserialize)]
struct Spec {
    #[serde(rename = "userID")]
    user_id: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WorkflowStatus {
    state: Option<String>,
    ready: Option<bool>,
    status: Option<String>,
    message: Option<String>,
    env: Option<BTreeMap<String, Zeroizing<String>>>,
    workflow_token: Option<WorkflowToken>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WorkflowToken {
    secret_name: Option<String>,
    secret_namespace: Option<String>,
}

/// The type `Secret` of the API group `core/v1`.
#[derive(Deserialize)]
struct SecretObject {
    kind: String,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    token: Option<Zeroizing<String>>,
}

/// The Secret with the token of a Workflow.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SecretName {
    pub namespace: String,
    pub name: String,
}

/// Returns the version of the API group that the server prefers.
pub(super) fn preferred_version(body: &[u8]) -> Result<String, SourceError> {
    let group: ApiGroup = parse(body, "APIGroup")?;
    let version = group.preferred_version.map(|preferred| preferred.version);
    // It becomes part of the path of a request.
    let is_version = |version: &String| version.starts_with('v') && version.bytes().all(|b| b.is_ascii_alphanumeric());
    version.filter(is_version).ok_or_else(|| no_object("APIGroup"))
}

/// Returns the variables of a Workflow whose job may start, and the name of the Secret with its token, if any.
pub(super) fn workflow(body: &[u8], uid: u32) -> Result<(Variables, Option<SecretName>), SourceError> {
    let workflow: Workflow = parse(body, "Workflow")?;
    if workflow.kind != "Workflow" {
        return Err(no_object("Workflow"));
    }
    match workflow.spec.and_then(|spec| spec.user_id) {
        Some(owner) if owner == u64::from(uid) => {}
        Some(owner) => {
            return Err(SourceError::permanent(
                UNUSABLE,
                format_args!("it belongs to uid {owner}, but the job to uid {uid}"),
                "check that the key object names the Workflow of the job",
            ));
        }
        // DWS rejects a Workflow without a user id.
        None => {
            return Err(SourceError::permanent(
                UNUSABLE,
                "it names no owner (spec.userID)",
                "check the program that creates it, and the definition of Workflows (kubectl explain workflow.spec)",
            ));
        }
    }
    let status = workflow.status.ok_or_else(|| not_ready("it has no status yet"))?;
    is_ready(&status)?;
    let mut variables = Variables::new();
    for (name, value) in status.env.iter().flatten() {
        insert(&mut variables, name, value)?;
    }
    let secret = status.workflow_token.as_ref().map(secret_name).transpose()?;
    Ok((variables, secret))
}

/// Checks that the Workflow has completed the state PreRun, so that the job may start. Earlier states lack variables;
/// in later states, the job has already started.
fn is_ready(status: &WorkflowStatus) -> Result<(), SourceError> {
    let message = status.message.as_deref().filter(|message| !message.is_empty());
    let says = message.map_or_else(String::new, |message| format!(" (it says: {})", quote(message, &[])));
    if status.status.as_deref() == Some("Error") {
        return Err(SourceError::permanent(
            UNUSABLE,
            format_args!("it has failed{says}"),
            "check it with kubectl describe workflow",
        ));
    }
    let state = quote(status.state.as_deref().unwrap_or_default(), &[]);
    match (state.as_str(), status.ready) {
        ("PostRun" | "DataOut", _) | ("PreRun", Some(true)) => Ok(()),
        ("Teardown", _) => Err(SourceError::permanent(
            UNUSABLE,
            "it is being torn down",
            "check whether the job was canceled or the Workflow failed",
        )),
        ("", _) => Err(not_ready("it has no state yet")),
        ("PreRun", _) => Err(not_ready(&format!(
            "it is in the state PreRun, which is not complete{says}"
        ))),
        (state, _) => Err(not_ready(&format!("it is in the state {state}, before PreRun{says}"))),
    }
}

fn insert(variables: &mut Variables, name: &str, value: &str) -> Result<(), SourceError> {
    let wrong = |what: &str| {
        SourceError::permanent(
            UNUSABLE,
            format_args!("its status.env contains {what}"),
            "check the program that sets it (kubectl get workflow -o yaml)",
        )
    };
    let shown = quote(name, &[]);
    if check_name(name).is_err() {
        return Err(wrong(&format!(
            "`{shown}`, which is not a valid name of an environment variable"
        )));
    }
    if value.len() > max_value(name) {
        return Err(wrong(&format!(
            "a value for {shown} that is too long for an environment"
        )));
    }
    variables
        .insert(name, Secret::from(value))
        .map_err(|_| wrong(&format!("a value for {shown} with a NUL character")))
}

fn secret_name(token: &WorkflowToken) -> Result<SecretName, SourceError> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let (Some(name), Some(namespace)) = (given(&token.secret_name), given(&token.secret_namespace)) else {
        return Err(not_ready("its status.workflowToken names no Secret yet"));
    };
    // They become part of the path of a request.
    if config::check_object_name(&name).is_err() || config::check_label(&namespace).is_err() {
        return Err(SourceError::permanent(
            UNUSABLE,
            "its status.workflowToken is not the name of a Secret",
            "check the program that sets it (kubectl get workflow -o yaml)",
        ));
    }
    Ok(SecretName { namespace, name })
}

/// Returns the token in a Secret as the value of `variable`.
pub(super) fn token(body: &[u8], variable: &str, shown: &str) -> Result<Secret, SourceError> {
    let secret: SecretObject = parse(body, "Secret")?;
    if secret.kind != "Secret" {
        return Err(no_object("Secret"));
    }
    let wrong = |what: &str| {
        SourceError::permanent(
            UNUSABLE,
            format_args!("the {shown} {what}"),
            "check the program that creates it (kubectl describe secret)",
        )
    };
    let data = secret.data.and_then(|data| data.token);
    let data = data.ok_or_else(|| wrong(&format!("has no key `{KEY}`")))?;
    let bytes = decode(&data).ok_or_else(|| wrong(&format!("has a key `{KEY}` that is not base64")))?;
    value::of_bytes(variable, bytes).map_err(|e| wrong(&format!("has a key `{KEY}` that cannot be used: {e}")))
}

fn not_ready(what: &str) -> SourceError {
    SourceError::new(
        Retry::Backoff(None),
        NOT_READY,
        what,
        "see kubectl describe workflow, and set a longer timeout if staging in takes longer",
    )
}

fn parse<T: DeserializeOwned>(body: &[u8], kind: &str) -> Result<T, SourceError> {
    serde_json::from_slice(body).map_err(|e| {
        if e.is_eof() {
            SourceError::retryable(
                UNWELL,
                "its answer was cut off",
                "check any proxy in front of the server",
            )
        } else {
            no_object(kind)
        }
    })
}

fn no_object(kind: &str) -> SourceError {
    SourceError::permanent(
        UNWELL,
        format_args!("its answer contains no {kind} in JSON"),
        "check that the address in the kubeconfig file is that of an API server, and that no proxy answers for it",
    )
}
