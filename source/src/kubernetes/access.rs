// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reads the address of an API server and the credential for it, from a kubeconfig file or from the files of a pod.
//!
//! [`kube`] parses the kubeconfig file, whose format is that of `kubectl` ("Organizing Cluster Access Using kubeconfig
//! Files"). This module reads the files that it names: it checks their modes, and creates a new client when one of them
//! changes. Unsupported features are rejected rather than ignored: proxies, impersonation, passwords, and the former
//! `auth-provider`, which client-go has replaced with `exec`.

use std::{fmt, fs, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::Uri;
use kube::config::{AuthInfo, Cluster, Kubeconfig, KubeconfigError};
use seal::{ExposeSecret, Secret};
use zeroize::Zeroizing;

use super::{
    bearer::bearer,
    error::{CREDENTIAL, SourceError, credential, quote},
    exec::Exec,
};
use crate::{
    http::tls::Identity,
    secure_file::{self, Refusal},
    stamp::Stamp,
};

/// The longest file that is read, in bytes.
const MAX_FILE: usize = 1 << 20;

/// The directory with the credential of a pod's service account ("Accessing the Kubernetes API from a Pod").
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The address of an API server and the current credential for it.
pub(super) struct Access {
    /// `https`, with a host.
    pub server: Uri,
    /// The name that the server's certificate must be for, if not the host.
    pub server_name: Option<String>,
    /// The trusted certificates, in PEM; those of the system if not set.
    pub authorities: Option<Vec<u8>>,
    /// The client certificate.
    pub identity: Option<Identity>,
    /// The bearer token.
    pub token: Option<Secret>,
    /// The command that returns a client certificate or a bearer token.
    pub exec: Option<Exec>,
    /// The files that were read. If one of them changes, all are read again.
    pub files: Vec<Stamp>,
}

/// Reads the kubeconfig file and all files that it names. Blocks.
pub(super) fn load(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Access, SourceError> {
    match kubeconfig {
        Some(path) => of_file(path, context),
        None => of_pod(|name| std::env::var(name).ok(), Path::new(SERVICE_ACCOUNT)),
    }
}

fn of_pod(variable: impl Fn(&str) -> Option<String>, dir: &Path) -> Result<Access, SourceError> {
    let given = |name: &str| variable(name).filter(|value| !value.is_empty());
    let (Some(host), Some(port)) = (given("KUBERNETES_SERVICE_HOST"), given("KUBERNETES_SERVICE_PORT")) else {
        return Err(credential(
            "no kubeconfig file is configured, and this is not a pod (KUBERNETES_SERVICE_HOST is not set)",
            "set the key kubeconfig to the absolute path of a kubeconfig file",
        ));
    };
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let cluster = Cluster {
        server: Some(format!("https://{host}:{port}")),
        certificate_authority: Some("ca.crt".to_owned()),
        ..Cluster::default()
    };
    let user = AuthInfo {
        token_file: Some("token".to_owned()),
        ..AuthInfo::default()
    };
    let reader = Reader {
        at: "the pod's own credential".to_owned(),
        dir,
        // Kubernetes creates these files for all users of the pod.
        secret: Readers::Any,
        files: Vec::new(),
    };
    reader.access(cluster, user)
}

fn of_file(path: &Path, context: Option<&str>) -> Result<Access, SourceError> {
    let reader = Reader {
        at: format!("the kubeconfig file {}", path.display()),
        dir: path.parent().unwrap_or(Path::new("/")),
        secret: Readers::Owner,
        files: vec![Stamp::of(path)],
    };
    let (text, meta) = read_file(path, "kubeconfig", Readers::Any)?;
    let config = reader.parse(&text)?;
    if has_secrets(&config) {
        secure_file::check_private(&meta).map_err(|refusal| refused(path, "kubeconfig", refusal))?;
    }
    let (cluster, user) = reader.choose(config, context)?;
    reader.supported(&cluster, &user)?;
    reader.access(cluster, user)
}

/// Reads the files that one part of the site's configuration names.
struct Reader<'a> {
    /// The name of that part in messages.
    at: String,
    /// The directory that relative paths start from.
    dir: &'a Path,
    /// The permitted readers of files with secrets.
    secret: Readers,
    files: Vec<Stamp>,
}

impl Reader<'_> {
    fn access(mut self, mut cluster: Cluster, user: AuthInfo) -> Result<Access, SourceError> {
        let server = self.server(cluster.server.as_deref().unwrap_or_default())?;
        let authorities = self.content(
            "certificate-authority",
            nonempty(&cluster.certificate_authority_data),
            nonempty(&cluster.certificate_authority),
            Readers::Any,
        )?;
        let certificate = self.content(
            "client-certificate",
            nonempty(&user.client_certificate_data),
            nonempty(&user.client_certificate),
            Readers::Any,
        )?;
        let key = self.content(
            "client-key",
            secret(&user.client_key_data),
            nonempty(&user.client_key),
            self.secret,
        )?;
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some(Identity {
                certificate: certificate.to_vec(),
                key,
            }),
            (None, None) => None,
            (Some(_), None) => return Err(self.wrong("client-key is missing", "client-certificate needs it")),
            (None, Some(_)) => return Err(self.wrong("client-certificate is missing", "client-key needs it")),
        };
        // `tokenFile` takes precedence over `token` (k8s.io/client-go/tools/clientcmd/api/v1).
        let token = match self.content("tokenFile", None, nonempty(&user.token_file), self.secret)? {
            Some(content) => Some(bearer(&content, "tokenFile")?),
            None => secret(&user.token)
                .map(|token| bearer(token.as_bytes(), "token"))
                .transpose()?,
        };
        let exec = match (&user.exec, &token) {
            (Some(exec), None) => {
                // The command receives the certificates as data, not as a path.
                cluster.certificate_authority_data = authorities.as_ref().map(|pem| STANDARD.encode(pem));
                let exec = Exec::new(exec, &cluster, self.dir);
                Some(exec.map_err(|e| self.wrong(e.cause(), e.remedy()))?)
            }
            _ => None,
        };
        if identity.is_none() && token.is_none() && exec.is_none() {
            return Err(self.wrong(
                "its user has no credential",
                "set token, tokenFile, client-certificate with client-key, or exec",
            ));
        }
        Ok(Access {
            server,
            server_name: nonempty(&cluster.tls_server_name).map(str::to_owned),
            authorities: authorities.map(|pem| pem.to_vec()),
            identity,
            token,
            exec,
            files: self.files,
        })
    }

    /// Returns the value of `key`: data in base64, or otherwise the contents of a file.
    fn content(
        &mut self,
        key: &str,
        data: Option<&str>,
        file: Option<&str>,
        readers: Readers,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, SourceError> {
        if let Some(data) = data {
            let wrong = || {
                self.wrong(
                    format_args!("{key}-data is not base64"),
                    "write the content of the file in base64, in one line",
                )
            };
            return decode(data).ok_or_else(wrong).map(Some);
        }
        let Some(file) = file else { return Ok(None) };
        let path = self.dir.join(file);
        self.files.push(Stamp::of(&path));
        Ok(Some(read_file(&path, key, readers)?.0))
    }

    fn wrong(&self, cause: impl fmt::Display, remedy: impl fmt::Display) -> SourceError {
        credential(format_args!("{}: {cause}", self.at), remedy)
    }

    fn supported(&self, cluster: &Cluster, user: &AuthInfo) -> Result<(), SourceError> {
        const INSTEAD: &str = "use exec, a tokenFile or a client certificate";

        let provider = user.auth_provider.as_ref().map(|provider| quote(&provider.name, &[]));
        let provider_is_set = format!("auth-provider {} is set", provider.as_deref().unwrap_or_default());
        let impersonates = nonempty(&user.impersonate).is_some()
            || user.impersonate_uid.is_some()
            || user.impersonate_groups.is_some()
            || user.impersonate_user_extra.is_some();
        let unsupported = [
            (
                cluster.insecure_skip_tls_verify == Some(true),
                "insecure-skip-tls-verify is set, which exposes the tokens of all jobs to the network",
                "remove it, and set certificate-authority",
            ),
            (
                nonempty(&cluster.proxy_url).is_some(),
                "proxy-url is set",
                "set server to an address that this node reaches without a proxy",
            ),
            (provider.is_some(), &provider_is_set, INSTEAD),
            (
                nonempty(&user.username).is_some() || user.password.is_some(),
                "username and password are set",
                INSTEAD,
            ),
            (
                impersonates,
                "its user impersonates another (as, as-uid, as-groups)",
                "use the credential of a service account that has the permissions itself",
            ),
        ];
        match unsupported.into_iter().find(|(is_set, ..)| *is_set) {
            Some((_, cause, remedy)) => Err(self.wrong(format_args!("{cause}, which is not supported"), remedy)),
            None => Ok(()),
        }
    }

    /// Returns the address of the server, which is https.
    fn server(&self, address: &str) -> Result<Uri, SourceError> {
        let uri: Option<Uri> = address.parse().ok();
        let uri = uri.filter(|uri| uri.host().is_some_and(|host| !host.is_empty()) && uri.query().is_none());
        let cause = match uri {
            _ if address.is_empty() => "its cluster has no server",
            None => "the address of its server is not valid",
            Some(uri) if uri.scheme_str() != Some("https") => {
                "its server is not https, so tokens would be sent in clear text"
            }
            Some(uri)
                if uri
                    .authority()
                    .is_some_and(|authority| authority.as_str().contains('@')) =>
            {
                "the address of its server contains a user name, which is not supported"
            }
            Some(uri) => return Ok(uri),
        };
        Err(self.wrong(
            cause,
            "set server to an address such as https://kubernetes.example.com:6443",
        ))
    }

    fn parse(&self, text: &[u8]) -> Result<Kubeconfig, SourceError> {
        let text = std::str::from_utf8(text).map_err(|e| {
            self.wrong(
                format_args!("it is not UTF-8 (at byte {})", e.valid_up_to()),
                "write it as UTF-8",
            )
        })?;
        // The message of the parser quotes the file, which contains secrets.
        Kubeconfig::from_yaml(text).map_err(|e| {
            let line = match e {
                KubeconfigError::Parse(e) => e.location().map(|location| location.line()),
                _ => None,
            };
            let line = line.map(|line| format!(" (line {line})")).unwrap_or_default();
            self.wrong(
                format_args!("it is not a kubeconfig{line}"),
                "check it with kubectl --kubeconfig",
            )
        })
    }

    fn choose(&self, config: Kubeconfig, context: Option<&str>) -> Result<(Cluster, AuthInfo), SourceError> {
        let Some(name) = context.or(nonempty(&config.current_context)) else {
            return Err(self.wrong("it has no current-context", "set the key context"));
        };
        let quoted = quote(name, &[]);
        let mut contexts = config.contexts.iter().filter(|named| named.name == name);
        let Some(context) = contexts.find_map(|named| named.context.as_ref()) else {
            return Err(self.wrong(
                format_args!("it has no context `{quoted}`"),
                "set the key context to an existing one (kubectl config get-contexts)",
            ));
        };
        let missing = |kind: &str| {
            self.wrong(
                format_args!("the {kind} of its context `{quoted}` does not exist"),
                "add it, or set the key context to another context",
            )
        };
        let mut clusters = config
            .clusters
            .into_iter()
            .filter(|named| named.name == context.cluster);
        let users = config.auth_infos.into_iter();
        let mut users = users.filter(|named| Some(&named.name) == context.user.as_ref());
        Ok((
            clusters
                .find_map(|named| named.cluster)
                .ok_or_else(|| missing("cluster"))?,
            users.find_map(|named| named.auth_info).ok_or_else(|| missing("user"))?,
        ))
    }
}

/// Returns whether a kubeconfig file contains a secret.
fn has_secrets(config: &Kubeconfig) -> bool {
    let mut users = config.auth_infos.iter().filter_map(|named| named.auth_info.as_ref());
    users.any(|user| {
        [&user.token, &user.password, &user.client_key_data]
            .into_iter()
            .any(Option::is_some)
            || user.auth_provider.is_some()
            || user.exec.as_ref().is_some_and(|exec| exec.env.is_some())
    })
}

/// The permitted readers of a file.
#[derive(Clone, Copy)]
enum Readers {
    Any,
    Owner,
}

/// Reads a file that nobody else can change. `key` is the key that names it.
fn read_file(path: &Path, key: &str, readers: Readers) -> Result<(Zeroizing<Vec<u8>>, fs::Metadata), SourceError> {
    let refused = |refusal| refused(path, key, refusal);
    // The path comes from the operator, directly or in a file, so links in it are followed.
    let file = secure_file::open(path).map_err(refused)?;
    let meta = file.metadata().map_err(|e| refused(e.into()))?;
    if let Readers::Owner = readers {
        secure_file::check_private(&meta).map_err(refused)?;
    }
    Ok((secure_file::read_all(file, MAX_FILE).map_err(refused)?, meta))
}

fn refused(path: &Path, key: &str, refusal: Refusal) -> SourceError {
    SourceError::of_file(CREDENTIAL, key, path, refusal)
}

/// Decodes base64 from YAML or JSON.
pub(super) fn decode(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    // A YAML writer may have broken the line.
    let mut compact = Zeroizing::new(Vec::with_capacity(text.len()));
    compact.extend(text.bytes().filter(|b| !b.is_ascii_whitespace()));
    let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(compact.len())]);
    let len = STANDARD.decode_slice(compact.as_slice(), &mut bytes[..]).ok()?;
    bytes.truncate(len);
    Some(bytes)
}

fn nonempty(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

fn secret(text: &Option<Secret>) -> Option<&str> {
    text.as_ref().map(Secret::expose_secret).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests;
