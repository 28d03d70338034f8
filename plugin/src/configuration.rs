// SPDX-License-Identifier: MIT OR Apache-2.0

//! The active configuration, and the location of the agent.

use std::{
    cell::{Cell, RefCell},
    path::{Path, PathBuf},
    rc::Rc,
};

use config::{Config, Part};
use ffi::{Args, Flux};
use protocol::Configure;
use serde_json::Value;

use crate::{
    agent::Address,
    jobspec::{Needed, Spec},
};

/// The name of the agent's socket in the rundir of the broker.
const SOCKET: &str = "workflow-token-agent";

/// The name of the agent's program.
const PROGRAM: &str = "workflow-token-agent";

/// The configurations of one plugin.
pub(crate) struct Configuration {
    part: Part,
    /// Keys that override those of the configuration's table.
    overrides: Value,
    /// The possible paths of the agent's program.
    programs: Vec<PathBuf>,
    current: RefCell<Option<Current>>,
    generation: Cell<u32>,
}

/// The active configuration. The agent knows it by its generation.
#[derive(Clone)]
pub struct Current {
    /// The configuration.
    pub config: Rc<Config>,
    /// Its number, which grows with each configuration.
    pub generation: u32,
    /// The members of jobspecs that deliveries need.
    pub(crate) needed: Needed,
}

impl Current {
    /// Returns the facts in the jobspec of a callback that rules and projects need.
    pub fn spec(&self, args: &Args<'_>) -> Spec {
        Spec::of(args, self.needed)
    }
}

impl Configuration {
    /// Returns a state without configuration. `plugin` is the file of the plugin, beside which the agent may be
    /// installed.
    pub fn new(part: Part, overrides: Value, plugin: Option<&Path>) -> Self {
        Self {
            part,
            overrides,
            programs: programs(plugin),
            current: RefCell::default(),
            generation: Cell::default(),
        }
    }

    /// Parses the configuration of Flux.
    ///
    /// # Errors
    /// The invalid key.
    pub fn parse(&self, conf: &Value) -> Result<Config, config::Error> {
        Config::with_overrides(conf, &self.overrides)?.of_flux()
    }

    /// Activates a configuration.
    pub fn replace(&self, config: Config) -> Current {
        self.generation.set(self.generation.get().wrapping_add(1));
        let current = Current {
            needed: Needed::by(&config),
            config: Rc::new(config),
            generation: self.generation.get(),
        };
        let former = self.current.replace(Some(current.clone()));
        drop(former);
        current
    }

    /// Returns the active configuration; none before the first.
    pub fn current(&self) -> Option<Current> {
        self.current.borrow().clone()
    }

    /// Removes the active configuration.
    pub fn clear(&self) {
        let former = self.current.borrow_mut().take();
        drop(former);
    }

    /// Returns the request that sends a generation to the agent. `table` is the JSON object with the table.
    pub fn request(&self, generation: u32, table: String, flux: Flux<'_>) -> Configure {
        Configure {
            generation,
            conf: table,
            overrides: self.overrides.to_string(),
            path: flux
                .attribute(c"config.path")
                .and_then(|path| std::path::absolute(path).ok()),
            part: self.part,
            instance: instance(flux),
        }
    }

    /// Returns the location of the agent of a configuration.
    ///
    /// # Errors
    /// The configuration names no socket, and the broker has no rundir.
    pub fn address(&self, config: &Config, flux: Flux<'_>) -> Result<Address, String> {
        if let Some(socket) = &config.agent.socket {
            return Ok(Address {
                socket: socket.clone(),
                programs: None,
            });
        }
        let rundir = flux
            .attribute(c"rundir")
            .ok_or("the broker has no rundir for the agent: set the key agent")?;
        let programs = config.agent.program.iter().chain(&self.programs).cloned();
        Ok(Address {
            socket: Path::new(&rundir).join(SOCKET),
            programs: Some(programs.collect()),
        })
    }
}

/// Returns the possible paths of the agent's program: in the plugin's own tree, and where Flux searches for programs.
fn programs(plugin: Option<&Path>) -> Vec<PathBuf> {
    let mut places = Vec::new();
    // PREFIX/lib/flux/job-manager/plugins/workflow-token.so, or one level deeper, as in PREFIX/lib/x86_64-linux-gnu.
    let is_installed = |path: &&Path| {
        path.parent()
            .is_some_and(|dir| dir.ends_with("flux/job-manager/plugins"))
    };
    if let Some(path) = plugin.filter(is_installed) {
        let prefixes = path.ancestors().skip(5).take(2);
        places.extend(prefixes.map(|prefix| prefix.join("libexec").join(PROGRAM)));
    }
    places.push(Path::new("/usr/libexec").join(PROGRAM));
    places
}

/// Returns the name of this instance in tokens: the host of its first broker and, if it runs in another instance, the
/// job ids that lead to it. Both survive a restart, unlike `broker.uuid`.
fn instance(flux: Flux<'_>) -> String {
    let host = flux.attribute(c"hostname").unwrap_or_default();
    let path = flux.attribute(c"jobid-path").unwrap_or_default();
    format!("{host}{}", path.trim_end_matches('/'))
}
