// SPDX-License-Identifier: MIT OR Apache-2.0

//! Updates of jobspecs by request.
//!
//! Imitates `update.c` of the job manager. Each updated key needs the consent of a plugin. Then the plugins validate
//! the updated jobspec, unless every plugin that consented declares this unnecessary. Flux itself consents to two keys:
//! `attributes.system.duration` and `attributes.system.queue`. There are no queues here, so any name is accepted.
//! Feasibility is not checked.

use std::rc::Rc;

use serde_json::{Map, Value, json};

use crate::future::Failure;
use crate::instance::Instance;
use crate::job::{self, Job, State};
use crate::jobid::JobId;
use crate::jobtap::Consent;

const DURATION: &str = "attributes.system.duration";
const QUEUE: &str = "attributes.system.queue";

impl Instance {
    /// Handles a request of `flux update`: an object with the path of each value as its key.
    pub fn update_request(self: &Rc<Self>, id: JobId, updates: &Value, userid: u32) -> Result<(), Failure> {
        let invalid = |text: String| Failure::new(libc::EINVAL, text);
        let Some(asked) = updates.as_object().filter(|_| job::may_update(updates)) else {
            return Err(invalid("one or more jobspec updates are invalid".to_owned()));
        };
        let job = self
            .job(id)
            .ok_or_else(|| Failure::new(libc::ENOENT, "unknown job id"))?;
        if job.state.get() == State::Inactive {
            return Err(invalid("job is inactive".to_owned()));
        }
        let is_owner = userid == self.owner;
        if !is_owner && userid != job.userid.get() {
            return Err(Failure::new(libc::EPERM, "guests may only update their own jobs"));
        }
        if job.immutable.get() && !is_owner {
            let text = "job is immutable due to previous instance owner update";
            return Err(Failure::new(libc::EPERM, text));
        }
        let mut updates = asked.clone();
        let validated = self.consent(&job, asked, &mut updates, userid).map_err(invalid)?;
        let updates = Value::Object(updates);
        if !validated {
            let mut jobspec = job.current.borrow().clone();
            job::apply_updates(&mut jobspec, &updates)?;
            let more = json!({"jobspec": jobspec});
            self.jobtap
                .call_early(self, &job, "job.validate", more)
                .map_err(invalid)?;
        }
        if validated && is_owner && userid != job.userid.get() {
            self.post(&job, "set-flags", json!({"flags": ["immutable"]}));
        }
        match self.try_post(&job, "jobspec-update", updates) {
            Ok(()) => Ok(()),
            Err(errnum) => Err(Failure::errno(errnum)),
        }
    }

    /// Requests the plugins' consent to each key, and adds the further updates that they request. Returns whether
    /// nothing is left to validate.
    fn consent(
        self: &Rc<Self>,
        job: &Rc<Job>,
        asked: &Map<String, Value>,
        updates: &mut Map<String, Value>,
        userid: u32,
    ) -> Result<bool, String> {
        let mut validated = true;
        for (key, value) in asked {
            let of_flux = self.consent_of_flux(job, key, value, userid)?;
            let of_plugins = self.jobtap.call_update(self, job, key, value, userid)?;
            let consents: Vec<Consent> = of_flux.into_iter().chain(of_plugins).collect();
            if consents.is_empty() {
                return Err(format!("update of {key} not supported"));
            }
            validated &= consents.iter().any(|consent| consent.validated);
            updates.extend(consents.into_iter().flat_map(|consent| consent.updates));
        }
        Ok(validated)
    }

    fn consent_of_flux(&self, job: &Job, key: &str, value: &Value, userid: u32) -> Result<Option<Consent>, String> {
        let has_run = matches!(job.state.get(), State::Run | State::Cleanup);
        let is_owner = userid == self.owner;
        match key {
            DURATION => match value.as_f64() {
                None => Err("plugin args unpack failed".to_owned()),
                Some(seconds) if seconds < 0.0 => Err("duration must not be negative".to_owned()),
                Some(_) if has_run && !is_owner => {
                    Err("duration update of running job requires instance owner privileges".to_owned())
                }
                Some(_) => Ok(Some(Consent {
                    validated: is_owner,
                    updates: Map::new(),
                })),
            },
            QUEUE if has_run => Err("update of queue for running job not supported".to_owned()),
            QUEUE => Ok(Some(Consent::default())),
            _ => Ok(None),
        }
    }
}
