// SPDX-License-Identifier: MIT OR Apache-2.0

//! The page of the agent is what its help says.

use std::path::Path;

#[path = "../../tests/support/pages.rs"]
mod pages;

use pages::Page;

#[test]
fn the_page_of_the_agent_has_the_options_of_its_help() {
    let program = Path::new(env!("CARGO_BIN_EXE_workflow-token-agent"));
    let page = Page::read("doc/workflow-token-agent.8.md");
    let differences = page.differences(program, "workflow-token-agent");
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
