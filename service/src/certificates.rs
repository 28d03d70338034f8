//! Certificates of the service, which SIGHUP replaces while connections are open.

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

/// Reads a certificate with its chain, and its private key. They are in PEM.
///
/// # Errors
/// The key of the table, and for the operator: a file cannot be read, or the two do not belong together.
pub fn load(certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>, (&'static str, String)> {
    let at = |path: &Path, e: &dyn std::fmt::Display| {
        let name = if path == key { "key" } else { "certificate" };
        (name, format!("{}: {e}", path.display()))
    };
    let pem = secure_path::read_public(certificate, MAX_FILE).map_err(|e| at(certificate, &e))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|_| at(certificate, &"it is not PEM"))?;
    if chain.is_empty() {
        return Err(at(certificate, &"it has no certificate (BEGIN CERTIFICATE)"));
    }
    let pem = secure_path::read_private(key, MAX_FILE).map_err(|e| at(key, &e))?;
    let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| at(key, &"it has no private key in PEM"))?;
    let certified = CertifiedKey::from_der(chain, private, &aws_lc_rs::default_provider());
    certified
        .map(Arc::new)
        .map_err(|e| at(key, &format_args!("cannot be used with {}: {e}", certificate.display())))
}

/// The certificate in force of one listener.
#[derive(Debug)]
pub struct CurrentCertificate(RwLock<Arc<CertifiedKey>>);

impl CurrentCertificate {
    /// Returns a certificate that can be replaced.
    pub fn new(certificate: Arc<CertifiedKey>) -> Arc<Self> {
        Arc::new(Self(RwLock::new(certificate)))
    }

    /// Replaces it for new connections.
    pub fn replace(&self, certificate: Arc<CertifiedKey>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = certificate;
    }

    /// Returns what accepts connections with it: TLS 1.2 and 1.3.
    ///
    /// # Errors
    /// The crypto library has none of them.
    pub fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, String> {
        // The provider is named since a process may have several, and its default may be another's.
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
