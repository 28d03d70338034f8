// SPDX-License-Identifier: MIT OR Apache-2.0

//! The plugins as users and operators see them. Each scenario is written once. It runs on the simulator and, if
//! installed, on Flux: see `needs::scenario`.

#[macro_use]
extern crate needs;

mod delivery;
mod lifecycle;
mod pmi;
mod rabbit;
#[path = "../support/mod.rs"]
mod support;
