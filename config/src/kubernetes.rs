//! Where a Workflow of the Data Workflow Services is found: `source = "kubernetes"`, and the table `dws`.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::{Template, TemplateError, Values, parse::field};

/// The name that flux-coral2 gives the Workflow of a job.
const OBJECT: &str = "fluxjob-{jobid.dec}";

fn object() -> Template {
    Template::parse(OBJECT).expect("it is a template")
}

/// The namespace that flux-coral2 puts Workflows into.
fn namespace() -> String {
    "default".to_owned()
}

/// The longest name of an object: a DNS subdomain (Kubernetes, "Object Names and IDs").
const MAX_NAME: usize = 253;

/// The longest name of a namespace: a DNS label (the same).
const MAX_LABEL: usize = 63;

/// Which Workflow is a job's, and how the API server that has it is reached.
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
}

/// The table `[workflow-token.dws]`: where the variables of a rabbit job come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dws {
    /// Where to ask for them; if not given, they come only from the service that asks for the job to be started.
    pub kubernetes: Option<Kubernetes>,
    /// How long that may take; never longer than the delivery.
    pub timeout: Duration,
}

/// Checks the name of an object: a DNS subdomain (RFC 1123), which is what goes into the path of a request.
///
/// # Errors
/// What is wrong with it, in words. The name is not repeated.
pub fn check_object_name(name: &str) -> Result<(), &'static str> {
    let is_part = |part: &str| {
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = part.as_bytes();
        edge(bytes.first())
            && edge(bytes.last())
            && bytes
                .iter()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
    };
    if name.len() <= MAX_NAME && name.split('.').all(is_part) {
        Ok(())
    } else {
        Err("must be lower-case letters, digits, `-` and `.`, at most 253 of them, with a letter or digit at both ends")
    }
}

/// Checks a DNS label (RFC 1123), which the name of a namespace is, and that of a project.
///
/// # Errors
/// What is wrong with it, in words. The name is not repeated.
pub fn check_label(name: &str) -> Result<(), &'static str> {
    if name.len() <= MAX_LABEL && !name.contains('.') && check_object_name(name).is_ok() {
        Ok(())
    } else {
        Err("must be lower-case letters, digits and `-`, at most 63 of them, with a letter or digit at both ends")
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_lead_to_another_path_are_refused() {
        for bad in [
            "",
            ".",
            "..",
            "a/../b",
            "a..b",
            "-a",
            "a-",
            "a%2fb",
            "a?b",
            "A",
            "ƒ",
            &"a".repeat(254),
        ] {
            assert!(check_object_name(bad).is_err(), "{bad:?} was accepted");
        }
        for good in ["fluxjob-123", "a.b-c.9", "a"] {
            check_object_name(good).unwrap();
        }
        assert!(check_label("a.b").is_err());
        assert!(check_label(&"a".repeat(64)).is_err());
        check_label("nnf-system").unwrap();
    }
}
