// SPDX-License-Identifier: MIT OR Apache-2.0

//! The plugin's callbacks. Only those that the configuration needs are registered.

use std::{
    cell::{Cell, OnceCell},
    ffi::CStr,
    io,
    rc::Rc,
};

use config::Rule;
use ffi::{Args, JobState, Jobtap, Kept, Plugin, PluginError};
use plugin::CallbackTimer;
use serde_json::json;

use crate::{projects::Membership, tokens::Tokens};

/// The topics of checks at submission. They are handled only if the configuration needs them, since each job pays for
/// them.
const VALIDATE: &CStr = c"job.validate";
const UPDATE: &CStr = c"job.update.attributes.system.project";
const DEPEND: &CStr = c"job.state.depend";

/// The state of the plugin, which Flux passes to callbacks.
pub(crate) struct WorkflowToken {
    tokens: Rc<Tokens>,
    /// Set while [`UPDATE`] is handled. A plugin that handles it permits such updates, which Flux rejects otherwise.
    permits_updates: Cell<bool>,
    /// Set while [`DEPEND`] is handled.
    depends: Cell<bool>,
    /// Set while [`VALIDATE`] is handled.
    validates: Cell<bool>,
    /// The handle with which callbacks with this state are added.
    kept: OnceCell<Kept<WorkflowToken>>,
}

impl WorkflowToken {
    /// Returns the state of a plugin that is being loaded. It does nothing until it is configured.
    pub fn new(jobtap: Jobtap<'static>, plugin: Plugin<'_>) -> io::Result<Self> {
        Ok(Self {
            tokens: Tokens::new(jobtap, plugin)?,
            permits_updates: Cell::new(false),
            depends: Cell::new(false),
            validates: Cell::new(false),
            kept: OnceCell::new(),
        })
    }

    /// Sets the handle with which callbacks with this state are added, once.
    pub fn is_kept(&self, kept: Kept<WorkflowToken>) {
        let is_first = self.kept.set(kept).is_ok();
        debug_assert!(is_first);
    }

    /// `conf.update`: rejects an invalid configuration and keeps the former one. Deliveries under way keep theirs.
    pub fn conf_update(&self, plugin: Plugin<'_>, args: &Args<'_>) -> Result<(), PluginError> {
        self.tokens.configure(args)?;
        let Some(kept) = self.kept.get() else { return Ok(()) };
        let changed = self.handle_topics(plugin, kept);
        changed.map_err(|e| PluginError(format!("jobs cannot be checked when they are submitted: {e}")))
    }

    /// Adds handlers for the topics that the configuration needs, and removes the others.
    fn handle_topics(&self, plugin: Plugin<'_>, kept: &Kept<WorkflowToken>) -> io::Result<()> {
        let Some(config) = self.tokens.engine.current().map(|current| current.config) else {
            return Ok(());
        };
        let has_projects = !config.projects.is_empty();
        let depends = has_projects || config.foresees();
        let validates = depends || config.rules.iter().any(Rule::takes_requests);
        if validates != self.validates.get() {
            match validates {
                true => plugin.handle(VALIDATE, kept, |w: &WorkflowToken, _, args| w.validate(args))?,
                false => plugin.unhandle(VALIDATE)?,
            }
            self.validates.set(validates);
        }
        if depends != self.depends.get() {
            match depends {
                true => plugin.handle(DEPEND, kept, |w: &WorkflowToken, _, args| {
                    w.with_membership(|membership| membership.depend(args));
                    Ok(())
                })?,
                false => plugin.unhandle(DEPEND)?,
            }
            self.depends.set(depends);
        }
        if has_projects != self.permits_updates.get() {
            match has_projects {
                true => plugin.handle(UPDATE, kept, |w: &WorkflowToken, _, args| {
                    w.with_membership(|membership| membership.update_project(args))
                })?,
                false => plugin.unhandle(UPDATE)?,
            }
            self.permits_updates.set(has_projects);
        }
        Ok(())
    }

    /// `job.validate`: rejects a job if its owner is not in its project, if it requests a token that its rule does not
    /// allow, or if its token expires too early.
    fn validate(&self, args: &Args<'_>) -> Result<(), PluginError> {
        self.with_membership(|membership| membership.validate(args))?;
        self.tokens.check_requests(args).map_err(PluginError)?;
        self.with_membership(|membership| membership.check_shortfall(args))
    }

    /// `job.new`: resumes a job from before the plugin was loaded.
    pub fn job_new(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let Some((job, uid, state)) = args.job_owner_state() else {
            return Ok(());
        };
        match state {
            JobState::Run | JobState::Cleanup => self.tokens.resume_active(args, job, uid, state),
            JobState::Depend => self.tokens.membership.resume(job, uid),
            JobState::New | JobState::Pending | JobState::Inactive => {}
        }
        Ok(())
    }

    /// `job.state.run`: begins the delivery of a job that a rule may match.
    pub fn job_run(&self, args: &Args<'_>) -> Result<(), PluginError> {
        self.tokens.start(args);
        Ok(())
    }

    /// `job.state.cleanup`: cancels the delivery of a job that was canceled or has ended.
    pub fn job_cleanup(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let timer = CallbackTimer::start();
        let Some(job) = args.job() else { return Ok(()) };
        if self.tokens.give_up(job) {
            self.tokens.engine.deliveries.account(&timer, None);
        }
        Ok(())
    }

    /// `job.state.inactive`: removes the record of a job that has fully ended. Its token is not valid from now on.
    pub fn job_inactive(&self, args: &Args<'_>) -> Result<(), PluginError> {
        if let Some(job) = args.job() {
            self.tokens.engine.ended(job);
            self.tokens.engine.report_end(job);
        }
        Ok(())
    }

    /// `plugin.query`: returns the counters.
    pub fn query(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let mut answer = self.tokens.engine.counters();
        answer["held"] = json!(self.tokens.membership.held().len());
        answer["renewing"] = json!(self.tokens.renewed());
        answer["known-users"] = json!(self.tokens.membership.known_users());
        args.answer(&answer);
        Ok(())
    }

    fn with_membership<T>(&self, f: impl FnOnce(&Membership) -> T) -> T {
        let timer = CallbackTimer::start();
        let result = f(&self.tokens.membership);
        self.tokens.engine.deliveries.account(&timer, None);
        result
    }
}

impl ffi::State for WorkflowToken {
    fn panicked(&self, topic: &CStr, args: &Args<'_>) {
        self.tokens.engine.panicked(topic, args);
    }
}

impl Drop for WorkflowToken {
    fn drop(&mut self) {
        self.tokens.end();
    }
}
