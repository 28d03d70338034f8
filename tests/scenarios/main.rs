//! What users and operators notice of the plugins. Each scenario is written once, and runs on the simulator and, where it is
//! installed, on Flux: see `needs::scenario`.

#[macro_use]
extern crate needs;

mod delivery;
mod lifecycle;
mod pmi;
mod rabbit;
#[path = "../support/mod.rs"]
mod support;
