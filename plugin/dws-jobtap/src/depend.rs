// SPDX-License-Identifier: MIT OR Apache-2.0

//! DEPEND: a job waits until its workflow is created and its resources are known.

use std::rc::Rc;

use ffi::{Args, JobId, JobState, LogLevel, PluginError, Request};
use serde_json::{Map, Value};

use crate::{
    constraints,
    lifecycle::{Lifecycle, Origin, Workflow, WorkflowEvent},
    rabbit_jobs::{Call, DEPENDENCY, DW, MEMO_WORKFLOW, RabbitJobs},
    request::ResourceUpdate,
    service::{NoReply, Reply, reply},
};

const TOLERANCE: [&str; 4] = ["jobspec", "attributes", "system", "dw_failure_tolerance"];
const CONSTRAINTS: [&str; 4] = ["jobspec", "attributes", "system", "constraints"];
const ALLOW_RABBITS: [&str; 4] = ["jobspec", "attributes", "system", "allow_rabbits"];

impl RabbitJobs {
    pub fn depend(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        let Some(job) = self.rabbit_job(args) else {
            return Ok(());
        };
        self.hold(job)?;
        self.subscribe(job)?;
        if self.life(job).origin == Origin::Inherited {
            // The eventlog decides whether the job must still wait.
            return Ok(());
        }
        self.ask_to_create(job, args)
    }

    /// Adds the dependency that holds a job until its workflow is created.
    pub fn hold(&self, job: JobId) -> Result<(), PluginError> {
        self.jobtap().dependency_add(job, DEPENDENCY).map_err(|e| {
            let line = format!("Failed to add dws jobtap dependency for {job}: {e}");
            self.engine.log(LogLevel::Err, &line);
            self.raise_current(job, "Failed to add dws jobtap dependency")
        })
    }

    /// Sends `dws.create`, which makes the service create the workflow of a job.
    pub fn ask_to_create(self: &Rc<Self>, job: JobId, args: &Args<'_>) -> Result<(), PluginError> {
        let tolerance = match (args.integer(&TOLERANCE), args.has(&TOLERANCE)) {
            (Some(tolerance), _) => tolerance,
            (None, false) => 0,
            (None, true) => {
                let text = "jobtap plugin failed to unpack args: dw_failure_tolerance must be an integer";
                return Err(self.raise_current(job, text));
            }
        };
        let uid = self.with(job, |rabbit| rabbit.uid);
        let json_of = |path: &[&str]| args.json(path).unwrap_or_else(|| "null".to_owned());
        let payload = format!(
            r#"{{"dw_directives":{},"jobid":{},"resources":{},"userid":{uid},"failure_tolerance":{tolerance}}}"#,
            json_of(&DW),
            job.0,
            json_of(&["jobspec", "resources"]),
        );
        let asked = self.engine.flux().rpc(c"dws.create", &payload);
        self.on_workflow(job, WorkflowEvent::Asked);
        self.call(job, Call::Create, asked, move |me, future| me.created(job, &future))
            .map_err(|e| {
                let line = format!("Failed to send dws.create RPC for {job}: {e}");
                self.engine.log(LogLevel::Err, &line);
                self.raise_current(job, "Failed to send dws.create RPC")
            })
    }

    fn created(self: &Rc<Self>, job: JobId, future: &ffi::Future) {
        let Lifecycle { origin, workflow, .. } = self.life(job);
        match reply(future) {
            Ok(Reply::Success) => {
                self.on_workflow(job, WorkflowEvent::Created);
                self.counts.created.set(self.counts.created.get() + 1);
            }
            // The former plugin had it created: the service has named it in a memo.
            Ok(Reply::Failure(_)) if origin == Origin::Inherited && workflow.exists() => {}
            Ok(Reply::Failure(why)) => {
                self.on_workflow(job, WorkflowEvent::Refused);
                let why = why.unwrap_or_else(|| "dws.create RPC returned failure".to_owned());
                self.fail(job, DEPENDENCY, &why);
            }
            // After a restart, the service may start later than the job manager.
            Err(NoReply::NoService) if origin == Origin::Inherited => {
                self.again(job, "dws.create", |me, job| me.create_again(job));
            }
            Err(NoReply::NoService) => {
                self.on_workflow(job, WorkflowEvent::Refused);
                self.fail(
                    job,
                    DEPENDENCY,
                    "dws.create RPC could not be sent. Admins: is the flux-coral2-dws service loaded?",
                );
            }
            Err(NoReply::Other(e)) => {
                self.on_workflow(job, WorkflowEvent::Refused);
                self.engine.log(LogLevel::Err, &format!("{job}: dws.create: {e}"));
                self.fail(job, DEPENDENCY, "Failed to unpack dws.create RPC");
            }
        }
    }

    fn create_again(self: &Rc<Self>, job: JobId) {
        let is_known = self.life(job).workflow == Workflow::ResourcesKnown;
        if is_known || self.engine.state(job) != Some(JobState::Depend) {
            return;
        }
        if let Some(args) = self.jobtap().lookup(job) {
            // Errors raise an exception.
            let _ = self.ask_to_create(job, &args);
        }
    }

    /// `job.event.memo`: the service has named the Workflow of a job, so the Workflow exists.
    pub fn memo(&self, args: &Args<'_>) -> Result<(), PluginError> {
        if args.has(&["entry", "context", MEMO_WORKFLOW])
            && let Some(job) = self.rabbit_job(args)
        {
            self.on_workflow(job, WorkflowEvent::Created);
        }
        Ok(())
    }

    pub fn resource_update(&self, request: Request<'_>) {
        ffi::inject_fault("resource-update");
        let update = match request.payload().ok().map(ResourceUpdate::parse) {
            Some(Ok(update)) => update,
            malformed => return self.malformed(request, "resource-update", malformed.and_then(Result::err)),
        };
        let job = update.job;
        if let Some(errmsg) = update.errmsg {
            self.fail(job, c"dws", &errmsg);
            return self.respond(request, Ok(()));
        }
        let result = self.update(job, update.resources, update.exclude);
        self.respond(request, result);
    }

    fn update(&self, job: JobId, resources: Value, exclude: Value) -> Result<(), String> {
        let args = self.jobtap().lookup(job);
        let Some(args) = args.filter(|args| {
            let known = args.job_owner_state();
            known.is_some_and(|(_, _, state)| state == JobState::Depend)
        }) else {
            return Err("job not found in depend state".to_owned());
        };
        let mut updates = Map::from_iter([("resources".to_owned(), resources)]);
        if !exclude.is_null() {
            let constraints = constraints(&args, exclude).ok_or_else(|| {
                let why = "Could not generate new constraints";
                self.engine.log(LogLevel::Err, &format!("{why} for {job}"));
                self.fail(job, c"dws", why);
                why.to_owned()
            })?;
            updates.insert("attributes.system.constraints".to_owned(), constraints);
        }
        drop(args);
        // Change the state first, because the job may continue within the next calls.
        self.on_workflow(job, WorkflowEvent::ResourcesKnown);
        if let Err(e) = self.jobtap().update_jobspec(job, &Value::Object(updates)) {
            let why = "could not update jobspec with new constraints and resources";
            self.engine.log(LogLevel::Err, &format!("{job}: {why}: {e}"));
            self.fail(job, c"dws", "Internal error: failed to update jobspec");
            return Err(why.to_owned());
        }
        self.jobtap().dependency_remove(job, DEPENDENCY).map_err(|e| {
            let why = "Failed to remove dependency for job";
            self.engine.log(LogLevel::Err, &format!("dws-create: {why} {job}: {e}"));
            why.to_owned()
        })
    }
}

/// Returns the constraints of a job combined with those that the service adds; none if the job's own constraints are
/// malformed.
fn constraints(args: &Args<'_>, exclude: Value) -> Option<Value> {
    let old = match args.json(&CONSTRAINTS) {
        Some(text) => Some(serde_json::from_str(&text).ok()?),
        None => None,
    };
    let allow_rabbits = match args.json(&ALLOW_RABBITS).as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return None,
    };
    Some(constraints::combine(old, exclude, allow_rabbits))
}
