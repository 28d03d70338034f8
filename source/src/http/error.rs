//! The error of one request: its cause, the remedy, and whether another attempt can succeed.

use std::{error::Error as StdError, fmt, io, path::Path, time::Duration};

use hyper_util::client::legacy;
use rustls::{AlertDescription, CertificateError};

use crate::{Error, seconds, secure_file::Refusal};

/// The longest quotation of another program's text in a message, in characters.
const MAX_QUOTE: usize = 300;

/// The command that creates a certificate for the server, which is also the one to trust.
const CREATE: &str = "openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj /CN=HOST -addext subjectAltName=DNS:HOST \
                      -addext basicConstraints=critical,CA:FALSE -keyout key.pem -out cert.pem";

const WRONG_SERVER: &str = "see that this is the server that is meant, and what is wrong with its certificate";

/// A kind of server, in the words of messages.
#[derive(Debug)]
pub(crate) struct Peer {
    /// The kind of server.
    pub server: &'static str,
    /// The text for the user if it could not be asked.
    pub unreachable: &'static str,
    /// The text for the user if its answer was not usable.
    pub unwell: &'static str,
    /// The text for the user if the site's credential is missing or rejected.
    pub credential: &'static str,
    /// The key of its address.
    pub address: &'static str,
    /// The key of the certificates to trust.
    pub authorities: &'static str,
    /// The key of the name that its certificate is for, if there is one.
    pub name: Option<&'static str>,
    /// The key of the client certificate, if there is one.
    pub client_certificate: Option<&'static str>,
}

impl Peer {
    /// It did not answer in this time.
    pub fn silent(&self, limit: Duration) -> SourceError {
        SourceError::retryable(
            self.unreachable,
            format_args!("it did not answer within {}", seconds(limit)),
            "see that the server is well, and that no firewall is in between",
        )
    }

    /// The credential for it, or the file that names it, is not good.
    pub fn wrong_credential(&self, cause: impl fmt::Display, remedy: impl fmt::Display) -> SourceError {
        SourceError::permanent(self.credential, cause, remedy)
    }
}

/// A failed fetch. It contains no secret.
#[derive(Debug, Clone)]
pub(crate) struct SourceError {
    pub retry: Retry,
    /// Set if there was no connection, so that no other request to the same host would fare better.
    pub unconnected: bool,
    /// For the user.
    pub summary: &'static str,
    cause: String,
    remedy: String,
}

/// The chance that another attempt succeeds. Of two errors, the greater one decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Retry {
    /// It would fail the same way.
    Never,
    /// It can, after a pause: no shorter than the server requested.
    Backoff(Option<Duration>),
    /// It can for a short while: a server may not see yet what was just created.
    NotFound,
    /// It can once, with a new client: the server refused the credential, or the client is gone.
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

    /// The error of a file that is not there, or not safe. `key` is where it is named.
    pub fn of_file(summary: &'static str, key: &str, path: &Path, refusal: Refusal) -> Self {
        let (what, remedy) = match refusal {
            Refusal::Io(e) => (
                format!("could not be read ({e})"),
                "create it, or correct its path, and let the instance owner read it",
            ),
            Refusal::Untrusted(why) => (
                format!("was refused ({why})"),
                "let nobody but the instance owner and root change it, and nobody else read secrets in it",
            ),
        };
        Self::permanent(summary, format_args!("{key}: {} {what}", path.display()), remedy)
    }

    /// The same error, with the address where it happened.
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

    /// The error of a fetch that ends with this one. `place` is what was requested, and where.
    pub fn ends(&self, place: &str) -> Error {
        Error::new(self.summary, format!("{place}: {self}"))
    }

    /// Of a request that came to no answer.
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
                    format_args!("see that the port of {address} is right, and whether it is one for https"),
                );
            }
            // These types are not public.
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
                    format_args!("the proxy made no tunnel to it ({})", quote(&why, &[])),
                    "see that the key proxy is right, that the proxy runs, and that it lets this node connect there",
                );
            }
            if text == "dns error" {
                found.get_or_insert(Self::retryable(
                    unreachable,
                    "its name could not be resolved",
                    format_args!("see that {address} is right, and that this node's DNS works"),
                ));
            }
            let Some(io) = cause.downcast_ref::<io::Error>() else {
                continue;
            };
            found.get_or_insert(match io.kind() {
                io::ErrorKind::ConnectionRefused => Self::retryable(
                    unreachable,
                    "it refused the connection",
                    format_args!("see that the server runs, and that {address} is right, and its port"),
                ),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                    cut_off(peer)
                }
                _ => Self::retryable(
                    unreachable,
                    format_args!("the connection failed ({io})"),
                    "see that this node reaches the server's address",
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
                    &"it is marked as that of an authority, CA:TRUE, and is also the server's own",
                    &create(),
                ),
                Some(webpki::Error::UnsupportedCertVersion) => {
                    untrusted(&"it is of version 1 of X.509, which names no host", &create())
                }
                _ => untrusted(&other.0, WRONG_SERVER),
            },
            Tls::InvalidCertificate(why) => {
                let remedy = match why {
                    CertificateError::UnknownIssuer | CertificateError::BadSignature => &format!(
                        "see that {authorities} has the certificate of the authority that signed this server's; the server's \
                             own will only do if it has signed itself"
                    ),
                    CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                        "renew the server's certificate, and see that the clock of this node is right"
                    }
                    CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                        "see that the clock of this node is right"
                    }
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                        let or = peer.name.map(|name| format!(", or set {name}")).unwrap_or_default();
                        &format!("name the server as its certificate does{or}")
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
                format_args!("see that the port of {address} is the one for https"),
            ),
            // Without its close, a connection may have been cut by anybody.
            other => Self::permanent(
                unreachable,
                format_args!("no TLS connection could be made ({other})"),
                "see which versions and ciphers of TLS the server takes; TLS 1.2 and 1.3 are spoken",
            ),
        }
    }
}

/// Cause and remedy, for the operator.
impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.cause, self.remedy)
    }
}

fn cut_off(peer: &Peer) -> SourceError {
    SourceError::retryable(
        peer.unreachable,
        "the connection ended before the answer did",
        "see whether the server, or a proxy before it, was restarted",
    )
}

/// Returns whether an alert says that our certificate is missing or not good (RFC 8446, section 6.2).
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

/// An error, and what it comes from. [`io::Error`] names as its source what the error in it comes from, and not that
/// one.
pub(crate) fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| cause(*error))
}

fn cause<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

/// A text of somebody else, fit for one line of a message: without the secrets that are known or can be told by their
/// form, and not long.
pub(crate) fn quote(text: &str, secrets: &[&str]) -> String {
    let start = &text.as_bytes()[..text.len().min(4 * MAX_QUOTE)];
    let line = token::redact_lines(start, secrets).join(" ");
    match line.char_indices().nth(MAX_QUOTE) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
