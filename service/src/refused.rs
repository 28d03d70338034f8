// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reasons to reject a token.

/// The reason why a token is rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The request contains no token.
    Missing,
    /// The headers with the token are malformed, or there are several tokens.
    Malformed,
    /// The token is not valid. The text is for its bearer.
    Invalid(String),
    /// The token is for another service.
    OtherAudience,
    /// The token lacks these scopes.
    Scope(String),
    /// The token is for another project.
    OtherProject,
    /// The agent cannot report the validity of the token. The text is for the operator.
    Unknown(String),
}
