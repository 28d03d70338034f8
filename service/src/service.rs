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
    keys::Keys,
    metrics::Metrics,
    settings::{Listen, Settings},
    validity::Validities,
};

/// The most requests for tokens that the agent is asked at once: a part of what it answers at once.
const MINTING: usize = 32;

/// The service.
pub struct Service {
    settings: RwLock<Arc<Settings>>,
    /// The certificates of the listeners, in their order.
    certificates: Vec<Option<Arc<CurrentCertificate>>>,
    /// The way to the agent.
    pub agent: AgentClient,
    /// The keys of the issuer.
    pub keys: Arc<Keys>,
    /// The answers of the agent.
    pub validities: Validities,
    /// The counters.
    pub metrics: Metrics,
    /// The audit stream.
    pub audit: Audit,
    /// Turns to ask the agent for a token.
    pub minting: Semaphore,
}

impl Service {
    /// Starts to connect to the agent.
    ///
    /// # Errors
    /// For the operator: the audit stream cannot be opened.
    pub fn new(settings: Settings) -> Result<Arc<Self>, String> {
        let agent = AgentClient::start(settings.agent.clone(), settings.agent_uid);
        let certificates = settings.listen.iter().map(|listen| match listen {
            Listen::Tcp(tcp) => tcp.certificate.clone().map(CurrentCertificate::new),
            Listen::Unix(_) => None,
        });
        Ok(Arc::new(Self {
            certificates: certificates.collect(),
            keys: Keys::start(settings.issuer.url(), agent.clone()),
            validities: Validities::new(agent.clone()),
            metrics: Metrics::new(),
            audit: Audit::open(settings.audit.clone())?,
            minting: Semaphore::new(MINTING),
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
        if addresses(&loaded) != addresses(&former) || fixed(&loaded) != fixed(&former) {
            let what = "a change of issuer, agent, agent-user, address, socket or file needs a restart";
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
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
        Ok(())
    }
}
