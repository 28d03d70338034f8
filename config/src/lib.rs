//! The [workflow-token] table of the configuration of Flux, and which rule a job matches.
