// SPDX-License-Identifier: MIT OR Apache-2.0

//! The names that distinguish the plugins.

use std::ffi::CStr;

use config::Part;

/// The names of a plugin for Flux, users and operators.
#[derive(Debug)]
pub struct Identity {
    /// The name of the plugin, and the prefix of its log lines.
    pub name: &'static str,
    /// The description of the prolog that holds a job, and the type of exceptions.
    pub prolog: &'static CStr,
    /// The key of the records in the KVS directory of the job.
    pub key: &'static str,
    /// Set if a successor searches for records of interrupted deliveries, because it cannot repeat them.
    pub looks_for_records: bool,
    /// The name, for users, of the content of the record.
    pub what: &'static str,
    /// The part of the configuration that the plugin uses.
    pub part: Part,
    /// The aux item of the Flux handle that holds the handover.
    pub handover: &'static CStr,
    /// The aux item of the Flux handle that marks the active plugin.
    pub active: &'static CStr,
    /// The events whose contexts are kept when eventlogs are read.
    pub events: &'static [&'static str],
}
