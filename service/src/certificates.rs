// SPDX-License-Identifier: MIT OR Apache-2.0

//! Certificates of the service. SIGHUP replaces them while connections are open.

use std::{
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio_rustls::TlsAcceptor;

/// The longest file, in bytes.
const MAX_FILE: usize = 1 << 20;

/// Reads a certificate with its chain, and its private key, all in PEM.
///
/// # Errors
/// The key of the table, and a message for the operator, if a file cannot be read or the certificate and the key do not
/// match.
pub fn load(certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>, (&'static str, String)> {
    let at = |path: &Path, e: &dyn std::fmt::Display| {
        let name = if path == key { "key" } else { "certificate" };
        (name, format!("{}: {e}", path.display()))
    };
    let pem = secure_path::read_public(certificate, MAX_FILE).map_err(|e| at(certificate, &e))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|_| at(certificate, &"it is not PEM"))?;
    if chain.is_empty() {
        return Err(at(certificate, &"it contains no certificate (BEGIN CERTIFICATE)"));
    }
    let pem = secure_path::read_private(key, MAX_FILE).map_err(|e| at(key, &e))?;
    let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| at(key, &"it contains no private key in PEM"))?;
    let certified = CertifiedKey::from_der(chain, private, &aws_lc_rs::default_provider());
    certified
        .map(Arc::new)
        .map_err(|e| at(key, &format_args!("cannot be used with {}: {e}", certificate.display())))
}

/// The current certificate of one listener.
#[derive(Debug)]
pub struct CurrentCertificate(RwLock<Arc<CertifiedKey>>);

impl CurrentCertificate {
    /// Returns a replaceable certificate.
    pub fn new(certificate: Arc<CertifiedKey>) -> Arc<Self> {
        Arc::new(Self(RwLock::new(certificate)))
    }

    /// Replaces the certificate for new connections.
    pub fn replace(&self, certificate: Arc<CertifiedKey>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = certificate;
    }

    /// Returns an acceptor for TLS 1.2 and 1.3 with this certificate.
    ///
    /// # Errors
    /// The crypto library supports neither version.
    pub fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, String> {
        // Name the provider: a process may contain several, and the default may be another one.
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| format!("TLS cannot be used: {e}"))?
            .with_no_client_auth();
        let mut config = config.with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}
