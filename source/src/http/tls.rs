//! TLS. A server's certificate is always verified, and there is no way to have it not be.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use zeroize::Zeroizing;

use super::error::{Peer, SourceError};

/// A client certificate, in PEM, and its private key.
pub(crate) struct Identity {
    pub certificate: Vec<u8>,
    pub key: Zeroizing<Vec<u8>>,
}

/// Whose certificates are accepted. They are in PEM.
#[derive(Clone, Copy)]
pub(crate) enum Roots<'a> {
    /// Those of the system.
    System,
    /// These, and no others.
    Only(&'a [u8]),
    /// Those of the system, and these.
    Also(&'a [u8]),
}

/// TLS 1.2 and 1.3. Blocks.
pub(crate) fn client_config(
    roots: Roots<'_>,
    identity: Option<&Identity>,
    peer: &Peer,
) -> Result<ClientConfig, SourceError> {
    let mut store = RootCertStore::empty();
    match roots {
        Roots::System => {}
        Roots::Only(pem) | Roots::Also(pem) => add_pem(&mut store, pem, peer)?,
    }
    match roots {
        Roots::Only(_) => {}
        Roots::System | Roots::Also(_) => {
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if store.is_empty() {
        return Err(peer.wrong_credential(
            "there are no certificates to trust, neither set nor the system's own",
            format_args!("set {}, or install the package ca-certificates", peer.authorities),
        ));
    }
    // The provider is named since a process may have several, and its default may be another's.
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| peer.wrong_credential(format_args!("TLS is not there ({e})"), "build the plugin anew"))?
        .with_root_certificates(store);
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

fn add_pem(store: &mut RootCertStore, pem: &[u8], peer: &Peer) -> Result<(), SourceError> {
    let wrong = |what: &str| {
        peer.wrong_credential(
            format_args!("{} {what}", peer.authorities),
            "give it the certificate in PEM (BEGIN CERTIFICATE) that signs the server's",
        )
    };
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|_| wrong("is not PEM"))?;
        store
            .add(certificate)
            .map_err(|_| wrong("has a certificate that is damaged"))?;
    }
    if store.is_empty() {
        return Err(wrong("has no certificate"));
    }
    Ok(())
}

fn client_certificate(
    identity: &Identity,
    peer: &Peer,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), SourceError> {
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
