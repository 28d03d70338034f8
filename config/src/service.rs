// SPDX-License-Identifier: MIT OR Apache-2.0

//! Settings of the agent itself and of its client, the token service: the table `service`.

use std::{path::PathBuf, time::Duration};

use crate::{Login, Person, Principal};

/// Settings of the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agent {
    /// The Unix socket of an agent that plugins do not start; if not set, they start their own.
    pub socket: Option<PathBuf>,
    /// The program of the agent that plugins start; if not set, they search for it.
    pub program: Option<PathBuf>,
    /// The directory in which the agent records revoked tokens.
    pub revocations: Option<PathBuf>,
    /// The token service that the agent serves.
    pub service: Option<Service>,
}

/// The table `service`: the token service, which faces the network and holds no signing key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The Unix socket on which the agent listens for the token service.
    pub socket: PathBuf,
    /// The user that the token service runs as. The agent answers this user, root, and its own user.
    pub user: Principal,
    /// The grants for users and clients. The first that a request matches applies.
    pub grants: Vec<Grant>,
    /// The login of users, if enabled.
    pub login: Option<Login>,
}

/// A table `service.grant`: the users or clients that get tokens from the service, and the contents of these tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The accepted kinds of proof. At least one.
    pub evidence: Vec<EvidenceKind>,
    /// The clients that may request tokens. If empty, anyone may, unless the client itself is the subject.
    pub clients: Vec<String>,
    /// Users that get tokens. If users and groups are empty, all users do.
    pub users: Vec<Principal>,
    /// Groups whose members get tokens.
    pub groups: Vec<Principal>,
    /// The claim `aud`: the recipients of the tokens. At least one.
    pub audience: Vec<String>,
    /// The workspaces of the tokens. If empty, the projects of the user.
    pub workspaces: Vec<String>,
    /// The claim that names the user in identity tokens.
    pub user_claim: String,
    /// The longest lifetime of a token.
    pub max_lifetime: Duration,
}

/// A kind of proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvidenceKind {
    /// A MUNGE credential of the user.
    Munge,
    /// An identity token of the issuer in [`Config::trusts`](crate::Config::trusts) of this index.
    Trust(usize),
    /// The client itself is the subject.
    Client,
}

impl Grant {
    /// Returns whether the grant applies to a user.
    pub fn admits(&self, person: &dyn Person) -> bool {
        self.users.is_empty() && self.groups.is_empty()
            || self.users.iter().any(|user| person.is(user))
            || self.groups.iter().any(|group| person.is_in(group))
    }
}
