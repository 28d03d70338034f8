//! Why a token is not accepted.

/// The reason why a token is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// There is no token.
    Missing,
    /// The headers with the token are malformed, or there are several tokens.
    Malformed,
    /// It is not valid: for its bearer.
    Invalid(String),
    /// It is for another service.
    OtherAudience,
    /// It lacks these scopes.
    Scope(String),
    /// It is for another project.
    OtherProject,
    /// The agent cannot report its validity; the reason, for the operator.
    Unknown(String),
}
