// SPDX-License-Identifier: MIT OR Apache-2.0

//! Sealed records: the variables of one job in a MUNGE credential that only the job owner can open.
//!
//! Sealing turns [`Variables`], the job id and the uid of the job owner into a [`Record`]. Opening turns a record back
//! into variables. It rejects a record unless MUNGE authenticated it, the instance owner encoded it, and it belongs to
//! the expected job and uid. This crate is independent of tokens and of Flux.
//!
//! [`Secret`] holds secrets. It zeroizes them when dropped and does not print them.

mod attempts;
mod error;
mod files;
mod munge;
mod payload;
mod record;
mod renewal;
mod socket;
mod variables;
mod version;

pub use attempts::Attempts;
pub use error::{Error, Owner};
pub use files::{BEARER_TOKEN_FILE, TokenFiles, on_this_node};
pub use munge::{Cipher, Mac, Munge, MungeError, Ttl};
pub use payload::MAX_PAYLOAD;
pub use record::{Expected, Opened, Record, Staleness, key};
pub use renewal::{Due, OnExpiry, Renewal};
pub use secrecy::ExposeSecret;
pub use socket::MungeUser;
pub use variables::{NameError, Secret, Variables, check_name};
pub use version::VERSION;
