// SPDX-License-Identifier: MIT OR Apache-2.0

//! The pages for people: HTML from templates, and one style sheet. They contain no JavaScript, and the policy of each
//! page forbids it.
//!
//! A page is a struct, and its response depends on nothing else. Askama escapes all values. All links and forms are
//! below the path of the issuer.

mod operator;
mod plot;
mod style;
mod time;
mod user;

use askama::Template;
use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

pub use operator::Operator;
pub use style::{STYLE, style};
pub use user::{JobLoginRow, Me, SessionRow};

/// The content security policy, up to the allowed targets of forms.
const POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; \
                      form-action 'self'";

/// The headers of all pages, besides the policy.
const HEADERS: [(HeaderName, HeaderValue); 4] = [
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    // Without a policy, browsers would not send `Origin` with forms.
    (header::REFERRER_POLICY, HeaderValue::from_static("same-origin")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        HeaderValue::from_static("same-origin"),
    ),
];

/// The common parts of all pages.
#[derive(Clone, Default)]
pub struct Frame {
    /// The path of the issuer: empty, or `/PATH`.
    pub base: String,
    /// The user who has logged in.
    pub user: Option<String>,
    /// The value of the hidden field `csrf` of all forms.
    pub csrf: Option<String>,
    /// The URLs that the response to a form may redirect to, besides the service itself: browsers apply the policy to
    /// them, too.
    pub form_origins: Vec<String>,
}

/// A page.
pub trait Page: Template + Sized {
    /// Returns the common parts.
    fn frame(&self) -> &Frame;

    /// Returns the status of the response.
    fn status(&self) -> StatusCode {
        StatusCode::OK
    }

    /// Returns the page.
    fn response(self) -> Response {
        // The policy is visible ASCII, and no template fails.
        let (Ok(policy), Ok(html)) = (HeaderValue::try_from(self.frame().policy()), self.render()) else {
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        };
        let kind = [
            (
                header::CONTENT_TYPE,
                HeaderValue::from_static("text/html; charset=utf-8"),
            ),
            (header::CONTENT_SECURITY_POLICY, policy),
        ];
        (self.status(), HEADERS, kind, html).into_response()
    }
}

/// An error, for the person who sees it.
#[derive(Template)]
#[template(path = "problem.html")]
pub struct Problem {
    /// The common parts.
    pub frame: Frame,
    /// The status of the response.
    pub status: StatusCode,
    /// The heading: `The login failed`.
    pub title: String,
    /// The explanation, and what to do.
    pub text: String,
}

/// The page after a logout.
#[derive(Template)]
#[template(path = "logged-out.html")]
pub struct LoggedOut {
    /// The common parts.
    pub frame: Frame,
}

/// The last page of a login that a terminal began.
#[derive(Template)]
#[template(path = "done.html")]
pub struct Done {
    /// The common parts.
    pub frame: Frame,
    /// The heading: `You are logged in`.
    pub title: String,
    /// The result.
    pub text: String,
}

/// The form for the code that a terminal shows (RFC 8628 section 3.3): a POST to `/device` with `user_code`.
#[derive(Template)]
#[template(path = "enter-code.html")]
pub struct EnterCode {
    /// The common parts.
    pub frame: Frame,
    /// The code from the query or a former attempt, if any.
    pub code: Option<String>,
    /// The reason why a former attempt failed.
    pub problem: Option<String>,
}

/// The question whether a client may act as the user. The form is a POST with `decision`: `allow` or `deny`.
#[derive(Template)]
#[template(path = "confirm.html")]
pub struct Confirm {
    /// The common parts.
    pub frame: Frame,
    /// The path that the form is sent to, relative to that of the issuer: `/device`.
    pub action: String,
    /// Further hidden fields.
    pub hidden: Vec<(String, String)>,
    /// The name of the client, from its metadata or the operator.
    pub client: String,
    /// The code that the user's terminal shows, too.
    pub code: Option<String>,
    /// The audiences of the token.
    pub audience: Vec<String>,
    /// The scope of the token, in words that are separated by spaces.
    pub scope: String,
    /// The projects of the token.
    pub projects: Vec<String>,
    /// The lifetime of the token in seconds.
    pub expires_in: Option<u64>,
    /// The user of the cluster whose jobs get tokens of this login, if it is a login for jobs.
    pub for_jobs: Option<String>,
}

impl Confirm {
    /// Returns the lifetime in words, for the template.
    fn lifetime(&self) -> Option<String> {
        self.expires_in.map(time::span)
    }
}

impl Frame {
    /// Returns the URL of the style sheet. Its query changes with the content.
    fn style_url(&self) -> String {
        style::url(&self.base)
    }

    /// Returns the content security policy.
    fn policy(&self) -> String {
        let mut policy = POLICY.to_owned();
        for source in self.form_origins.iter().filter_map(|url| source(url)) {
            policy.push(' ');
            policy.push_str(&source);
        }
        policy
    }
}

/// Returns the source expression of a URL for a content security policy, or `None` if the policy cannot express it.
fn source(url: &str) -> Option<String> {
    let uri: http::Uri = url.parse().ok()?;
    let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"))?;
    let authority = uri.authority()?.as_str();
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':');
    if authority.bytes().all(is_host) {
        return Some(format!("{scheme}://{authority}"));
    }
    // Source expressions do not allow IPv6 addresses.
    authority.starts_with('[').then(|| format!("{scheme}:"))
}

macro_rules! pages {
    ($($page:ty),*) => {
        $(impl Page for $page {
            fn frame(&self) -> &Frame {
                &self.frame
            }
        })*
    };
}

pages!(LoggedOut, Done, EnterCode, Confirm, Me);

impl Page for Problem {
    fn frame(&self) -> &Frame {
        &self.frame
    }

    fn status(&self) -> StatusCode {
        self.status
    }
}
