// SPDX-License-Identifier: MIT OR Apache-2.0

//! Delivers secrets to jobs, in the job manager of Flux.
//!
//! A prolog holds a job that needs a secret until the agent has fetched, checked and sealed it, and the sealed record
//! is in the KVS:
//!
//! ```text
//! job.state.run ── prolog-start ──► agent client ──► agent (another process): fetch, check, seal
//!                                        │
//! prolog-finish ◄── record store ◄───────┘   KVS commit
//! ```
//!
//! The job manager is one thread that must never wait. These plugins have no other thread: apart from Flux, they use
//! one non-blocking socket, and Flux timers enforce every deadline. `engine` holds the state that the plugins share,
//! `deliveries` the path of each job, `agent` the client, `commits` and `removals` the record store, `reader` and
//! `succession` the recovery after a restart or reload.

mod agent;
mod commits;
mod configuration;
mod deliveries;
mod engine;
mod eventlog;
mod handover;
mod identity;
pub mod jobspec;
mod prologs;
mod questions;
mod reader;
mod removals;
mod stats;
mod succession;
mod table;
mod ticker;

use ffi::{Jobtap, Plugin};

pub use configuration::Current;
pub use deliveries::{Deliveries, Delivering, TURN};
pub use engine::{Engine, Hooks};
pub use eventlog::{Eventlog, Past, Perilog};
pub use handover::Handover;
pub use identity::Identity;
pub use prologs::Prologs;
pub use reader::{ReadEvent, Reader, Subject};
pub use stats::{CallbackTimer, Counter};
pub use table::{Delivered, End, Purpose};
pub use ticker::Ticker;

/// Counts the memory of each shared object separately.
#[cfg(any(test, feature = "fault-injection"))]
#[global_allocator]
static MEMORY: ffi::memory::Counted = ffi::memory::Counted::new();

/// Loads a plugin for `flux_plugin_init`. `load` registers its callbacks. Returns the return value of
/// `flux_plugin_init`.
pub fn load(plugin: Plugin<'static>, name: &str, load: fn(Plugin<'static>) -> std::io::Result<()>) -> i32 {
    ffi::quiet_panics();
    ffi::inject_fault("flux_plugin_init");
    match load(plugin) {
        Ok(()) => 0,
        Err(error) => {
            if let Some(jobtap) = Jobtap::new(plugin) {
                let line = format!("{name}: cannot be loaded: {error}");
                jobtap.flux().log(ffi::LogLevel::Err, &line);
            }
            -1
        }
    }
}
