// SPDX-License-Identifier: MIT OR Apache-2.0

//! The table `external`: the server whose metadata the service publishes instead of its own.

use std::{path::PathBuf, sync::Arc, time::Duration};

use http::Uri;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde::Deserialize;

use super::paths::absolute;

/// The longest certificate file, in bytes.
const MAX_CA_FILE: usize = 4 << 20;

/// The default and the shortest interval between refreshes of the metadata.
const REFRESH: (Duration, Duration) = (Duration::from_secs(3600), Duration::from_secs(1));

/// The value of `token-endpoint` that selects the endpoint of this service.
const OURS: &str = "ours";

/// A server whose metadata the service publishes instead of its own.
#[derive(Debug)]
pub struct External {
    /// Its issuer identifier (RFC 8414 section 2).
    pub issuer: String,
    /// The possible URLs of its metadata, in order of preference. At least one.
    pub places: Vec<String>,
    /// The HTTP proxy.
    pub proxy: Option<Uri>,
    /// The trusted certificates: those of the system, and of `ca-file`.
    pub tls: ClientConfig,
    /// The token endpoint that replaces that of the server.
    pub token_endpoint: Option<TokenEndpoint>,
    /// The interval between refreshes of the metadata.
    pub refresh: Duration,
}

/// A token endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenEndpoint {
    /// The endpoint of this service.
    Ours,
    /// Another endpoint.
    Url(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ExternalTable {
    issuer: String,
    metadata: Option<String>,
    proxy: Option<String>,
    ca_file: Option<PathBuf>,
    token_endpoint: Option<String>,
    refresh: Option<String>,
}

impl ExternalTable {
    /// Loads the certificate file, and the certificates of the system.
    pub fn external(self) -> Result<Arc<External>, String> {
        let at = |key: &str, e: &dyn std::fmt::Display| format!("external.{key}: {e}");
        config::check_issuer_url(&self.issuer).map_err(|e| at("issuer", &e))?;
        let places = match self.metadata {
            Some(url) => {
                config::check_url(&url).map_err(|e| at("metadata", &e))?;
                vec![url]
            }
            None => places(&self.issuer),
        };
        let token_endpoint = match self.token_endpoint {
            Some(ours) if ours == OURS => Some(TokenEndpoint::Ours),
            Some(url) => {
                config::check_url(&url).map_err(|e| at("token-endpoint", &format_args!("{e}, or \"ours\"")))?;
                Some(TokenEndpoint::Url(url))
            }
            None => None,
        };
        let proxy = self.proxy.map(|url| {
            config::check_proxy_url(&url).map_err(|e| at("proxy", &e))?;
            url.parse::<Uri>().map_err(|e| at("proxy", &e))
        });
        let refresh = self.refresh.map_or(Ok(REFRESH.0), |text| config::parse_duration(&text));
        let refresh = refresh.map_err(|e| at("refresh", &e))?;
        if refresh < REFRESH.1 {
            return Err(at("refresh", &"must be at least 1s"));
        }
        Ok(Arc::new(External {
            issuer: self.issuer,
            places,
            proxy: proxy.transpose()?,
            tls: tls(self.ca_file).map_err(|e| at("ca-file", &e))?,
            token_endpoint,
            refresh,
        }))
    }
}

/// Returns the possible URLs of metadata. RFC 8414 section 3.1 puts the well-known part before the path of the issuer,
/// OpenID Connect Discovery section 4 behind it.
fn places(issuer: &str) -> Vec<String> {
    let issuer = issuer.strip_suffix('/').unwrap_or(issuer);
    let after_scheme = issuer.find("://").map_or(0, |at| at + 3);
    let path = issuer[after_scheme..]
        .find('/')
        .map_or(issuer.len(), |at| after_scheme + at);
    let (host, path) = issuer.split_at(path);
    vec![
        format!("{host}/.well-known/oauth-authorization-server{path}"),
        format!("{issuer}/.well-known/openid-configuration"),
    ]
}

fn tls(ca_file: Option<PathBuf>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca_file {
        let path = absolute(path)?;
        let at = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let pem = secure_path::read_public(&path, MAX_CA_FILE).map_err(|e| at(&e))?;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|_| at(&"it is not PEM"))?;
            roots
                .add(certificate)
                .map_err(|e| at(&format_args!("a certificate cannot be used: {e}")))?;
        }
        if roots.is_empty() {
            return Err(at(&"it contains no certificate (BEGIN CERTIFICATE)"));
        }
    }
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    // Name the provider: a process may contain several, and the default may be another one.
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("TLS cannot be used: {e}"))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    #[test]
    fn metadata_are_looked_for_where_they_may_be() {
        let at = |issuer| places(issuer);
        for issuer in ["https://a.example.org:8443", "https://a.example.org:8443/"] {
            assert_eq!(
                at(issuer),
                [
                    "https://a.example.org:8443/.well-known/oauth-authorization-server",
                    "https://a.example.org:8443/.well-known/openid-configuration",
                ]
            );
        }
        assert_eq!(
            at("https://a.example.org/realms/hpc"),
            [
                "https://a.example.org/.well-known/oauth-authorization-server/realms/hpc",
                "https://a.example.org/realms/hpc/.well-known/openid-configuration",
            ]
        );
    }

    #[test]
    fn mistakes_name_the_key() {
        let start = "issuer = \"https://a\"\n[[listen]]\naddress = \"127.0.0.1:0\"\n[external]\n";
        let parse = |rest: &str| Settings::parse(&format!("{start}{rest}")).map(|settings| settings.external);
        for (rest, says) in [
            ("", "external: missing field `issuer`"),
            (
                "issuer = \"http://login.example.org\"",
                "external.issuer: must be https",
            ),
            ("issuer = \"https://i?x\"", "external.issuer: must not contain a query"),
            ("issuer = \"https://i\"\nmetadata = \"/x\"", "external.metadata: "),
            (
                "issuer = \"https://i\"\nproxy = \"https://p\"",
                "external.proxy: must be a host and a port",
            ),
            ("issuer = \"https://i\"\ntoken-endpoint = \"yours\"", "or \"ours\""),
            (
                "issuer = \"https://i\"\nrefresh = \"10ms\"",
                "external.refresh: must be at least 1s",
            ),
            (
                "issuer = \"https://i\"\nrefresh = \"x\"",
                "external.refresh: `x` is not a duration",
            ),
            (
                "issuer = \"https://i\"\nca-file = \"x\"",
                "external.ca-file: must be an absolute path",
            ),
            (
                "issuer = \"https://i\"\nca-file = \"/no/such\"",
                "external.ca-file: /no/such: ",
            ),
            ("issuer = \"https://i\"\ncolour = 1", "colour"),
        ] {
            let error = parse(rest).unwrap_err();
            assert!(error.contains(says) && !error.contains('\n'), "{rest}: {error}");
        }
        let external = parse("issuer = \"https://i\"").unwrap().unwrap();
        assert_eq!(
            (external.refresh, external.token_endpoint.as_ref()),
            (Duration::from_secs(3600), None)
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        for (content, says) in [("", "no certificate"), ("-----BEGIN CERTIFICATE-----\n", "")] {
            std::fs::write(&path, content).unwrap();
            let error = parse(&format!("issuer = \"https://i\"\nca-file = \"{}\"", path.display())).unwrap_err();
            assert!(
                error.starts_with("external.ca-file: ") && error.contains(says),
                "{error}"
            );
        }
    }
}
