//! What goes wrong on the way to a server and back, what is to be done about it, and whether it is worth another try.

use std::{error::Error as StdError, fmt, io, time::Duration};

use rustls::{AlertDescription, CertificateError};

use crate::{Error, seconds};

/// How much of a text of somebody else is repeated in a message, in characters.
const MAX_QUOTE: usize = 300;

/// Whom requests go to, in the words of messages.
#[derive(Debug)]
pub(crate) struct Peer {
    /// What kind of server it is meant to be.
    pub server: &'static str,
    /// What the user is told where it could not be asked.
    pub unreachable: &'static str,
    /// What the user is told where it gave no good answer.
    pub unwell: &'static str,
    /// What the user is told where the site's credential is not there, or not good.
    pub credential: &'static str,
    /// Where its address is set.
    pub address: &'static str,
    /// Where the certificates to trust are set.
    pub authorities: &'static str,
    /// Where it is set what name its certificate is for, if there is such a place.
    pub name: Option<&'static str>,
    /// Where the client certificate is set, if there is such a place.
    pub client_certificate: Option<&'static str>,
}

impl Peer {
    /// It did not answer in this time.
    pub fn silent(&self, limit: Duration) -> Trouble {
        Trouble::passing(
            self.unreachable,
            format_args!("it did not answer within {}", seconds(limit)),
            "see that the server is well, and that no firewall is in between",
        )
    }

    /// The credential for it, or the file that names it, is not good.
    pub fn wrong_credential(&self, what: impl fmt::Display, todo: impl fmt::Display) -> Trouble {
        Trouble::permanent(self.credential, what, todo)
    }
}

/// What went wrong, with no secret in it.
#[derive(Debug, Clone)]
pub(crate) struct Trouble {
    pub kind: Kind,
    /// For the user.
    pub summary: &'static str,
    what: String,
    todo: String,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing: the next try would end the same way.
    Permanent,
    /// To try again, after this time where the server named one.
    Passing(Option<Duration>),
    /// To try again for a short while: what is there may not be seen yet.
    Missing,
    /// To try again once with a fresh credential.
    Refused,
}

/// What a fetch comes to that ends with it; `place` is what was asked, and where.
impl Trouble {
    /// It will not pass.
    pub fn ends(&self, place: &str) -> Error {
        Error::new(self.summary, format!("{place}: {self}"))
    }

    /// The server asks to wait for longer than there is time.
    pub fn too_late(&self, place: &str, after: Duration, timeout: Duration) -> Error {
        let detail = format!(
            "{place}: {self}; it is not tried again, since the server asks to wait {}, which is longer than what is left of \
             the timeout of {}",
            seconds(after),
            seconds(timeout)
        );
        Error::new(self.summary, detail)
    }

    /// It was the last one when the time was over.
    pub fn out_of_time(&self, place: &str, timeout: Duration) -> Error {
        let limit = seconds(timeout);
        let detail = format!("{place}: not within {limit}; the last trouble was: {self}");
        Error::new(self.summary, detail)
    }
}

impl Trouble {
    pub fn new(kind: Kind, summary: &'static str, what: impl fmt::Display, todo: impl fmt::Display) -> Self {
        Self {
            kind,
            summary,
            what: what.to_string(),
            todo: todo.to_string(),
        }
    }

    pub fn permanent(summary: &'static str, what: impl fmt::Display, todo: impl fmt::Display) -> Self {
        Self::new(Kind::Permanent, summary, what, todo)
    }

    pub fn passing(summary: &'static str, what: impl fmt::Display, todo: impl fmt::Display) -> Self {
        Self::new(Kind::Passing(None), summary, what, todo)
    }

    /// The same, with the address where it happened.
    pub fn at(mut self, url: &str) -> Self {
        self.what = format!("{url}: {}", self.what);
        self
    }

    /// What is so.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// What to do about it.
    pub fn todo(&self) -> &str {
        &self.todo
    }

    /// Of a request that came to no answer.
    pub fn of_request(error: &(dyn StdError + 'static), peer: &Peer) -> Self {
        let Peer {
            unreachable, address, ..
        } = peer;
        let mut passing = None;
        for cause in causes(error) {
            if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
                return Self::of_tls(tls, peer);
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
                return Self::passing(
                    unreachable,
                    format_args!("the proxy made no tunnel to it ({})", quote(&why, &[])),
                    "see that the key proxy is right, that the proxy runs, and that it lets this node connect there",
                );
            }
            if text == "dns error" {
                passing.get_or_insert(Self::passing(
                    unreachable,
                    "its name could not be resolved",
                    format_args!("see that {address} is right, and that this node's DNS works"),
                ));
            }
            let Some(io) = cause.downcast_ref::<io::Error>() else {
                continue;
            };
            passing.get_or_insert(match io.kind() {
                io::ErrorKind::ConnectionRefused => Self::passing(
                    unreachable,
                    "it refused the connection",
                    format_args!("see that the server runs, and that {address} is right, and its port"),
                ),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                    cut_off(peer)
                }
                _ => Self::passing(
                    unreachable,
                    format_args!("the connection failed ({io})"),
                    "see that this node reaches the server's address",
                ),
            });
        }
        passing.unwrap_or_else(|| cut_off(peer))
    }

    fn of_tls(error: &rustls::Error, peer: &Peer) -> Self {
        use rustls::Error as Tls;

        let Peer {
            unreachable,
            authorities,
            address,
            ..
        } = peer;
        let untrusted = |what: &dyn fmt::Display, todo: &str| {
            Self::permanent(
                unreachable,
                format_args!("its certificate was not accepted ({what})"),
                todo,
            )
        };
        match error {
            Tls::InvalidCertificate(why) => {
                let todo = match why {
                    CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                        &format!("see that {authorities} is the one that this server's certificate is of")
                    }
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
                    _ => "see that this is the server that is meant, and what is wrong with its certificate",
                };
                untrusted(why, todo)
            }
            Tls::AlertReceived(alert) if is_about_us(*alert) && peer.client_certificate.is_some() => Self::new(
                Kind::Refused,
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

/// What happened, and what to do: the operator's words.
impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.todo)
    }
}

fn cut_off(peer: &Peer) -> Trouble {
    Trouble::passing(
        peer.unreachable,
        "the connection ended before the answer did",
        "see whether the server, or a proxy before it, was restarted",
    )
}

/// Whether an alert says that our certificate is missing or not good (RFC 8446, section 6.2).
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

/// An error, and what it comes from. [`io::Error`] names as its source what the error in it comes from, and not that one.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
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
