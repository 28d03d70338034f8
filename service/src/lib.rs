// SPDX-License-Identifier: MIT OR Apache-2.0

//! The token service: reports over HTTP whether tokens are valid, and mints tokens.
//!
//! ```text
//! proxies, services ── HTTP ──► workflow-tokend ── Unix socket ──► workflow-token-agent
//! ```
//!
//! The service faces the network and has no signing key. It verifies tokens with the public keys of their issuer, and
//! asks the agent whether they were revoked and whether their jobs are active. The agent decides what the service may
//! ask.

#![forbid(unsafe_code)]

pub mod agent;
mod audit;
mod authorize;
pub mod bearer;
mod certificates;
mod clients;
mod clock;
mod codes;
pub mod connect;
pub mod cookies;
pub mod demand;
mod device;
mod devices;
mod error;
mod external;
mod failed;
mod families;
mod flyte;
pub mod form;
mod forward;
mod grantee;
mod introspect;
mod job_login;
mod keys;
mod limits;
mod listen;
mod log;
mod login;
mod logout;
mod me;
mod metadata;
mod metrics;
mod mint;
mod operator;
pub mod pages;
mod peer;
mod posted;
mod probes;
pub mod random;
mod recent;
mod redeem;
mod refused;
mod revoke;
mod routes;
mod serve;
mod service;
mod session;
pub mod settings;
pub mod state;
mod status;
mod status_lists;
pub mod strict;
mod token;
mod validity;
mod verdict;
mod wanted;

pub use login::is_page;

use std::{path::Path, sync::Arc};

use tokio::signal::unix::{SignalKind, signal};

use crate::{listen::Listener, service::Service, settings::Settings};

/// Serves until SIGTERM. SIGHUP reloads the settings and certificates.
///
/// # Errors
/// A message for the operator if the service cannot start.
pub async fn run(path: &Path) -> Result<(), String> {
    let settings = Settings::load(path)?;
    let failed = |e| format!("signals cannot be handled: {e}");
    let mut reload = signal(SignalKind::hangup()).map_err(failed)?;
    let mut end = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let listeners = Listener::bind_all(&settings)?;
    let addresses: Vec<String> = listeners.iter().map(Listener::address).collect();
    let service = Service::new(settings).await?;
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let served = tokio::spawn(serve::serve_all(listeners, Arc::clone(&service), stopping));
    // Without this notification, systemd reports that the service did not start.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let issuer = service.settings().issuer.clone();
    eprintln!("workflow-tokend: serves {} at {}", issuer.url(), addresses.join(", "));
    loop {
        tokio::select! {
            _ = reload.recv() => service.reload(path).await,
            _ = end.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    // Sending fails only if the servers have already ended.
    let _ = stop.send(true);
    served
        .await
        .map_err(|_| "a server ended by an internal error".to_owned())
}
