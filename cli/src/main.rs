//! `flux workflow-token`.

fn main() {}
