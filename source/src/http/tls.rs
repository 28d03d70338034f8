// SPDX-License-Identifier: MIT OR Apache-2.0

//! TLS. A server's certificate is always verified; verification cannot be disabled.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use zeroize::Zeroizing;

use super::error::{Peer, SourceError};

/// A client certificate and its private key, in PEM.
pub(crate) struct Identity {
    pub certificate: Vec<u8>,
    pub key: Zeroizing<Vec<u8>>,
}

/// The trusted root certificates.
#[derive(Clone, Copy)]
pub(crate) enum Roots<'a> {
    /// Those of the system.
    System,
    /// Only these, in PEM.
    Only(&'a [u8]),
    /// Those of the system and these, in PEM.
    Also(&'a [u8]),
}

/// Returns the configuration of a client for TLS 1.2 and 1.3. Blocks.
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
            "no trusted certificates are configured, and the system has none",
            format_args!("set {}, or install the package ca-certificates", peer.authorities),
        ));
    }
    // The provider is explicit, because another part of the process may have set another default.
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| peer.wrong_credential(format_args!("TLS is not available ({e})"), "rebuild the plugin"))?
        .with_root_certificates(store);
    let Some(identity) = identity else {
        return Ok(builder.with_no_client_auth());
    };
    let (chain, key) = client_certificate(identity, peer)?;
    builder.with_client_auth_cert(chain, key).map_err(|e| {
        peer.wrong_credential(
            format_args!("client-certificate and client-key cannot be used ({e})"),
            "check that the key belongs to the certificate",
        )
    })
}

fn add_pem(store: &mut RootCertStore, pem: &[u8], peer: &Peer) -> Result<(), SourceError> {
    let wrong = |what: &str| {
        peer.wrong_credential(
            format_args!("{} {what}", peer.authorities),
            "set it to the certificate in PEM (BEGIN CERTIFICATE) that signs the server's",
        )
    };
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|_| wrong("is not PEM"))?;
        store
            .add(certificate)
            .map_err(|_| wrong("contains a damaged certificate"))?;
    }
    if store.is_empty() {
        return Err(wrong("contains no certificate"));
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
            "client-certificate contains no certificate in PEM",
            "write it again (BEGIN CERTIFICATE)",
        ));
    }
    let key = PrivateKeyDer::from_pem_slice(&identity.key).map_err(|_| {
        peer.wrong_credential(
            "client-key contains no private key in PEM",
            "write it again (BEGIN PRIVATE KEY), without a passphrase",
        )
    })?;
    Ok((chain, key))
}
