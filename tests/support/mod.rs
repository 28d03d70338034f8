// SPDX-License-Identifier: MIT OR Apache-2.0

//! Code shared by the tests.
#![allow(dead_code, unreachable_pub)]

pub mod munged;
pub mod names;
pub mod plugins;
pub mod pmi;
pub mod rabbits;
pub mod search;
pub mod server;
pub mod simulator;
