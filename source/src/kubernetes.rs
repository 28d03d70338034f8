// SPDX-License-Identifier: MIT OR Apache-2.0

//! `source = "kubernetes"`: the Workflow of a rabbit job, and the Secret that it names.
//!
//! A job that uses rabbit storage has an object `Workflow` of the Data Workflow Services (DWS). Its `status.env`
//! contains the variables for the job, and its `status.workflowToken` names the Secret with the token of the job, if
//! any. This module reads both when the Workflow has completed its state PreRun, as the service of flux-coral2
//! (`coral2_dws.py`) does.
//!
//! Retryable errors are retried with backoff until the rule's timeout. [`connection`] manages clients, [`access`] and
//! [`exec`] read credentials, [`request`] sends requests, and [`objects`] parses answers.

mod access;
mod bearer;
mod connection;
mod error;
mod examine;
mod exec;
mod objects;
mod request;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use config::Values;
use seal::Variables;

pub use self::examine::{examine, exec_program};
use self::{
    connection::{Cluster, Connection},
    error::{API_SERVER, NOT_READY, Retry, SourceError},
    objects::{GROUP, SecretName},
    request::Target,
};
use crate::{Error, Fetched, Slot, Source, http::Attempts};

pub(crate) struct Kubernetes {
    settings: config::Kubernetes,
    variable: String,
    timeout: Duration,
    cluster: Arc<Cluster>,
}

impl Kubernetes {
    pub fn new(settings: &config::Kubernetes, variable: String, timeout: Duration, supervisors: &[PathBuf]) -> Self {
        Self {
            cluster: Cluster::of(settings, supervisors),
            settings: settings.clone(),
            variable,
            timeout,
        }
    }
}

#[async_trait]
impl Source for Kubernetes {
    async fn fetch(&self, job: &Values, slot: Slot) -> Fetched {
        let object = match self.object(job) {
            Ok(object) => object,
            Err(e) => return Fetched::failed(e),
        };
        let fetch = Fetch {
            of: self,
            object,
            uid: job.uid,
            attempts: Attempts::new(&API_SERVER, self.timeout),
            renewed: AtomicBool::new(false),
            server: OnceLock::new(),
            slot,
            notes: Mutex::default(),
        };
        let place = || fetch.place();
        let attempts = fetch.attempts.run(|| fetch.attempt(), place);
        let result = fetch.attempts.within(attempts, place).await;
        Fetched {
            notes: fetch.notes.into_inner().unwrap_or_else(PoisonError::into_inner),
            ..Fetched::of(result)
        }
    }

    fn needs_user(&self) -> bool {
        self.settings.object.needs_user()
    }
}

impl Kubernetes {
    /// Returns the name of the job's Workflow.
    fn object(&self, job: &Values) -> Result<String, Error> {
        let failed = |why: &dyn std::fmt::Display| {
            let detail = format!("the key object, `{}`: {why}", self.settings.object);
            Error::new("the name of its Workflow cannot be formed", detail)
        };
        let object = self.settings.object.fill(job).map_err(|e| failed(&e))?;
        config::check_object_name(&object).map_err(|e| failed(&format_args!("the name for this job {e}")))?;
        Ok(object)
    }
}

/// The fetch for one job.
struct Fetch<'a> {
    of: &'a Kubernetes,
    object: String,
    uid: u32,
    attempts: Attempts,
    /// Set after the server rejected the credential once and a new one was obtained.
    renewed: AtomicBool,
    /// The address of the server, once known.
    server: OnceLock<String>,
    slot: Slot,
    notes: Mutex<Vec<String>>,
}

impl Fetch<'_> {
    async fn attempt(&self) -> Result<Variables, SourceError> {
        let connection = self.connection().await?;
        match self.variables(&connection).await {
            Err(error) if error.retry == Retry::NewClient && !self.renewed.swap(true, Ordering::Relaxed) => {
                self.attempts.failed(&error);
                self.of.cluster.renew(&connection).await;
                self.variables(&*self.connection().await?).await
            }
            result => result,
        }
    }

    async fn connection(&self) -> Result<Arc<Connection>, SourceError> {
        self.attempts.enter("the credential for the API server was requested");
        // An exec command must be killed, and its error reported, before the deadline.
        let limit = self.attempts.left() * 3 / 4;
        let notes = self.of.settings.log_stderr.then_some(&self.notes);
        let connection = self.of.cluster.connection(limit, &self.slot, notes).await?;
        self.server.get_or_init(|| connection.base.clone());
        Ok(connection)
    }

    async fn variables(&self, connection: &Connection) -> Result<Variables, SourceError> {
        let (mut variables, secret) = self.workflow(connection).await?;
        let Some(secret) = secret else { return Ok(variables) };
        let target = secret_target(&secret);
        self.attempts.enter("the Secret with its token was requested");
        let limit = self.attempts.request_limit();
        let body = connection.get(&target, limit).await.map_err(|mut error| {
            // The Workflow names the Secret, so it will exist soon.
            if error.retry == Retry::NotFound {
                error.retry = Retry::Backoff(None);
            }
            error
        })?;
        let token = objects::token(&body, &self.of.variable, &target.name)?;
        variables.insert(&self.of.variable, token).map_err(|e| {
            SourceError::permanent(
                error::UNUSABLE,
                format_args!("the {}: {e}", target.name),
                "check the program that creates it (kubectl describe secret)",
            )
        })?;
        Ok(variables)
    }

    async fn workflow(&self, connection: &Connection) -> Result<(Variables, Option<SecretName>), SourceError> {
        let version = self.version(connection).await?;
        let target = workflow_target(&version, &self.of.settings.namespace, &self.object);
        self.attempts.enter("the Workflow was requested");
        let limit = self.attempts.request_limit();
        let body = match connection.get(&target, limit).await {
            Ok(body) => body,
            Err(error) => {
                // The server may have stopped serving this version.
                if error.retry == Retry::NotFound {
                    let mut known = self.of.cluster.version.lock().await;
                    known.take_if(|known| **known == *version);
                }
                return Err(error);
            }
        };
        objects::workflow(&body, self.uid)
    }

    /// Returns the version of the API group. One delivery requests it while the others wait.
    async fn version(&self, connection: &Connection) -> Result<Arc<str>, SourceError> {
        self.attempts.enter("the versions of Workflows were requested");
        let mut known = self.of.cluster.version.lock().await;
        if let Some(version) = &*known {
            return Ok(version.clone());
        }
        let body = connection
            .get(&group_target(), self.attempts.request_limit())
            .await
            .map_err(no_group)?;
        let version: Arc<str> = objects::preferred_version(&body)?.into();
        *known = Some(version.clone());
        Ok(version)
    }

    /// Returns the Workflow and its server, for messages.
    fn place(&self) -> String {
        let (namespace, object) = (&self.of.settings.namespace, &self.object);
        match self.server.get() {
            Some(server) => format!("Workflow {namespace}/{object} at {server}"),
            None => format!("Workflow {namespace}/{object}"),
        }
    }
}

/// Returns the target of the versions of the API group (Kubernetes, "The Kubernetes API", discovery).
fn group_target() -> Target {
    Target {
        path: format!("/apis/{GROUP}"),
        resource: "the API group dataworkflowservices.github.io",
        name: format!("API group {GROUP}"),
        namespace: None,
    }
}

fn workflow_target(version: &str, namespace: &str, name: &str) -> Target {
    Target {
        path: format!("/apis/{GROUP}/{version}/namespaces/{namespace}/workflows/{name}"),
        resource: "workflows.dataworkflowservices.github.io",
        name: format!("Workflow {namespace}/{name}"),
        namespace: Some(namespace.to_owned()),
    }
}

fn secret_target(secret: &SecretName) -> Target {
    let SecretName { namespace, name } = secret;
    Target {
        path: format!("/api/v1/namespaces/{namespace}/secrets/{name}"),
        resource: "secrets",
        name: format!("Secret {namespace}/{name}"),
        namespace: Some(namespace.clone()),
    }
}

/// Replaces the error of a missing API group, because the remedy differs from that of a missing Workflow.
fn no_group(error: SourceError) -> SourceError {
    if error.retry != Retry::NotFound {
        return error;
    }
    SourceError::new(
        Retry::NotFound,
        NOT_READY,
        format_args!("it does not serve the API group {GROUP}"),
        "check that DWS is installed there, and that the context in the kubeconfig file is that of the rabbits",
    )
}
