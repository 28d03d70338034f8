// SPDX-License-Identifier: MIT OR Apache-2.0

//! The engine: turns the facts of one job into a sealed record.
//!
//! ```text
//! owner ──► rule ──► turn ──► fetch ──► check ──► seal
//! ```
//!
//! It knows no scheduler. Each blocking operation runs on a thread that holds a permit until it returns. So a hung
//! operation uses up only the capacity of the rule or user that caused it.

#![forbid(unsafe_code)]

mod counts;
mod engine;
mod examine;
mod identity;
mod job_claims;
mod limits;
mod login;
mod lookups;
mod owners;
mod pipeline;
mod progress;
mod renewal;
mod rules;
mod shortfall;
mod subject;
mod task;

/// Panics if a test requests it: the environment variable `WORKFLOW_TOKEN_FAULT` names a file. If the file contains
/// `place`, the function removes it and panics. Without the feature `fault-injection`, it does nothing.
#[inline]
fn inject_fault(place: &str) {
    #[cfg(feature = "fault-injection")]
    if let Some(file) = std::env::var_os("WORKFLOW_TOKEN_FAULT")
        && std::fs::read_to_string(&file).is_ok_and(|wanted| wanted == place)
        && std::fs::remove_file(&file).is_ok()
    {
        panic!("fault injection");
    }
    #[cfg(not(feature = "fault-injection"))]
    let _ = place;
}

pub use engine::{Engine, Shared};
pub use login::UserLogin;
pub use owners::{Owner, Tell};
pub use pipeline::{Outcome, Sealed};
pub use subject::{Granted, Refusal, denied, narrowed, requested_lifetime};
pub use task::{Task, Variables};
