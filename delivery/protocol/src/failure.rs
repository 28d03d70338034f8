// SPDX-License-Identifier: MIT OR Apache-2.0

//! The reason why a job gets no secret.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The reason why a job gets no secret, for two readers. Neither text contains a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind of failure.
    pub code: Code,
    /// For the user: what failed, without details of the site.
    pub user: String,
    /// For the operator: the cause.
    pub operator: String,
}

impl Failure {
    /// Returns a failure with a text for each reader.
    pub fn new(code: Code, user: impl Into<String>, operator: impl Into<String>) -> Self {
        Self {
            code,
            user: user.into(),
            operator: operator.into(),
        }
    }

    /// Returns the failure after a panic of a plugin. It does not repeat the message of the panic, which may quote
    /// anything.
    pub fn internal() -> Self {
        Self::internal_in("the broker's output")
    }

    /// Returns the failure after a panic of the agent.
    pub fn internal_in_agent() -> Self {
        Self::internal_in("the agent's output (the broker's output, unless systemd started the agent)")
    }

    fn internal_in(output: &str) -> Self {
        let operator = format!("an internal error: see its location in {output}");
        Self::new(Code::Internal, "an internal error", operator)
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// The kinds of failure. Messages show them in brackets, as `[seal-timeout]`; workflow-token-errors(7) lists
        /// them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum Code {
            $($(#[$doc])* $name,)*
        }

        impl Code {
            /// All codes.
            pub const ALL: &[Code] = &[$(Code::$name,)*];

            /// Returns the stable name.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Code::$name => $text,)*
                }
            }
        }
    };
}

codes! {
    /// The agent cannot be started or reached.
    AgentUnavailable = "agent-unavailable",
    /// The agent did not answer in time.
    AgentTimeout = "agent-timeout",
    /// The agent cannot use the configuration.
    AgentConfiguration = "agent-configuration",
    /// The delivery waited for its turn until its timeout.
    QueueTimeout = "queue-timeout",
    /// The job owner could not be looked up in time.
    OwnerTimeout = "owner-timeout",
    /// The job owner could not be looked up.
    OwnerUnknown = "owner-unknown",
    /// The job owner is not in the project.
    ProjectDenied = "project-denied",
    /// The source did not reply in time.
    SourceTimeout = "source-timeout",
    /// The source has no token for the job.
    SourceFailed = "source-failed",
    /// The token did not pass the check of its rule.
    TokenRefused = "token-refused",
    /// The token could not be checked.
    TokenUnverified = "token-unverified",
    /// The token could not be checked in time.
    CheckTimeout = "check-timeout",
    /// MUNGE did not seal in time.
    SealTimeout = "seal-timeout",
    /// MUNGE refused to seal.
    SealFailed = "seal-failed",
    /// The variables do not fit into a record.
    TooLarge = "too-large",
    /// The KVS did not store the record in time.
    StoreTimeout = "store-timeout",
    /// The KVS refused the record.
    StoreFailed = "store-failed",
    /// The prolog of the job could not be started.
    PrologFailed = "prolog-failed",
    /// The rule does not allow the user's request for the token.
    RequestDenied = "request-denied",
    /// The token expires before the job ends.
    TokenShortfall = "token-shortfall",
    /// The tokens of the job were revoked.
    Revoked = "revoked",
    /// No rule matches the job any more.
    RulesChanged = "rules-changed",
    /// The plugin was loaded too late for the job.
    TooLate = "too-late",
    /// A bug in this software.
    Internal = "internal",
    /// The ports of other jobs were not known in time.
    PortsTimeout = "ports-timeout",
    /// The event with the ports of the job could not be posted.
    EventFailed = "event-failed",
    /// The system returned no random bytes.
    RandomFailed = "random-failed",
    /// A Slurm node could not request the token.
    NodeFailed = "node-failed",
    /// The revocations could not be read.
    RevocationsUnknown = "revocations-unknown",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_page_lists_every_code_and_no_other() {
        let page = include_str!("../../../doc/workflow-token-errors.7.md");
        let lines: Vec<&str> = page.lines().collect();
        let terms = lines.windows(2).filter(|pair| pair[1].starts_with(": "));
        let listed: Vec<&str> = terms.map(|pair| pair[0]).collect();
        let codes: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
        let mut missing = codes.iter().filter(|code| !listed.contains(code));
        assert_eq!(missing.next(), None, "a code that the page does not list");
        let mut unknown = listed.iter().filter(|term| !codes.contains(term));
        assert_eq!(unknown.next(), None, "a term of the page that is no code");
    }
}
