// SPDX-License-Identifier: MIT OR Apache-2.0

//! The state that all connections share.

use std::{path::PathBuf, sync::Arc};

use delivery::Shared;
use protocol::{Answer, Ask};
use tokio::sync::Notify;

use crate::{
    service::{Answers, Sockets},
    validity::Instances,
};

/// The shared state of the agent.
pub struct Agent {
    /// The program of the agent, which also supervises the commands of rules.
    pub program: PathBuf,
    /// The capacity that engines share.
    pub shared: Arc<Shared>,
    /// The instances whose plugins are connected.
    pub instances: Instances,
    /// The sockets for the token service.
    pub sockets: Sockets,
    /// Notified when a plugin of another release connects: the agent then leaves its socket to a successor.
    pub retire: Notify,
}

impl Answers for Agent {
    async fn answer(self: &Arc<Self>, ask: Ask) -> Answer {
        self.instances.answer(ask).await
    }
}
