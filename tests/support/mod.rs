//! What the tests share.
#![allow(dead_code, unreachable_pub)]

pub mod host;
pub mod munged;
pub mod names;
pub mod plugins;
pub mod search;
mod skip;

pub use skip::skip;
