// SPDX-License-Identifier: MIT OR Apache-2.0

//! The plugins under the Flux simulator, with a real munged.

#[macro_use]
extern crate needs;

mod agent;
mod delivery;
mod dws;
mod dws_shell;
mod field;
mod growth;
mod identity;
mod issuer;
mod kubernetes;
mod lifecycle;
mod panics;
mod pmi;
mod projects;
mod renewal;
mod seal;
mod shell;
mod shortfall;
mod simulator;
mod status_list;
#[path = "../support/mod.rs"]
mod support;
mod validity;
