// SPDX-License-Identifier: MIT OR Apache-2.0

//! The engine of one configuration, and the state that all engines of a process share.

use std::{path::Path, sync::Arc, time::Duration};

use config::{Config, Part};
use protocol::{Configure, Figures};
use source::{Source, login::Provider, verify::TokenVerifier};
use tokio::sync::Semaphore;

use crate::{
    counts::Counts,
    identity,
    limits::{Lane, Limits},
    lookups::Lookups,
    owners::{Owner, Owners, REFRESH, Tell},
};

/// The most concurrent deliveries of one rule whose source blocks a thread for each.
const BLOCKING: usize = 8;

/// The most records that are sealed concurrently: more do not make munged faster.
const SEALING: usize = 8;

/// The number of refreshes between two look-ups of all project members: ten minutes.
const AHEAD: u32 = 20;

/// The capacity that hung operations use up, and the counts of all deliveries. Both outlive a configuration.
pub struct Shared {
    limits: Limits,
    pub(crate) counts: Counts,
    pub(crate) lookups: Arc<Lookups>,
    pub(crate) sealing: Arc<Semaphore>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            counts: Counts::default(),
            lookups: Arc::default(),
            sealing: Arc::new(Semaphore::new(SEALING)),
        }
    }
}

/// A configuration and the objects that it describes. A delivery keeps the engine that it began with.
pub struct Engine {
    pub(crate) config: Config,
    pub(crate) owners: Arc<Owners>,
    pub(crate) sources: Sources,
    /// The verifiers of the tables `trust`, in the order of the configuration.
    pub(crate) verifiers: Vec<Arc<TokenVerifier>>,
    /// The OpenID provider, if users can log in.
    pub(crate) provider: Option<Provider>,
    /// The name of the instance in tokens that name a job.
    pub(crate) instance: String,
    pub(crate) munge: seal::Munge,
    /// The uid that seals records.
    pub(crate) sealer: u32,
    pub(crate) shared: Arc<Shared>,
}

/// Identifies the source of a rule, or the source for rabbit jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SourceId {
    Rule(usize),
    Rabbit,
}

/// The sources, each with the lane of its deliveries.
pub(crate) struct Sources {
    /// By the index of the rule.
    rules: Vec<(Arc<dyn Source>, Arc<Lane>)>,
    /// The source for rabbit jobs, which adds to the variables of the rabbit service.
    rabbit: Option<(Arc<dyn Source>, Arc<Lane>)>,
}

impl Engine {
    /// Returns the engine of a configuration. It reads no file and sends no request before the first delivery. It calls
    /// `tell` with each user that it looks up, on a thread that may block.
    ///
    /// # Errors
    /// For the operator: the key that cannot be used on this machine, and the cause.
    pub fn new(configure: &Configure, supervisor: &Path, shared: &Arc<Shared>, tell: Tell) -> Result<Self, String> {
        let parse = |text: &str| serde_json::from_str(text).map_err(|e| format!("the configuration is not JSON: {e}"));
        let (conf, overrides) = (parse(&configure.conf)?, parse(&configure.overrides)?);
        let config = Config::with_overrides(&conf, &overrides).map_err(|e| e.to_string())?;
        let config = config.only(configure.part);
        let verifiers = config
            .trusts
            .iter()
            .map(|trust| TokenVerifier::new(trust).map(Arc::new));
        let verifiers = verifiers.collect::<Result<Vec<_>, _>>()?;
        let verify = identity::verify(&config, &verifiers)?;
        let login = config.agent.service.as_ref().and_then(|service| service.login.as_ref());
        let provider = login.map(|login| {
            let verifier = Arc::clone(&verifiers[login.trust]);
            Provider::new(login, &config.trusts[login.trust], verifier)
        });
        Ok(Self {
            sources: Sources::new(&config, supervisor, &shared.limits)?,
            munge: config.munge_client().map_err(|e| e.to_string())?,
            owners: Arc::new(Owners::new(&config, verify, Arc::clone(&shared.lookups), tell)),
            verifiers,
            provider,
            instance: config
                .issuer
                .as_ref()
                .and_then(|issuer| issuer.instance.clone())
                .unwrap_or_else(|| configure.instance.clone()),
            sealer: nix::unistd::geteuid().as_raw(),
            shared: Arc::clone(shared),
            config,
        })
    }

    /// Returns the facts about a user that the configuration needs.
    ///
    /// # Errors
    /// For the operator: why the look-up failed.
    pub async fn look_up(&self, uid: u32) -> Result<Arc<Owner>, String> {
        self.owners.look_up(uid).await
    }

    /// Returns the name of the instance in tokens that name a job.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Returns the configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns the counts of the deliveries of all engines.
    pub fn figures(&self) -> Figures {
        self.shared.counts.figures()
    }

    /// Returns the name of a source, for operators.
    pub(crate) fn source_name(&self, which: SourceId) -> String {
        match which {
            SourceId::Rule(rule) => format!("rule {rule} ({})", self.config.rules[rule].source.name()),
            SourceId::Rabbit => "rabbit jobs".to_owned(),
        }
    }

    /// Keeps the facts about project members fresh, until dropped. Returns at once if there are no projects.
    pub async fn keep_fresh(&self) {
        if self.config.projects.is_empty() {
            return;
        }
        for round in 0.. {
            if round % AHEAD == 0 {
                self.owners.look_ahead(&self.config.projects).await;
            }
            self.owners.refresh().await;
            tokio::time::sleep(REFRESH).await;
        }
    }

    /// Returns the timeout of a source.
    pub(crate) fn fetch_timeout(&self, which: SourceId) -> Duration {
        match which {
            SourceId::Rule(rule) => self.config.rules[rule].timeout,
            SourceId::Rabbit => self.config.dws.as_ref().map_or(self.config.timeout, |dws| dws.timeout),
        }
    }
}

impl Sources {
    fn new(config: &Config, supervisor: &Path, limits: &Limits) -> Result<Self, String> {
        let supervisor = [supervisor.to_owned()];
        let lane = |settings: &dyn std::fmt::Debug, source: &Arc<dyn Source>| {
            let most = if source.is_blocking() { BLOCKING } else { usize::MAX };
            // Equal settings are the same source, before and after a reload.
            limits.lane(&format!("{settings:?}"), config.max_parallel.min(most))
        };
        let rules = config.rules.iter().map(|rule| {
            let source: Arc<dyn Source> = source::of_rule(rule, &supervisor)?.into();
            let lane = lane(&(&rule.conditions, &rule.source), &source);
            Ok((source, lane))
        });
        let kubernetes = config
            .dws
            .as_ref()
            .and_then(|dws| Some((dws.kubernetes.as_ref()?, dws.timeout)));
        let rabbit = kubernetes.map(|(settings, timeout)| {
            let source: Arc<dyn Source> =
                source::of_kubernetes(settings, &config.variable, timeout, &supervisor).into();
            let lane = lane(&(Part::Rabbits, settings), &source);
            (source, lane)
        });
        Ok(Self {
            rules: rules.collect::<Result<_, String>>()?,
            rabbit,
        })
    }

    /// Returns a source and its lane; none if nothing is added to the provided variables.
    pub fn get(&self, which: SourceId) -> Option<&(Arc<dyn Source>, Arc<Lane>)> {
        match which {
            SourceId::Rule(rule) => self.rules.get(rule),
            SourceId::Rabbit => self.rabbit.as_ref(),
        }
    }

    /// Returns whether a source needs the name of the job owner.
    pub fn needs_user(&self, which: SourceId) -> bool {
        self.get(which).is_some_and(|(source, _)| source.needs_user())
    }
}
