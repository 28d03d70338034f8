//! The C API of libflux-core, jobtap and the job shell, and safe types over it.
pub mod raw;
