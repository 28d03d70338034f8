//! Sources of variables: where a workflow token comes from.
