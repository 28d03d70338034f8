// SPDX-License-Identifier: MIT OR Apache-2.0

//! The stage of a delivery, for the operator's message about a timeout.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use protocol::{Code, Failure};

/// The current stage of a delivery, and its last error.
#[derive(Debug, Default)]
pub(crate) struct Progress(Mutex<(Stage, Option<String>)>);

/// The stages of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Stage {
    #[default]
    Owner,
    Waiting,
    Fetching,
    Checking,
    Sealing,
}

impl Progress {
    /// Records that the delivery enters a stage.
    pub fn enter(&self, stage: Stage) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (stage, None);
    }

    /// Records an error after which the stage is retried.
    pub fn retries(&self, error: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1 = Some(error);
    }

    /// Returns the failure of a delivery that exceeded `limit`, which `key` sets.
    pub fn timed_out(&self, limit: Duration, key: &str) -> Failure {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (stage, error) = &*state;
        let (code, what) = stage.describe();
        let seconds = limit.as_secs_f64();
        let error = error.as_ref().map(|e| format!(" ({e})")).unwrap_or_default();
        Failure::new(
            code,
            format!("it took longer than {seconds} s"),
            format!("it took longer than {seconds} s ({key}) while {what}{error}"),
        )
    }
}

impl Stage {
    /// Returns the code and, for the operator, the action that was interrupted.
    fn describe(self) -> (Code, &'static str) {
        match self {
            Stage::Owner => (Code::OwnerTimeout, "the job owner was looked up"),
            Stage::Waiting => (Code::QueueTimeout, "it waited for its turn (max-parallel)"),
            Stage::Fetching => (Code::SourceTimeout, "its source was asked"),
            Stage::Checking => (Code::CheckTimeout, "its token was verified"),
            Stage::Sealing => (Code::SealTimeout, "munged was asked to seal: is it running?"),
        }
    }
}
