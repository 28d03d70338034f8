//! Workflow tokens: claims, the shape check, issuing.
