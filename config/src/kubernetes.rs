//! Workflows of the Data Workflow Services: `source = "kubernetes"`, and the table `dws`.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::{Template, TemplateError, Values, label::check_object_name, parse::field};

/// The name that flux-coral2 gives the Workflow of a job.
const OBJECT: &str = "fluxjob-{jobid.dec}";

fn object() -> Template {
    Template::parse(OBJECT).expect("it is a template")
}

/// The namespace that flux-coral2 puts Workflows into.
fn namespace() -> String {
    "default".to_owned()
}

/// The Workflow of a job, and its API server.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kubernetes {
    /// The kubeconfig file; without one, the credentials that Kubernetes gives to a pod. Neither `KUBECONFIG` nor
    /// `~/.kube/config` is looked at: what a broker happens to inherit says nothing of what its operator meant.
    #[serde(default, deserialize_with = "field::absolute")]
    pub kubeconfig: Option<PathBuf>,
    /// The context in the kubeconfig file; its current one if not given.
    #[serde(default, deserialize_with = "field::text")]
    pub context: Option<String>,
    /// The namespace of the Workflows.
    #[serde(default = "namespace", deserialize_with = "field::label")]
    pub namespace: String,
    /// The name of a job's Workflow.
    #[serde(default = "object")]
    pub object: Template,
    /// Logs the standard error of the `exec` command in the kubeconfig file.
    #[serde(default, rename = "log-stderr", deserialize_with = "field::flag")]
    pub log_stderr: bool,
}

/// The table `[workflow-token.dws]`: where the variables of a rabbit job come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dws {
    /// The source to ask; without one, variables come only from the service that starts the job.
    pub kubernetes: Option<Kubernetes>,
    /// The timeout of the source; never longer than that of the delivery.
    pub timeout: Duration,
}

/// Checks the names that a template will form, by one job as an example.
pub(crate) fn check_object(template: &Template) -> Result<(), String> {
    let name = template
        .fill(&Values::example())
        .map_err(|e: TemplateError| e.to_string())?;
    check_object_name(&name).map_err(|wrong| {
        format!("{wrong}, as in {OBJECT}; of the job id, only {{jobid.dec}} can be part of an object's name")
    })
}
