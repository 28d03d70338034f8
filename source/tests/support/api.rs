// SPDX-License-Identifier: MIT OR Apache-2.0

//! A simulated Kubernetes API server, with the paths, objects and answers that the tests need.
#![allow(dead_code, unused_imports, reason = "each test program uses a part of it")]

#[path = "server.rs"]
mod server;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ops::Deref,
};

use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use server::{Asked, Script, StandIn};
pub use server::{Authority, FAR_AHEAD, Fault, NO_PAUSE, Setup};

/// The API group of Workflows.
pub const GROUP: &str = "dataworkflowservices.github.io";

#[derive(Default)]
pub struct World {
    /// Bearer tokens that are accepted.
    tokens: HashSet<String>,
    /// Versions of the group, the preferred one first.
    versions: Vec<String>,
    /// `namespace/name`
    workflows: BTreeMap<String, Value>,
    secrets: BTreeMap<String, Value>,
    /// The forbidden actions, as in `get secrets`.
    denied: BTreeSet<String>,
    is_admin: bool,
}

/// A server.
pub struct Api(StandIn<World>);

impl Deref for Api {
    type Target = StandIn<World>;

    fn deref(&self) -> &StandIn<World> {
        &self.0
    }
}

impl Api {
    pub fn start() -> Self {
        Self::with(Setup::default())
    }

    pub fn with(setup: Setup) -> Self {
        Self::of(Authority::new("the cluster's authority"), setup)
    }

    pub fn of(authority: Authority, setup: Setup) -> Self {
        let world = World {
            versions: vec!["v1alpha7".to_owned()],
            ..World::default()
        };
        Self(StandIn::of(authority, setup, world))
    }

    /// Accepts a bearer token, and no other.
    pub fn accept(&self, token: &str) {
        self.0.world(|world| world.tokens = HashSet::from([token.to_owned()]));
    }

    /// Adds a Workflow with this status, as the service of flux-coral2 creates it.
    pub fn workflow(&self, name: &str, uid: u32, status: Value) {
        let workflow = json!({
            "kind": "Workflow",
            "metadata": {"name": name, "namespace": "default", "resourceVersion": "1"},
            "spec": {"desiredState": "PreRun", "wlmID": "flux", "jobID": "fA", "userID": uid, "groupID": uid,
                "hurry": false, "forceReady": false, "dwDirectives": ["#DW jobdw type=xfs capacity=1GiB name=x"]},
            "status": status,
        });
        self.0
            .world(|world| world.workflows.insert(format!("default/{name}"), workflow));
    }

    /// Changes the `spec` of an existing Workflow.
    pub fn workflow_spec(&self, name: &str, change: impl FnOnce(&mut Value)) {
        self.0.world(|world| {
            let workflow = world.workflows.get_mut(&format!("default/{name}")).unwrap();
            change(&mut workflow["spec"]);
        });
    }

    pub fn no_workflow(&self, name: &str) {
        self.0.world(|world| world.workflows.remove(&format!("default/{name}")));
    }

    /// Adds a Secret.
    pub fn secret(&self, name: &str, data: Value) {
        let (namespace, name) = name.split_once('/').unwrap();
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {"name": name, "namespace": namespace, "resourceVersion": "1"},
            "data": data,
        });
        self.0
            .world(|world| world.secrets.insert(format!("{namespace}/{name}"), secret));
    }

    /// Serves these versions of Workflows and prefers the first. An empty list means that DWS is not installed.
    pub fn versions(&self, versions: &[&str]) {
        self.0
            .world(|world| world.versions = versions.iter().map(|version| (*version).to_owned()).collect());
    }

    /// Forbids an action, as in `get secrets`.
    pub fn deny(&self, what: &str) {
        self.0.world(|world| world.denied.insert(what.to_owned()));
    }

    pub fn permit_all(&self) {
        self.0.world(|world| world.is_admin = true);
    }
}

impl server::World for World {
    fn answer(&mut self, asked: &Asked) -> Response<Script> {
        self.respond(asked)
    }

    fn failure(code: u16, message: &str) -> Response<Script> {
        status(code, "InternalError", message)
    }
}

impl World {
    fn respond(&self, asked: &Asked) -> Response<Script> {
        let token = asked.authorization.as_deref();
        let token = token.and_then(|header| header.strip_prefix("Bearer "));
        if !asked.with_certificate && !token.is_some_and(|token| self.tokens.contains(token)) {
            return status(401, "Unauthorized", "Unauthorized");
        }
        let parts: Vec<&str> = asked.path.trim_start_matches('/').split('/').collect();
        match (asked.method.as_str(), parts.as_slice()) {
            ("GET", ["apis", GROUP]) if !self.versions.is_empty() => {
                let all: Vec<_> = self.versions.iter().map(|version| group_version(version)).collect();
                object(&json!({
                    "kind": "APIGroup", "apiVersion": "v1", "name": GROUP,
                    "versions": all, "preferredVersion": all[0],
                }))
            }
            ("GET", ["apis", GROUP, version, "namespaces", namespace, "workflows", name])
                if self.versions.iter().any(|served| served == version) =>
            {
                self.get(
                    "workflows",
                    &format!("workflows.{GROUP}"),
                    namespace,
                    name,
                    &self.workflows,
                    |found| {
                        found["apiVersion"] = json!(format!("{GROUP}/{version}"));
                    },
                )
            }
            ("GET", ["api", "v1", "namespaces", namespace, "secrets", name]) => {
                self.get("secrets", "secrets", namespace, name, &self.secrets, |_| {})
            }
            ("POST", ["apis", "authorization.k8s.io", "v1", "selfsubjectaccessreviews"]) => self.review(&asked.body),
            _ => {
                let mut response = Response::new(Script::of(b"404 page not found\n".to_vec()));
                *response.status_mut() = StatusCode::NOT_FOUND;
                response
            }
        }
    }

    fn get(
        &self,
        resource: &str,
        full: &str,
        namespace: &str,
        name: &str,
        objects: &BTreeMap<String, Value>,
        finish: impl Fn(&mut Value),
    ) -> Response<Script> {
        if self.denied.contains(&format!("get {resource}")) {
            let says = format!(
                "{full} \"{name}\" is forbidden: User \"system:serviceaccount:flux:tokens\" cannot get resource \
                 \"{resource}\" in the namespace \"{namespace}\""
            );
            return status(403, "Forbidden", &says);
        }
        match objects.get(&format!("{namespace}/{name}")) {
            Some(found) => {
                let mut found = found.clone();
                finish(&mut found);
                object(&found)
            }
            None => status(404, "NotFound", &format!("{full} \"{name}\" not found")),
        }
    }

    fn review(&self, body: &[u8]) -> Response<Script> {
        let mut review: Value = serde_json::from_slice(body).unwrap();
        let of = |key: &str| {
            review["spec"]["resourceAttributes"][key]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let what = format!("{} {}", of("verb"), of("resource"));
        let allowed = match what.as_str() {
            "* *" => self.is_admin,
            "get workflows" => of("group") == GROUP && !self.denied.contains(&what),
            _ => of("group").is_empty() && !self.denied.contains(&what),
        };
        review["status"] = json!({"allowed": allowed});
        let mut response = object(&review);
        *response.status_mut() = StatusCode::CREATED;
        response
    }
}

fn group_version(version: &str) -> Value {
    json!({"groupVersion": format!("{GROUP}/{version}"), "version": version})
}

fn object(value: &Value) -> Response<Script> {
    server::json(200, value)
}

/// The type `Status` of the API group `meta/v1`.
fn status(code: u16, reason: &str, message: &str) -> Response<Script> {
    server::json(
        code,
        &json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code,
        }),
    )
}
