// SPDX-License-Identifier: MIT OR Apache-2.0

//! Examines an API server for the operator: checks that it can be reached, and which objects it permits to read.

use std::{path::PathBuf, time::Duration};

use ::http::Method;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use tokio::time::Instant;

use super::{
    access,
    connection::{Cluster, Connection},
    error::{API_SERVER, SourceError, UNWELL},
    group_target, no_group, objects,
    request::Target,
};
use crate::{Examined, Slot, remote::ask_here};

/// The timeout of one request. It is shorter than that of the examination, so that partial results are reported.
const QUESTION: Duration = Duration::from_secs(5);

/// Checks that the API server can be reached, serves Workflows, and permits to read them and their Secrets. Blocks for
/// at most `limit`. `supervisors` are as in [`crate::of_rule`].
#[must_use]
pub fn examine(settings: &config::Kubernetes, supervisors: &[PathBuf], limit: Duration) -> Vec<Examined> {
    let mut found = Vec::new();
    let all = Examination {
        cluster: Cluster::new(settings, supervisors),
        settings: settings.clone(),
        until: Instant::now() + limit,
    };
    let done = ask_here(&API_SERVER, limit, async {
        all.run(&mut found).await;
        Ok(())
    });
    if let Err(error) = done {
        found.push(Examined::failed("the examination is incomplete", &error));
    }
    found
}

/// Returns the absolute path of the program that returns the credential, if the kubeconfig file names one. Blocks.
pub fn exec_program(settings: &config::Kubernetes) -> Option<PathBuf> {
    let access = access::load(settings.kubeconfig.as_deref(), settings.context.as_deref()).ok()?;
    let exec = access.exec?;
    exec.program().is_absolute().then(|| exec.program().to_owned())
}

struct Examination {
    /// A separate cluster, because connections end with the runtime of the examination.
    cluster: Cluster,
    settings: config::Kubernetes,
    until: Instant,
}

impl Examination {
    async fn run(&self, found: &mut Vec<Examined>) {
        let origin = match &self.settings.kubeconfig {
            Some(path) => format!("kubeconfig {}", path.display()),
            None => "the pod's own credential".to_owned(),
        };
        let left = self.until.saturating_duration_since(Instant::now());
        let connection = match self.cluster.connection(left * 3 / 4, &Slot::default(), None).await {
            Ok(connection) => connection,
            Err(error) => return found.push(Examined::failed("", &error)),
        };
        let server = &connection.base;
        found.push(Examined::Good(format!("{origin}: can be used for {server}")));

        let version = match connection.get(&group_target(), QUESTION).await {
            Ok(body) => objects::preferred_version(&body),
            Err(error) => Err(no_group(error)),
        };
        match version {
            Ok(version) => found.push(Examined::Good(format!(
                "{server} answers, its certificate is valid, and it serves {} in version {version}",
                objects::GROUP
            ))),
            Err(error) => return found.push(Examined::failed(server, &error)),
        }
        self.may_get(&connection, objects::GROUP, "workflows", found).await;
        self.may_get(&connection, "", "secrets", found).await;
        match self.may(&connection, "*", "*", "*", None).await {
            Ok(true) => found.push(Examined::Unwise {
                what: "the credential may do everything there, but only needs to read Workflows and Secrets".to_owned(),
                todo: "use a service account with the permissions in doc/kubernetes-rbac.yaml".to_owned(),
            }),
            Ok(false) => {}
            Err(error) => found.push(Examined::failed(server, &error)),
        }
    }

    async fn may_get(&self, connection: &Connection, group: &str, resource: &str, found: &mut Vec<Examined>) {
        let namespace = &self.settings.namespace;
        found.push(
            match self.may(connection, "get", group, resource, Some(namespace)).await {
                Ok(true) => Examined::Good(format!("may get {resource} in the namespace {namespace}")),
                Ok(false) => Examined::bad(
                    format!("may not get {resource} in the namespace {namespace}"),
                    "grant it as in doc/kubernetes-rbac.yaml; for Secrets, in each namespace that Workflows name",
                ),
                Err(error) => Examined::failed(&connection.base, &error),
            },
        );
    }

    async fn may(
        &self,
        connection: &Connection,
        verb: &str,
        group: &str,
        resource: &str,
        namespace: Option<&str>,
    ) -> Result<bool, SourceError> {
        let target = Target {
            path: "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews".to_owned(),
            resource: "selfsubjectaccessreviews.authorization.k8s.io",
            name: "API group authorization.k8s.io".to_owned(),
            namespace: None,
        };
        let given = |text: &str| Some(text.to_owned());
        let question = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    verb: given(verb),
                    group: given(group),
                    resource: given(resource),
                    namespace: namespace.and_then(given),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let wrong = |_| {
            SourceError::permanent(
                UNWELL,
                "its answer is not a SelfSubjectAccessReview in JSON",
                "check that the address in the kubeconfig file is that of an API server",
            )
        };
        let question = serde_json::to_vec(&question).map_err(wrong)?;
        let answer = connection.ask(Method::POST, &target, question, QUESTION).await?;
        let review: SelfSubjectAccessReview = serde_json::from_slice(&answer).map_err(wrong)?;
        Ok(review.status.is_some_and(|status| status.allowed))
    }
}
