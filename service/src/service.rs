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

/// The most requests for tokens that the agent is asked at once: a part of what it answers at once.
const MINTING: usize = 24;

/// The same for logins.
const LOGINS: usize = 32;

static UNUSABLE: Kind = Kind::new();

/// The service.
pub struct Service {
    settings: RwLock<Arc<Settings>>,
    /// The certificates of the listeners, in their order.
    certificates: Vec<Option<Arc<CurrentCertificate>>>,
    /// The way to the agent.
    pub agent: AgentClient,
    /// The keys of the issuer.
    pub keys: Arc<Keys>,
    /// The metadata of another server.
    pub external: External,
    /// The answers of the agent.
    pub validities: Validities,
    /// The status lists.
    pub statuses: StatusLists,
    /// The counters.
    pub metrics: Metrics,
    /// The audit stream.
    pub audit: Audit,
    /// Turns to ask the agent for a token: for strangers, and for all who have proved who they are to the service.
    pub minting: [Semaphore; 2],
    /// Turns to ask the agent about logins: for strangers, and for users who have logged in.
    pub logins: [Semaphore; 2],
    /// How often strangers may do what costs something.
    pub limits: Limits,
    /// What the service remembers, if it does.
    pub state: Option<Arc<State>>,
}

impl Service {
    /// Starts to connect to the agent.
    ///
    /// # Errors
    /// For the operator: the audit stream or the state cannot be opened.
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

    /// Returns the settings in force.
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the certificate of a listener, by its position.
    pub fn certificate(&self, listener: usize) -> Option<&Arc<CurrentCertificate>> {
        self.certificates.get(listener)?.as_ref()
    }

    /// Returns the state, which all that has to do with logins needs.
    ///
    /// # Errors
    /// There is none.
    pub fn state(&self) -> Result<&State, StateError> {
        let none = || StateError::Unavailable("the file has no table state".to_owned());
        self.state.as_deref().ok_or_else(none)
    }

    /// Returns whether the state can be used, or there is none.
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

    /// Loads the settings again, with certificates and secrets. Wrong ones are logged, and the former stay.
    pub async fn reload(self: &Arc<Self>, path: &Path) {
        let (service, path) = (Arc::clone(self), path.to_owned());
        // The file system and the name service may hang.
        let loaded = tokio::task::spawn_blocking(move || service.load_again(&path)).await;
        match loaded {
            Ok(Ok(())) => eprintln!("workflow-tokend: the settings were loaded again"),
            Ok(Err(e)) => eprintln!("workflow-tokend: {e}: the former settings stay"),
            Err(_) => eprintln!("workflow-tokend: an internal error: the former settings stay"),
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
