//! workflow-token.so for the job shell.
