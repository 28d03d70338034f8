// SPDX-License-Identifier: MIT OR Apache-2.0

//! The token service of the cluster, for subcommands that use it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use config::{Config, Discovery};
use source::token_service::TokenService;

use crate::{flux, print};

/// The timeout of one request.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The options that select the service.
#[derive(clap::Args)]
pub struct ServiceArgs {
    /// URL of the token service [default: the issuer of the Slurm cluster or Flux instance of this node]
    #[arg(long, value_name = "URL")]
    issuer: Option<String>,

    /// An HTTP proxy on the way to the service
    #[arg(long, value_name = "URL")]
    proxy: Option<String>,

    /// Certificates in PEM to trust, besides those of the system
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// On Slurm: the configuration of the cluster
    #[arg(long, value_name = "FILE|DIR")]
    config: Option<PathBuf>,
}

/// The reason why a request to the service failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}: name the token service with --issuer")]
    Configuration(String),
    #[error("--{0} {1}")]
    Option(&'static str, &'static str),
    #[error("{0}")]
    Service(String),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// A token service.
pub struct Service {
    /// Its URL.
    pub issuer: String,
    /// The client.
    pub client: TokenService,
    munge: Result<seal::Munge, seal::MungeError>,
}

impl ServiceArgs {
    /// Prepares requests to the service.
    ///
    /// # Errors
    /// [`Error`].
    pub fn connect(&self) -> Result<Service, Error> {
        let config = configuration(self.config.as_deref());
        let munge = match &config {
            Ok(config) => config.munge.client(),
            Err(_) => config::Munge::default().client(),
        };
        let issuer = match (&self.issuer, config) {
            (Some(issuer), _) => issuer.clone(),
            (None, Ok(config)) => match config.issuer {
                Some(issuer) => issuer.name,
                None => {
                    return Err(Error::Configuration(
                        "the configuration contains no table issuer".to_owned(),
                    ));
                }
            },
            (None, Err(e)) => return Err(Error::Configuration(print::hidden(e))),
        };
        config::check_issuer_url(&issuer).map_err(|why| Error::Option("issuer", why))?;
        if let Some(proxy) = &self.proxy {
            config::check_proxy_url(proxy).map_err(|why| Error::Option("proxy", why))?;
        }
        let network = Discovery {
            proxy: self.proxy.clone(),
            ca_file: self.ca_file.clone(),
            refresh: Duration::ZERO,
        };
        let client = TokenService::connect(&issuer, &network, TIMEOUT);
        Ok(Service {
            client: client.map_err(|e| Error::Service(print::hidden(e)))?,
            issuer,
            munge,
        })
    }
}

impl Service {
    /// Returns a MUNGE credential with a payload for the service.
    ///
    /// # Errors
    /// [`Error::Service`].
    pub fn seal(&self, payload: &str) -> Result<String, Error> {
        let failed = |e: &seal::MungeError| Error::Service(e.to_string());
        let munge = self.munge.as_ref().map_err(failed)?;
        munge
            .encode(payload.as_bytes(), self.client.munge_uid())
            .map_err(|e| failed(&e))
    }
}

/// Returns the configuration of the cluster or instance that this node belongs to.
fn configuration(path: Option<&Path>) -> Result<Config, String> {
    let default = Path::new(slurm::CONFIG);
    match path.or_else(|| default.exists().then_some(default)) {
        Some(path) => slurm::Site::read(path).map(|site| site.config),
        None => flux::configuration(),
    }
}
