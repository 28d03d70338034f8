//! The delivery of workflow tokens, for the job manager of Flux.
