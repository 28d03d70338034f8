//! `source = "kubernetes"`: the Workflow of a rabbit job, and the Secret that it names.
//!
//! A job that uses rabbit storage has an object `Workflow` of the Data Workflow Services (DWS), which says in `status.env`
//! what the job's environment is to have, and in `status.workflowToken` which Secret holds its token, if it has one. Both
//! are read here as they are by the service of flux-coral2 (`coral2_dws.py`), when the Workflow has completed its state
//! PreRun.
//!
//! What may pass is tried again until the rule's timeout: [`trouble`] says what that is. [`connection`] is how the server
//! is reached, [`access`] and [`exec`] as whom, [`request`] what is said, and [`objects`] what is read of it.

mod access;
mod connection;
mod examine;
mod exec;
mod objects;
mod request;
mod trouble;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use config::Values;
use seal::Variables;
use tokio::time::{Instant, sleep, timeout};

pub use self::examine::{examine, exec_program};
use self::{
    connection::{Cluster, Connection},
    objects::{GROUP, SecretName},
    request::Target,
    trouble::{Kind, NOT_READY, Trouble, UNREACHABLE},
};
use crate::{Error, Fetched, Source, http::Backoff, seconds};

/// Pauses between tries: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long a Workflow may be missing: it is created long before its job starts, but a server may answer from a cache that
/// does not have it yet. What is missing for longer was not created, or is looked for in the wrong place.
const MISSING: Duration = Duration::from_secs(5);

/// How long one request may take: a quarter of all the time, so that another server may be found behind the same address,
/// within these limits.
const REQUEST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

pub(crate) struct Kubernetes {
    settings: config::Kubernetes,
    variable: String,
    timeout: Duration,
    cluster: Arc<Cluster>,
}

impl Kubernetes {
    pub fn new(settings: &config::Kubernetes, variable: String, timeout: Duration, helpers: &[PathBuf]) -> Self {
        Self {
            cluster: Cluster::of(settings, helpers),
            settings: settings.clone(),
            variable,
            timeout,
        }
    }
}

#[async_trait]
impl Source for Kubernetes {
    async fn fetch(&self, job: &Values) -> Fetched {
        let object = match self.object(job) {
            Ok(object) => object,
            Err(e) => return Fetched::failed(e),
        };
        let fetch = Fetch {
            of: self,
            object,
            uid: job.uid,
            until: Instant::now() + self.timeout,
            progress: Mutex::default(),
            notes: Mutex::default(),
        };
        let result = match timeout(self.timeout, fetch.tries()).await {
            Ok(result) => result,
            Err(_) => Err(fetch.out_of_time()),
        };
        Fetched {
            result,
            notes: fetch.notes.into_inner().unwrap_or_else(PoisonError::into_inner),
            warnings: Vec::new(),
        }
    }

    fn needs_user(&self) -> bool {
        self.settings.object.needs_user()
    }
}

impl Kubernetes {
    /// The name of the job's Workflow.
    fn object(&self, job: &Values) -> Result<String, Error> {
        let failed = |why: &dyn std::fmt::Display| {
            let detail = format!("the key object, `{}`: {why}", self.settings.object);
            Error::new("the name of its Workflow cannot be formed", detail)
        };
        let object = self.settings.object.fill(job).map_err(|e| failed(&e))?;
        config::check_object_name(&object).map_err(|e| failed(&format_args!("what it forms for this job {e}")))?;
        Ok(object)
    }
}

/// What is fetched for one job.
struct Fetch<'a> {
    of: &'a Kubernetes,
    object: String,
    uid: u32,
    until: Instant,
    progress: Mutex<Progress>,
    notes: Mutex<Vec<String>>,
}

/// How far it has come, for who is told when the time is over.
#[derive(Default)]
struct Progress {
    doing: &'static str,
    server: Option<String>,
    last: Option<Trouble>,
}

impl Fetch<'_> {
    /// Tries until it works, or what is wrong will not pass.
    async fn tries(&self) -> Result<Variables, Error> {
        let mut backoff = Backoff::new(PAUSES);
        let mut renewed = false;
        let mut missing = None;
        loop {
            let connection = self.connection().await;
            let tried = match &connection {
                Ok(connection) => self.variables(connection).await,
                Err(trouble) => Err(trouble.clone()),
            };
            let trouble = match tried {
                Ok(variables) => return Ok(variables),
                Err(trouble) => trouble,
            };
            let after = match (trouble.kind, connection) {
                (Kind::Permanent, _) => return Err(trouble.ends(&self.place())),
                (Kind::Passing(after), _) => after,
                (Kind::Missing, _) => {
                    let patience = MISSING.min(self.of.timeout / 2);
                    let until = *missing.get_or_insert_with(|| Instant::now() + patience);
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(trouble.ends(&self.place()));
                    }
                    // The last try is at the end of it.
                    backoff.limit(left);
                    None
                }
                (Kind::Refused, Ok(connection)) if !renewed => {
                    renewed = true;
                    self.of.cluster.renew(&connection).await;
                    self.remember(trouble);
                    continue;
                }
                (Kind::Refused, _) => return Err(trouble.ends(&self.place())),
            };
            if after.is_some_and(|after| Instant::now() + after >= self.until) {
                return Err(trouble.too_late(&self.place(), after.unwrap_or_default(), self.of.timeout));
            }
            self.remember(trouble);
            sleep(backoff.pause(after)).await;
        }
    }

    async fn connection(&self) -> Result<Arc<Connection>, Trouble> {
        self.enter("the credential for the API server was waited for");
        // An exec command is to have been killed, and its trouble told, before the time is over.
        let limit = self.until.saturating_duration_since(Instant::now()) * 3 / 4;
        let connection = self.of.cluster.connection(limit, &self.notes).await?;
        self.progress().server = Some(connection.base.clone());
        Ok(connection)
    }

    async fn variables(&self, connection: &Connection) -> Result<Variables, Trouble> {
        let (mut variables, secret) = self.workflow(connection).await?;
        let Some(secret) = secret else { return Ok(variables) };
        let target = secret_target(&secret);
        self.enter("the Secret with its token was asked for");
        let body = self.get(connection, &target).await.map_err(|mut trouble| {
            // The Workflow names it, so it is about to be there.
            if trouble.kind == Kind::Missing {
                trouble.kind = Kind::Passing(None);
            }
            trouble
        })?;
        let token = objects::token(&body, &self.of.variable, &target.name)?;
        variables.insert(&self.of.variable, token).map_err(|e| {
            Trouble::permanent(
                trouble::UNUSABLE,
                format_args!("the {}: {e}", target.name),
                "see what creates it (kubectl describe secret)",
            )
        })?;
        Ok(variables)
    }

    async fn workflow(&self, connection: &Connection) -> Result<(Variables, Option<SecretName>), Trouble> {
        let version = self.version(connection).await?;
        let target = workflow_target(&version, &self.of.settings.namespace, &self.object);
        self.enter("the Workflow was asked for");
        let body = match self.get(connection, &target).await {
            Ok(body) => body,
            Err(trouble) => {
                // It may not be served under this version any more.
                if trouble.kind == Kind::Missing {
                    let mut known = self.of.cluster.version.lock().await;
                    known.take_if(|known| **known == *version);
                }
                return Err(trouble);
            }
        };
        objects::workflow(&body, self.uid)
    }

    /// The version of the API group, which one delivery asks for while the others wait.
    async fn version(&self, connection: &Connection) -> Result<Arc<str>, Trouble> {
        self.enter("the versions of Workflows were asked for");
        let mut known = self.of.cluster.version.lock().await;
        if let Some(version) = &*known {
            return Ok(version.clone());
        }
        let body = self.get(connection, &group_target()).await.map_err(no_group)?;
        let version: Arc<str> = objects::preferred_version(&body)?.into();
        *known = Some(version.clone());
        Ok(version)
    }

    async fn get(&self, connection: &Connection, target: &Target) -> Result<zeroize::Zeroizing<Vec<u8>>, Trouble> {
        let limit = (self.of.timeout / 4).clamp(REQUEST.0, REQUEST.1);
        connection.get(&self.of.cluster.permits, target, limit).await
    }

    fn out_of_time(&self) -> Error {
        let limit = seconds(self.of.timeout);
        let progress = self.progress();
        let (doing, last) = (progress.doing, progress.last.clone());
        drop(progress);
        match last {
            Some(trouble) => trouble.out_of_time(&self.place(), self.of.timeout),
            None => {
                let detail = format!(
                    "{}: not within {limit}, when {doing}: see that the API server is well, or set a longer timeout",
                    self.place()
                );
                Error::new(UNREACHABLE, detail)
            }
        }
    }

    /// What is fetched, and from where.
    fn place(&self) -> String {
        let (namespace, object) = (&self.of.settings.namespace, &self.object);
        match &self.progress().server {
            Some(server) => format!("Workflow {namespace}/{object} at {server}"),
            None => format!("Workflow {namespace}/{object}"),
        }
    }

    fn enter(&self, doing: &'static str) {
        self.progress().doing = doing;
    }

    fn remember(&self, trouble: Trouble) {
        self.progress().last = Some(trouble);
    }

    fn progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The versions of the API group (Kubernetes, "The Kubernetes API", discovery).
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

/// Where the group itself is not there, no Workflow is either, and somebody else is to blame.
fn no_group(trouble: Trouble) -> Trouble {
    if trouble.kind != Kind::Missing {
        return trouble;
    }
    Trouble::new(
        Kind::Missing,
        NOT_READY,
        format_args!("it does not serve the API group {GROUP}"),
        "see that DWS is installed there, and that the context in the kubeconfig file is the one of the rabbits",
    )
}
