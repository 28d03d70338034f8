//! The objects of the API: the API group, the Workflow and the Secret, as far as they are used.
//!
//! The Workflow is that of the Data Workflow Services (`Status` in api/*/workflow_types.go of
//! DataWorkflowServices/dws); what is read of it has been there, under the same names, since the token was introduced.
//! Why something cannot be read is told by its place, never by the words of the parser, which quote values.

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

/// The key of a Secret that holds the token.
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

/// The version of the API group that the server prefers.
pub(super) fn preferred_version(body: &[u8]) -> Result<String, SourceError> {
    let group: ApiGroup = parse(body, "APIGroup")?;
    let version = group.preferred_version.map(|preferred| preferred.version);
    // It becomes part of a path.
    let is_version = |version: &String| version.starts_with('v') && version.bytes().all(|b| b.is_ascii_alphanumeric());
    version.filter(is_version).ok_or_else(|| no_object("APIGroup"))
}

/// The variables of a Workflow that is ready for its job to start, and the Secret that has its token.
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
                format_args!("it belongs to uid {owner}, and the job to uid {uid}"),
                "see that the key object names the Workflow of the job",
            ));
        }
        // DWS takes no Workflow without it.
        None => {
            return Err(SourceError::permanent(
                UNUSABLE,
                "it does not say whom it belongs to (spec.userID)",
                "see what creates it, and the definition of Workflows (kubectl explain workflow.spec)",
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

/// Returns whether the Workflow is where the job may start: in the state PreRun, which is complete. What comes before
/// has not named all variables, and what comes after means that the job has started.
fn is_ready(status: &WorkflowStatus) -> Result<(), SourceError> {
    let message = status.message.as_deref().filter(|message| !message.is_empty());
    let says = message.map_or_else(String::new, |message| format!(" (it says: {})", quote(message, &[])));
    if status.status.as_deref() == Some("Error") {
        return Err(SourceError::permanent(
            UNUSABLE,
            format_args!("it has failed{says}"),
            "see kubectl describe workflow",
        ));
    }
    let state = quote(status.state.as_deref().unwrap_or_default(), &[]);
    match (state.as_str(), status.ready) {
        ("PostRun" | "DataOut", _) | ("PreRun", Some(true)) => Ok(()),
        ("Teardown", _) => Err(SourceError::permanent(
            UNUSABLE,
            "it is being torn down",
            "see whether the job was canceled, or the Workflow failed before",
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
            format_args!("its status.env has {what}"),
            "see what sets it (kubectl get workflow -o yaml)",
        )
    };
    let shown = quote(name, &[]);
    if check_name(name).is_err() {
        return Err(wrong(&format!(
            "`{shown}`, which no environment variable can be called"
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
    // They become part of a path.
    if config::check_object_name(&name).is_err() || config::check_label(&namespace).is_err() {
        return Err(SourceError::permanent(
            UNUSABLE,
            "its status.workflowToken is not the name of a Secret",
            "see what sets it (kubectl get workflow -o yaml)",
        ));
    }
    Ok(SecretName { namespace, name })
}

/// The token in a Secret, as the value for `variable`.
pub(super) fn token(body: &[u8], variable: &str, shown: &str) -> Result<Secret, SourceError> {
    let secret: SecretObject = parse(body, "Secret")?;
    if secret.kind != "Secret" {
        return Err(no_object("Secret"));
    }
    let wrong = |what: &str| {
        SourceError::permanent(
            UNUSABLE,
            format_args!("the {shown} {what}"),
            "see what creates it (kubectl describe secret)",
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
        "see kubectl describe workflow, and set a longer timeout where staging in takes longer",
    )
}

fn parse<T: DeserializeOwned>(body: &[u8], kind: &str) -> Result<T, SourceError> {
    serde_json::from_slice(body).map_err(|e| {
        if e.is_eof() {
            SourceError::retryable(
                UNWELL,
                "its answer was cut off",
                "see whether a proxy before the server is well",
            )
        } else {
            no_object(kind)
        }
    })
}

fn no_object(kind: &str) -> SourceError {
    SourceError::permanent(
        UNWELL,
        format_args!("its answer is no {kind} in JSON"),
        "see that the address in the kubeconfig file is the one of an API server, and no proxy answers for it",
    )
}
