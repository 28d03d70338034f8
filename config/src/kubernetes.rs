// SPDX-License-Identifier: MIT OR Apache-2.0

//! Workflows of the Data Workflow Services: `source = "kubernetes"`, and the table `dws`.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::{Template, TemplateError, Values, label::check_object_name, parse::field};

/// The name that flux-coral2 gives the Workflow of a job.
const OBJECT: &str = "fluxjob-{jobid.dec}";

fn object() -> Template {
    Template::parse(OBJECT).expect("it is a template")
}

/// The namespace in which flux-coral2 creates Workflows.
fn namespace() -> String {
    "default".to_owned()
}

/// The Workflow of a job, and its API server.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kubernetes {
    /// The kubeconfig file; if not set, the credentials that Kubernetes mounts into a pod. `KUBECONFIG` and
    /// `~/.kube/config` are ignored, because a broker may inherit them by accident.
    #[serde(default, deserialize_with = "field::absolute")]
    pub kubeconfig: Option<PathBuf>,
    /// The context in the kubeconfig file; if not set, the current context of the file.
    #[serde(default, deserialize_with = "field::text")]
    pub context: Option<String>,
    /// The namespace of the Workflows.
    #[serde(default = "namespace", deserialize_with = "field::label")]
    pub namespace: String,
    /// The name of a job's Workflow.
    #[serde(default = "object")]
    pub object: Template,
    /// Set if the standard error of the `exec` command in the kubeconfig file is logged.
    #[serde(default, rename = "log-stderr", deserialize_with = "field::flag")]
    pub log_stderr: bool,
}

/// The table `[workflow-token.dws]`: the source of the variables of rabbit jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dws {
    /// The source; if not set, variables come only from the service that starts the job.
    pub kubernetes: Option<Kubernetes>,
    /// The timeout of the source; at most the timeout of the delivery.
    pub timeout: Duration,
}

/// Checks a template of object names with an example job.
pub(crate) fn check_object(template: &Template) -> Result<(), String> {
    let name = template
        .fill(&Values::example())
        .map_err(|e: TemplateError| e.to_string())?;
    check_object_name(&name)
        .map_err(|wrong| format!("{wrong}, as in {OBJECT}; use {{jobid.dec}} for the job id, and no other form"))
}
