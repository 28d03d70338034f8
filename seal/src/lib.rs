//! Sealed records: the variables of one job in a MUNGE credential that only the job owner can open.
//!
//! Sealing takes [`Variables`], the job id and the uid of the job owner to a [`Record`]; opening takes a record back to
//! variables, and refuses it unless MUNGE authenticated it, the instance owner encoded it, and it belongs to this very
//! job and uid. This crate knows nothing of tokens and nothing of Flux.
//!
//! Secrets are kept in [`Secret`], which zeroizes when dropped and does not print.

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
