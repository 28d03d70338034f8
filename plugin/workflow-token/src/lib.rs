//! workflow-token.so for the job manager.
