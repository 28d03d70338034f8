//! What goes wrong on the way to a Workflow, what is to be done about it, and whether it is worth another try.

use std::{error::Error as StdError, fmt, io, time::Duration};

use rustls::{AlertDescription, CertificateError};

/// How much of a text of somebody else is repeated in a message, in characters.
const MAX_QUOTE: usize = 300;

/// What the user is told where the server could not be asked.
pub(super) const UNREACHABLE: &str = "the Kubernetes API server that has its Workflow could not be reached";
/// What the user is told where the server gave no good answer.
pub(super) const UNWELL: &str = "the Kubernetes API server that has its Workflow is not well";
/// What the user is told where the site's credential is not there, or not good.
pub(super) const CREDENTIAL: &str =
    "the site's access to the Kubernetes API server that has its Workflow is not set up";
/// What the user is told where there is no Workflow, or none yet.
pub(super) const NOT_READY: &str = "its Workflow was not ready in time";
/// What the user is told where the Workflow, or its Secret, cannot be used.
pub(super) const UNUSABLE: &str = "its Workflow has no usable variables";

/// What went wrong, with no secret in it.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    pub kind: Kind,
    /// For the user.
    pub summary: &'static str,
    what: String,
    todo: String,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing: the next try would end the same way.
    Permanent,
    /// To try again, after this time where the server named one.
    Passing(Option<Duration>),
    /// To try again for a short while: what is there may not be seen yet.
    Missing,
    /// To try again once with a fresh credential.
    Refused,
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

    /// The credential, or the file that names it, is not good.
    pub fn credential(what: impl fmt::Display, todo: impl fmt::Display) -> Self {
        Self::permanent(CREDENTIAL, what, todo)
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
    pub fn of_request(error: &(dyn StdError + 'static)) -> Self {
        let mut passing = None;
        for cause in causes(error) {
            if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
                return Self::of_tls(tls);
            }
            if cause.to_string() == "dns error" {
                passing.get_or_insert(Self::passing(
                    UNREACHABLE,
                    "its name could not be resolved",
                    "see that the address in the kubeconfig file is right, and that this node's DNS works",
                ));
            }
            let Some(io) = cause.downcast_ref::<io::Error>() else {
                continue;
            };
            passing.get_or_insert(match io.kind() {
                io::ErrorKind::ConnectionRefused => Self::passing(
                    UNREACHABLE,
                    "it refused the connection",
                    "see that the server runs, and that the address and port in the kubeconfig file are right",
                ),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => cut_off(),
                _ => Self::passing(
                    UNREACHABLE,
                    format_args!("the connection failed ({io})"),
                    "see that this node reaches the server's address",
                ),
            });
        }
        passing.unwrap_or_else(cut_off)
    }

    fn of_tls(error: &rustls::Error) -> Self {
        use rustls::Error as Tls;

        let untrusted = |what: &dyn fmt::Display, todo: &str| {
            Self::permanent(
                UNREACHABLE,
                format_args!("its certificate was not accepted ({what})"),
                todo,
            )
        };
        match error {
            Tls::InvalidCertificate(why) => {
                let todo = match why {
                    CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                        "see that certificate-authority in the kubeconfig file is the one that this server's certificate \
                         is of"
                    }
                    CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                        "renew the server's certificate, and see that the clock of this node is right"
                    }
                    CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                        "see that the clock of this node is right"
                    }
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                        "name the server as its certificate does, or set tls-server-name in the kubeconfig file"
                    }
                    _ => "see that this is the server that is meant, and what is wrong with its certificate",
                };
                untrusted(why, todo)
            }
            Tls::AlertReceived(alert) if is_about_us(*alert) => Self::new(
                Kind::Refused,
                CREDENTIAL,
                format_args!("it refused the client certificate (TLS alert {alert:?})"),
                "renew the client certificate in the kubeconfig file",
            ),
            Tls::InvalidMessage(_) => Self::permanent(
                UNREACHABLE,
                "it does not speak TLS",
                "see that the port in the kubeconfig file is the one for https",
            ),
            // Without its close, a connection may have been cut by anybody.
            other => Self::permanent(
                UNREACHABLE,
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

fn cut_off() -> Trouble {
    Trouble::passing(
        UNREACHABLE,
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
pub(super) fn quote(text: &str, secrets: &[&str]) -> String {
    let start = &text.as_bytes()[..text.len().min(4 * MAX_QUOTE)];
    let line = token::redact_lines(start, secrets).join(" ");
    match line.char_indices().nth(MAX_QUOTE) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
