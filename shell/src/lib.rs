//! The job shell plugin: opens the sealed record and exports the variables.
