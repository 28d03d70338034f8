//! How a plugin takes over from its predecessor in the same job manager, and leaves to its successor.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
};

use ffi::{Flux, JobId, LogLevel};
use serde::de::DeserializeOwned;

use crate::{eventlog::Past, handover::Handover, identity::Identity};

/// Whether this plugin is in charge, and what its predecessor left.
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

    /// Returns whether this plugin is in charge: it has been configured.
    pub fn is_active(&self) -> bool {
        self.is_active.get()
    }

    /// Puts this plugin in charge. Returns the jobs that have a record, by its predecessor.
    ///
    /// # Errors
    /// If another plugin of the name is in charge.
    pub fn take_charge(&self, flux: Flux<'_>) -> Result<HashSet<JobId>, String> {
        let name = self.identity.name;
        if flux.is_left(self.identity.active) {
            return Err(format!(
                "{name} is already loaded, under another file name: remove that first"
            ));
        }
        // Earlier releases look for the mark as well.
        flux.leave(self.identity.active, b"active")
            .map_err(|e| format!("{name} cannot be put in charge: {e}"))?;
        self.is_active.set(true);
        let handover = Handover::take(flux, self.identity);
        let delivered = handover.as_ref().map(|handover| handover.delivered.clone());
        *self.inherited.borrow_mut() = handover;
        Ok(delivered.unwrap_or_default())
    }

    /// Gives the charge up, whatever went wrong before: a successor must not be kept out.
    pub fn give_up_charge(&self, flux: Flux<'_>) {
        if let Err(e) = flux.leave(self.identity.active, b"") {
            let line = format!(
                "{}: it cannot be loaded again: {e}: restart the instance",
                self.identity.name
            );
            flux.log(LogLevel::Err, &line);
        }
    }

    /// Returns how far the delivery of a job had come; none if the predecessor did not know, or there was none.
    pub fn past(&self, job: JobId) -> Option<Past> {
        self.inherited.borrow().as_ref()?.past(job)
    }

    /// Returns what the predecessor added to the handover; none if there is none that this release knows.
    pub fn own<T: DeserializeOwned>(&self) -> Option<T> {
        self.inherited.borrow().as_ref()?.own()
    }
}
