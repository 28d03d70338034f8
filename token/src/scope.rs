// SPDX-License-Identifier: MIT OR Apache-2.0

//! The claim `scope`.

use std::fmt;
use std::str::FromStr;

/// The scope of a token, in its claim `scope`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Everything.
    Cluster,
    /// The workspaces that it lists.
    Workspace,
    /// For executors: the workspaces that they are bound to.
    System,
    /// One job, in its workspace.
    Session,
}

impl Scope {
    /// All scopes.
    pub const ALL: [Self; 4] = [Self::Cluster, Self::Workspace, Self::System, Self::Session];

    /// Returns the word in the claim.
    ///
    /// ```
    /// assert_eq!(token::Scope::Session.as_str(), "session");
    /// ```
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Workspace => "workspace",
            Self::System => "system",
            Self::Session => "session",
        }
    }

    /// Returns whether tokens of this scope are user tokens or workflow tokens.
    ///
    /// ```
    /// use token::{Scope, TokenKind};
    ///
    /// assert_eq!(Scope::Session.kind(), TokenKind::Workflow);
    /// assert_eq!(Scope::Workspace.kind(), TokenKind::User);
    /// ```
    pub fn kind(self) -> TokenKind {
        match self {
            Self::Cluster | Self::Workspace | Self::System => TokenKind::User,
            Self::Session => TokenKind::Workflow,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not the name of a [`Scope`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a scope: use cluster, workspace, system or session")]
pub struct UnknownScope;

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(name: &str) -> Result<Self, UnknownScope> {
        Self::ALL
            .into_iter()
            .find(|scope| scope.as_str() == name)
            .ok_or(UnknownScope)
    }
}

/// The two kinds of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TokenKind {
    /// Of a person or service.
    User,
    /// Of one job.
    Workflow,
}

impl fmt::Display for TokenKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "user token",
            Self::Workflow => "workflow token",
        })
    }
}
