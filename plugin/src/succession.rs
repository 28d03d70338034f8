// SPDX-License-Identifier: MIT OR Apache-2.0

//! The takeover from the predecessor in the same job manager, and the handover to the successor.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
};

use ffi::{Flux, JobId, LogLevel};
use serde::de::DeserializeOwned;

use crate::{eventlog::Past, handover::Handover, identity::Identity};

/// The state of the takeover: whether this plugin is active, and the handover of its predecessor.
pub(crate) struct Succession {
    identity: &'static Identity,
    is_active: Cell<bool>,
    inherited: RefCell<Option<Handover>>,
}

impl Succession {
    pub fn new(identity: &'static Identity) -> Self {
        Self {
            identity,
            is_active: Cell::default(),
            inherited: RefCell::default(),
        }
    }

    /// Returns whether this plugin is active: it has been configured.
    pub fn is_active(&self) -> bool {
        self.is_active.get()
    }

    /// Makes this plugin the active one. Returns the jobs that have a record, according to its predecessor.
    ///
    /// # Errors
    /// Another plugin of the same name is active.
    pub fn take_charge(&self, flux: Flux<'_>) -> Result<HashSet<JobId>, String> {
        let name = self.identity.name;
        if flux.is_left(self.identity.active) {
            return Err(format!(
                "{name} is already loaded, under another file name: remove that first"
            ));
        }
        // Earlier releases also look for the mark.
        flux.leave(self.identity.active, b"active")
            .map_err(|e| format!("{name} cannot be put in charge: {e}"))?;
        self.is_active.set(true);
        let handover = Handover::take(flux, self.identity);
        let delivered = handover.as_ref().map(|handover| handover.delivered.clone());
        *self.inherited.borrow_mut() = handover;
        Ok(delivered.unwrap_or_default())
    }

    /// Deactivates this plugin, even after failures: a successor must be able to take over.
    pub fn give_up_charge(&self, flux: Flux<'_>) {
        if let Err(e) = flux.leave(self.identity.active, b"") {
            let line = format!(
                "{}: it cannot be loaded again: {e}: restart the instance",
                self.identity.name
            );
            flux.log(LogLevel::Err, &line);
        }
    }

    /// Returns the state of a job's prolog; none if there was no predecessor, or the predecessor did not know.
    pub fn past(&self, job: JobId) -> Option<Past> {
        self.inherited.borrow().as_ref()?.past(job)
    }

    /// Returns the plugin's own part of the handover; none if it is missing or has another format.
    pub fn own<T: DeserializeOwned>(&self) -> Option<T> {
        self.inherited.borrow().as_ref()?.own()
    }
}
