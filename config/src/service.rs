//! Settings of the agent itself, and of the token service that asks it: the table `service`.

use std::{path::PathBuf, time::Duration};

use crate::{Login, Person, Principal};

/// Settings of the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agent {
    /// The Unix socket of an agent that is started by others; without it, plugins start an agent of their own.
    pub socket: Option<PathBuf>,
    /// The program of the agent that plugins start; found by itself where not given.
    pub program: Option<PathBuf>,
    /// The directory in which the agent keeps which tokens were revoked.
    pub revocations: Option<PathBuf>,
    /// The token service that the agent answers.
    pub service: Option<Service>,
}

/// The table `service`: the token service, which faces the network and holds no key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The Unix socket at which the agent listens for it.
    pub socket: PathBuf,
    /// The user that it runs as. The agent answers this user, root, and its own user.
    pub user: Principal,
    /// The tokens that users and clients get. The first that a request matches decides.
    pub grants: Vec<Grant>,
    /// How users log in, if they do.
    pub login: Option<Login>,
}

/// A table `service.grant`: who gets tokens by the service, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The accepted kinds of proof. At least one.
    pub evidence: Vec<EvidenceKind>,
    /// The clients that may ask; where there are none, everybody may, unless the client itself is the subject.
    pub clients: Vec<String>,
    /// Users that get tokens. Where there are neither users nor groups, all do.
    pub users: Vec<Principal>,
    /// Groups whose members get tokens.
    pub groups: Vec<Principal>,
    /// The claim `aud`: for whom the tokens are. At least one.
    pub audience: Vec<String>,
    /// The workspaces of the tokens; where there are none, the projects of the user.
    pub workspaces: Vec<String>,
    /// The claim that names the user in identity tokens.
    pub user_claim: String,
    /// The longest life of a token.
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
    /// Returns whether it is for a user.
    pub fn admits(&self, person: &dyn Person) -> bool {
        self.users.is_empty() && self.groups.is_empty()
            || self.users.iter().any(|user| person.is(user))
            || self.groups.iter().any(|group| person.is_in(group))
    }
}
