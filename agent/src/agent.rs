//! The state that all connections share.

use std::{path::PathBuf, sync::Arc};

use delivery::Shared;
use tokio::sync::Notify;

use crate::validity::Instances;

/// The agent, as its connections see it.
pub struct Agent {
    /// The program of the agent, which also supervises the commands of rules.
    pub program: PathBuf,
    /// The capacity that engines share.
    pub shared: Arc<Shared>,
    /// The instances whose plugins are connected.
    pub instances: Instances,
    /// Notified when a plugin of another release connects, which needs an agent of its own.
    pub retire: Notify,
}
