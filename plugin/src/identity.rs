//! The names that distinguish the plugins.

use std::ffi::CStr;

use config::Part;

/// The names by which a plugin is known to Flux, users and operators.
#[derive(Debug)]
pub struct Identity {
    /// The name of the plugin, and the start of its lines in the log.
    pub name: &'static str,
    /// The description of the prolog that holds a job, and the type of exceptions.
    pub prolog: &'static CStr,
    /// The key of the records in the KVS directory of the job.
    pub key: &'static str,
    /// Whether a successor looks for records of deliveries that were under way, since it cannot repeat these.
    pub looks_for_records: bool,
    /// What the job lacks without its record, for its user.
    pub what: &'static str,
    /// The part of the configuration that the plugin uses.
    pub part: Part,
    /// The aux item of the Flux handle that holds the handover.
    pub handover: &'static CStr,
    /// The aux item of the Flux handle that marks the plugin in charge.
    pub active: &'static CStr,
    /// The events whose contexts are kept when eventlogs are read.
    pub events: &'static [&'static str],
}
