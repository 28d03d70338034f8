use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use config::{Config, Discovery};
use seal::ExposeSecret;
use source::token_service::{Wanted, token_of_user};

use crate::{flux, print};

/// Print a token of your own, for services that accept it
///
/// MUNGE proves who you are to the token service of the cluster, which gives a token for your projects. Programs that take a command for
/// their token can run this.
#[derive(clap::Args)]
pub struct Args {
    /// The URL of the token service; by default, that of the instance or cluster that this node belongs to
    #[arg(long, value_name = "URL")]
    issuer: Option<String>,

    /// An audience of the token; by default, all services that the site allows
    #[arg(long, value_name = "NAME")]
    audience: Vec<String>,

    /// The projects that the token is for; by default, all of yours
    #[arg(long = "project", value_name = "NAME")]
    projects: Vec<String>,

    /// The lifetime; by default, and at most, what the site allows
    #[arg(long, value_name = "DURATION", value_parser = config::parse_duration)]
    lifetime: Option<Duration>,

    /// An HTTP proxy on the way to the service
    #[arg(long, value_name = "URL")]
    proxy: Option<String>,

    /// Certificates to trust beside those of the system, in PEM
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// On Slurm: the configuration of the cluster
    #[arg(long, value_name = "FILE|DIR")]
    config: Option<PathBuf>,
}

/// The reason why there is no token.
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

/// How long the service may take for one answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Prints a token.
///
/// # Errors
/// [`Error`].
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let config = configuration(args.config.as_deref());
    let munge = match &config {
        Ok(config) => config.munge.client(),
        Err(_) => config::Munge::default().client(),
    };
    let issuer = match (&args.issuer, config) {
        (Some(issuer), _) => issuer.clone(),
        (None, Ok(config)) => match config.issuer {
            Some(issuer) => issuer.name,
            None => return Err(Error::Configuration("the configuration has no table issuer".to_owned())),
        },
        (None, Err(e)) => return Err(Error::Configuration(print::hidden(e))),
    };
    config::check_issuer_url(&issuer).map_err(|why| Error::Option("issuer", why))?;
    if let Some(proxy) = &args.proxy {
        config::check_proxy_url(proxy).map_err(|why| Error::Option("proxy", why))?;
    }
    let network = Discovery {
        proxy: args.proxy.clone(),
        ca_file: args.ca_file.clone(),
        refresh: Duration::ZERO,
    };
    let wanted = Wanted {
        audience: args.audience.clone(),
        projects: args.projects.clone(),
        lifetime: args.lifetime,
    };
    let seal = |uid| {
        let munge = munge.map_err(|e| e.to_string())?;
        let payload = protocol::munge_payload(&issuer);
        munge.encode(payload.as_bytes(), uid).map_err(|e| e.to_string())
    };
    let token = token_of_user(&issuer, &network, &wanted, seal, TIMEOUT);
    let token = token.map_err(|e| Error::Service(print::hidden(e)))?;
    print::out(token.expose_secret())?;
    print::out("\n")?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the configuration of the cluster or instance that this node belongs to.
fn configuration(path: Option<&Path>) -> Result<Config, String> {
    let default = Path::new(slurm::CONFIG);
    match path.or_else(|| default.exists().then_some(default)) {
        Some(path) => slurm::Site::read(path).map(|site| site.config),
        None => flux::configuration(),
    }
}
