//! Settings of the agent itself, and of the token service that asks it: the table `service`.

use std::path::PathBuf;

use crate::Principal;

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
}
