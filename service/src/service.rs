// SPDX-License-Identifier: MIT OR Apache-2.0

//! The state that all requests share.

use std::{
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use tokio::sync::Semaphore;

use crate::{
    agent::AgentClient,
    audit::Audit,
    certificates::CurrentCertificate,
    external::External,
    keys::Keys,
    limits::Limits,
    log::Kind,
    metrics::Metrics,
    settings::{Listen, Settings, StateSettings},
    state::{State, StateError},
    status_lists::StatusLists,
    validity::Validities,
};

/// The maximum number of concurrent requests for tokens to the agent: a part of the agent's own limit.
const MINTING: usize = 24;

/// The maximum number of concurrent requests about logins to the agent.
const LOGINS: usize = 32;

static UNUSABLE: Kind = Kind::new();

/// The service.
pub struct Service {
    settings: RwLock<Arc<Settings>>,
    /// The certificates of the listeners, in the order of the settings.
    certificates: Vec<Option<Arc<CurrentCertificate>>>,
    /// The client of the agent.
    pub agent: AgentClient,
    /// The keys of the issuer.
    pub keys: Arc<Keys>,
    /// The metadata of another server.
    pub external: External,
    /// The cached validity of tokens.
    pub validities: Validities,
    /// The Status Lists.
    pub statuses: StatusLists,
    /// The counters.
    pub metrics: Metrics,
    /// The audit stream.
    pub audit: Audit,
    /// Turns to request a token from the agent: one semaphore for strangers, one for authenticated callers.
    pub minting: [Semaphore; 2],
    /// Turns to ask the agent about logins: one semaphore for strangers, one for users who are logged in.
    pub logins: [Semaphore; 2],
    /// The rate limits on expensive requests of strangers.
    pub limits: Limits,
    /// The state, if one is configured.
    pub state: Option<Arc<State>>,
}

impl Service {
    /// Starts the service, and begins to connect to the agent.
    ///
    /// # Errors
    /// A message for the operator if the audit stream or the state cannot be opened.
    pub async fn new(settings: Settings) -> Result<Arc<Self>, String> {
        let state = match &settings.state {
            Some(settings) => Some(Arc::new(State::open(settings).await?)),
            None => None,
        };
        let agent = AgentClient::start(settings.agent.clone(), settings.agent_uid);
        let certificates = settings.listen.iter().map(|listen| match listen {
            Listen::Tcp(tcp) => tcp.certificate.clone().map(CurrentCertificate::new),
            Listen::Unix(_) => None,
        });
        Ok(Arc::new(Self {
            certificates: certificates.collect(),
            keys: Keys::start(settings.issuer.url(), agent.clone()),
            external: External::start(settings.external.clone()),
            validities: Validities::new(agent.clone()),
            statuses: StatusLists::new(settings.issuer.url(), agent.clone()),
            metrics: Metrics::new(),
            audit: Audit::open(settings.audit.clone())?,
            minting: [Semaphore::new(MINTING), Semaphore::new(MINTING)],
            logins: [Semaphore::new(LOGINS), Semaphore::new(LOGINS)],
            limits: Limits::new(),
            state,
            agent,
            settings: RwLock::new(Arc::new(settings)),
        }))
    }

    /// Returns the current settings.
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the certificate of a listener, by its position.
    pub fn certificate(&self, listener: usize) -> Option<&Arc<CurrentCertificate>> {
        self.certificates.get(listener)?.as_ref()
    }

    /// Returns the state, which all logins need.
    ///
    /// # Errors
    /// [`StateError::Unavailable`] if no state is configured.
    pub fn state(&self) -> Result<&State, StateError> {
        let none = || StateError::Unavailable("the configuration contains no table state".to_owned());
        self.state.as_deref().ok_or_else(none)
    }

    /// Returns true if the state can be used, or none is configured.
    pub async fn has_state(&self) -> bool {
        let Some(state) = &self.state else {
            return true;
        };
        let checked = state.check().await;
        if let Err(e) = &checked {
            UNUSABLE.log(e);
        }
        checked.is_ok()
    }

    /// Reloads the settings, with certificates and secrets. If they are not valid, logs the error and keeps the current
    /// ones.
    pub async fn reload(self: &Arc<Self>, path: &Path) {
        let (service, path) = (Arc::clone(self), path.to_owned());
        // The file system and the name service may hang.
        let loaded = tokio::task::spawn_blocking(move || service.load_again(&path)).await;
        match loaded {
            Ok(Ok(())) => eprintln!("workflow-tokend: the settings were reloaded"),
            Ok(Err(e)) => eprintln!("workflow-tokend: {e}: the former settings stay in force"),
            Err(_) => eprintln!("workflow-tokend: an internal error: the former settings stay in force"),
        }
    }

    fn load_again(&self, path: &Path) -> Result<(), String> {
        let loaded = Settings::load(path)?;
        let former = self.settings();
        let addresses = |settings: &Settings| {
            let listen = settings.listen.iter().map(|listen| match listen {
                Listen::Tcp(tcp) => format!("{} {}", tcp.address, tcp.certificate.is_some()),
                Listen::Unix(path) => path.display().to_string(),
            });
            (listen.collect::<Vec<_>>(), settings.metrics)
        };
        let fixed = |settings: &Settings| {
            (
                settings.issuer.clone(),
                settings.agent.clone(),
                settings.agent_uid,
                settings.audit.clone(),
            )
        };
        let is_same_database = match (&loaded.state, &former.state) {
            (Some(loaded), Some(former)) => loaded.has_same_database(former),
            (loaded, former) => loaded.is_none() && former.is_none(),
        };
        if addresses(&loaded) != addresses(&former) || fixed(&loaded) != fixed(&former) || !is_same_database {
            let what =
                "a change of issuer, agent, agent-user, address, socket, file, or of the database, needs a restart";
            return Err(format!("{}: {what}", path.display()));
        }
        self.audit.reopen()?;
        for (listen, current) in loaded.listen.iter().zip(&self.certificates) {
            if let (Listen::Tcp(tcp), Some(current)) = (listen, current)
                && let Some(certificate) = &tcp.certificate
            {
                current.replace(Arc::clone(certificate));
            }
        }
        if let (Some(state), Some(StateSettings { keyring, .. })) = (&self.state, &loaded.state) {
            state.replace_keys(keyring.clone());
        }
        self.external.replace(loaded.external.clone());
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
        Ok(())
    }
}
