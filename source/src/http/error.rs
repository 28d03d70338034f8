// SPDX-License-Identifier: MIT OR Apache-2.0

//! The error of one request: its cause, the remedy, and whether another attempt can succeed.

use std::{error::Error as StdError, fmt, io, path::Path, time::Duration};

use hyper_util::client::legacy;
use rustls::{AlertDescription, CertificateError};

use crate::{Error, seconds, secure_file::Refusal};

/// The longest quotation of another program's text in a message, in characters.
const MAX_QUOTE: usize = 300;

/// The command that creates a self-signed certificate for the server.
const CREATE: &str = "openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj /CN=HOST -addext subjectAltName=DNS:HOST \
                      -addext basicConstraints=critical,CA:FALSE -keyout key.pem -out cert.pem";

const WRONG_SERVER: &str = "check that this is the right server, and check its certificate";

/// A kind of server in messages.
#[derive(Debug)]
pub(crate) struct Peer {
    /// The kind of server.
    pub server: &'static str,
    /// The text for the user if it could not be reached.
    pub unreachable: &'static str,
    /// The text for the user if its answer was not usable.
    pub unwell: &'static str,
    /// The text for the user if the site's credential is missing or rejected.
    pub credential: &'static str,
    /// The key of its address.
    pub address: &'static str,
    /// The key of the trusted certificates.
    pub authorities: &'static str,
    /// The key of the name in its certificate, if any.
    pub name: Option<&'static str>,
    /// The key of the client certificate, if any.
    pub client_certificate: Option<&'static str>,
}

impl Peer {
    /// Returns the error of a server that did not answer in time.
    pub fn silent(&self, limit: Duration) -> SourceError {
        SourceError::retryable(
            self.unreachable,
            format_args!("it did not answer within {}", seconds(limit)),
            "check that the server works, and that no firewall blocks the connection",
        )
    }

    /// Returns the error of an invalid credential for the server, or of the file that names it.
    pub fn wrong_credential(&self, cause: impl fmt::Display, remedy: impl fmt::Display) -> SourceError {
        SourceError::permanent(self.credential, cause, remedy)
    }
}

/// A failed fetch. It contains no secret.
#[derive(Debug, Clone)]
pub(crate) struct SourceError {
    pub retry: Retry,
    /// Set if there was no connection, so that another request to the same host would fail, too.
    pub unconnected: bool,
    /// For the user.
    pub summary: &'static str,
    cause: String,
    remedy: String,
}

/// The way to retry a request. Of two errors, the greater one decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Retry {
    /// Do not retry: another attempt would fail in the same way.
    Never,
    /// Retry after a pause that is at least as long as the server requested.
    Backoff(Option<Duration>),
    /// Retry for a short time: a server may not see yet what was just created.
    NotFound,
    /// Retry once with a new client: the server rejected the credential, or the client has ended.
    NewClient,
}

impl SourceError {
    pub fn new(retry: Retry, summary: &'static str, cause: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        Self {
            retry,
            unconnected: false,
            summary,
            cause: cause.to_string(),
            remedy: remedy.to_string(),
        }
    }

    pub fn permanent(summary: &'static str, cause: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        Self::new(Retry::Never, summary, cause, remedy)
    }

    pub fn retryable(summary: &'static str, cause: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        Self::new(Retry::Backoff(None), summary, cause, remedy)
    }

    /// Returns the error of a file that cannot be read or is not secure. `key` is the key that names it.
    pub fn of_file(summary: &'static str, key: &str, path: &Path, refusal: Refusal) -> Self {
        let (what, remedy) = match refusal {
            Refusal::Io(e) => (
                format!("could not be read ({e})"),
                "create it or correct its path, and allow the instance owner to read it",
            ),
            Refusal::Untrusted(why) => (
                format!("was refused ({why})"),
                "allow only the instance owner and root to change it, and nobody else to read secrets in it",
            ),
        };
        Self::permanent(summary, format_args!("{key}: {} {what}", path.display()), remedy)
    }

    /// Adds the address of the request to the cause.
    pub fn at(mut self, url: &str) -> Self {
        self.cause = format!("{url}: {}", self.cause);
        self
    }

    pub fn cause(&self) -> &str {
        &self.cause
    }

    pub fn remedy(&self) -> &str {
        &self.remedy
    }

    /// Returns the error of a fetch that this error ends. `place` names the request and the server.
    pub fn ends(&self, place: &str) -> Error {
        Error::new(self.summary, format!("{place}: {self}"))
    }

    /// Returns the error of a request without an answer.
    pub fn of_request(error: &(dyn StdError + 'static), peer: &Peer) -> Self {
        let mut client = causes(error).filter_map(|cause| cause.downcast_ref::<legacy::Error>());
        Self {
            unconnected: client.any(legacy::Error::is_connect),
            ..Self::of_causes(error, peer)
        }
    }

    fn of_causes(error: &(dyn StdError + 'static), peer: &Peer) -> Self {
        let Peer {
            unreachable, address, ..
        } = peer;
        let mut found = None;
        for cause in causes(error) {
            if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
                return Self::of_tls(tls, peer);
            }
            if cause.downcast_ref().is_some_and(hyper::Error::is_parse) {
                return Self::permanent(
                    unreachable,
                    "it does not speak HTTP/1.1",
                    format_args!("check that the port of {address} is correct, and whether it is for https"),
                );
            }
            // These error types are private, so their texts are compared.
            let text = cause.to_string();
            if let Some(why) = text.strip_prefix("tunnel error: ") {
                let why = causes(cause)
                    .last()
                    .map_or(why.to_owned(), |root| match root.downcast_ref::<io::Error>() {
                        Some(io) => format!("{why}: {io}"),
                        None => why.to_owned(),
                    });
                return Self::retryable(
                    unreachable,
                    format_args!("the proxy opened no tunnel to it ({})", quote(&why, &[])),
                    "check that the key proxy is correct, that the proxy runs, and that it allows this node to connect",
                );
            }
            if text == "dns error" {
                found.get_or_insert(Self::retryable(
                    unreachable,
                    "its name could not be resolved",
                    format_args!("check that {address} is correct, and that the DNS of this node works"),
                ));
            }
            let Some(io) = cause.downcast_ref::<io::Error>() else {
                continue;
            };
            found.get_or_insert(match io.kind() {
                io::ErrorKind::ConnectionRefused => Self::retryable(
                    unreachable,
                    "it refused the connection",
                    format_args!("check that the server runs, and that {address} and its port are correct"),
                ),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                    cut_off(peer)
                }
                _ => Self::retryable(
                    unreachable,
                    format_args!("the connection failed ({io})"),
                    "check that this node reaches the server's address",
                ),
            });
        }
        found.unwrap_or_else(|| cut_off(peer))
    }

    fn of_tls(error: &rustls::Error, peer: &Peer) -> Self {
        use rustls::Error as Tls;

        let Peer {
            unreachable,
            authorities,
            address,
            ..
        } = peer;
        let untrusted = |what: &dyn fmt::Display, remedy: &str| {
            Self::permanent(
                unreachable,
                format_args!("its certificate was not accepted ({what})"),
                remedy,
            )
        };
        let create = || format!("create one with `{CREATE}`, and set {authorities} to it");
        match error {
            Tls::InvalidCertificate(CertificateError::Other(other)) => match other.0.downcast_ref() {
                Some(webpki::Error::CaUsedAsEndEntity) => untrusted(
                    &"it is the server's own, but is marked as that of an authority, CA:TRUE",
                    &create(),
                ),
                Some(webpki::Error::UnsupportedCertVersion) => {
                    untrusted(&"it uses version 1 of X.509, which names no host", &create())
                }
                _ => untrusted(&other.0, WRONG_SERVER),
            },
            Tls::InvalidCertificate(why) => {
                let remedy = match why {
                    CertificateError::UnknownIssuer | CertificateError::BadSignature => &format!(
                        "check that {authorities} contains the certificate of the authority that signed this server's; \
                         the server's own is only sufficient if it is self-signed"
                    ),
                    CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                        "renew the server's certificate, and check the clock of this node"
                    }
                    CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                        "check the clock of this node"
                    }
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                        let or = peer.name.map(|name| format!(", or set {name}")).unwrap_or_default();
                        &format!("use a name of the server that its certificate contains{or}")
                    }
                    _ => WRONG_SERVER,
                };
                untrusted(why, remedy)
            }
            Tls::AlertReceived(alert) if is_about_us(*alert) && peer.client_certificate.is_some() => Self::new(
                Retry::NewClient,
                peer.credential,
                format_args!("it refused the client certificate (TLS alert {alert:?})"),
                format_args!("renew {}", peer.client_certificate.unwrap_or_default()),
            ),
            Tls::InvalidMessage(_) => Self::permanent(
                unreachable,
                "it does not speak TLS",
                format_args!("check that the port of {address} is for https"),
            ),
            // This includes a missing close_notify: an attacker may have truncated the connection.
            other => Self::permanent(
                unreachable,
                format_args!("the TLS connection failed ({other})"),
                "check that the server supports TLS 1.2 or 1.3 with modern ciphers",
            ),
        }
    }
}

/// Writes cause and remedy, for the operator.
impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.cause, self.remedy)
    }
}

fn cut_off(peer: &Peer) -> SourceError {
    SourceError::retryable(
        peer.unreachable,
        "the connection ended before the answer was complete",
        "check whether the server, or a proxy in front of it, was restarted",
    )
}

/// Returns whether an alert means that the client certificate is missing or invalid (RFC 8446 section 6.2).
fn is_about_us(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::AccessDenied
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::UnsupportedCertificate
    )
}

/// Returns an error and its chain of causes. `source` of an [`io::Error`] skips the error that it wraps, so that is
/// added.
pub(crate) fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| cause(*error))
}

fn cause<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

/// Shortens a foreign text to one line for a message, and redacts the given secrets and texts that have the form of
/// one.
pub(crate) fn quote(text: &str, secrets: &[&str]) -> String {
    let start = &text.as_bytes()[..text.len().min(4 * MAX_QUOTE)];
    let line = token::redact_lines(start, secrets).join(" ");
    match line.char_indices().nth(MAX_QUOTE) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
