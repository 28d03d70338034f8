//! TLS. A server's certificate is always verified, and there is no way to have it not be.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use zeroize::Zeroizing;

use super::trouble::{Peer, Trouble};

/// A client certificate, in PEM, and its private key.
pub(crate) struct Identity {
    pub certificate: Vec<u8>,
    pub key: Zeroizing<Vec<u8>>,
}

/// TLS 1.2 and 1.3, with the certificates to trust in PEM, or those of the system. Blocks.
pub(crate) fn client_config(
    authorities: Option<&[u8]>,
    identity: Option<&Identity>,
    peer: &Peer,
) -> Result<ClientConfig, Trouble> {
    let roots = match authorities {
        Some(pem) => of_pem(pem, peer)?,
        None => of_system(peer)?,
    };
    // The provider is named since a process may have several, and its default may be another's.
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| peer.wrong_credential(format_args!("TLS is not there ({e})"), "build the plugin anew"))?
        .with_root_certificates(roots);
    let Some(identity) = identity else {
        return Ok(builder.with_no_client_auth());
    };
    let (chain, key) = client_certificate(identity, peer)?;
    builder.with_client_auth_cert(chain, key).map_err(|e| {
        peer.wrong_credential(
            format_args!("client-certificate and client-key cannot be used ({e})"),
            "see that the key is the one of the certificate",
        )
    })
}

fn of_pem(pem: &[u8], peer: &Peer) -> Result<RootCertStore, Trouble> {
    let wrong = |what: &str| {
        peer.wrong_credential(
            format_args!("{} {what}", peer.authorities),
            "give it the certificate in PEM (BEGIN CERTIFICATE) that signs the server's",
        )
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|_| wrong("is not PEM"))?;
        roots
            .add(certificate)
            .map_err(|_| wrong("has a certificate that is damaged"))?;
    }
    if roots.is_empty() {
        return Err(wrong("has no certificate"));
    }
    Ok(roots)
}

fn of_system(peer: &Peer) -> Result<RootCertStore, Trouble> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(peer.wrong_credential(
            "there are no certificates to trust, neither set nor the system's own",
            format_args!("set {}, or install the package ca-certificates", peer.authorities),
        ));
    }
    Ok(roots)
}

fn client_certificate(
    identity: &Identity,
    peer: &Peer,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Trouble> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&identity.certificate)
        .collect::<Result<_, _>>()
        .unwrap_or_default();
    if chain.is_empty() {
        return Err(peer.wrong_credential(
            "client-certificate has no certificate in PEM",
            "write it again (BEGIN CERTIFICATE)",
        ));
    }
    let key = PrivateKeyDer::from_pem_slice(&identity.key).map_err(|_| {
        peer.wrong_credential(
            "client-key has no private key in PEM",
            "write it again (BEGIN PRIVATE KEY), without a passphrase",
        )
    })?;
    Ok((chain, key))
}
