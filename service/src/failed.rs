//! Why a page cannot be shown, for the person in front of it.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::Response,
};

use crate::{
    log::Kind as Line,
    pages::{Frame, Page, Problem},
    settings::Settings,
    state::StateError,
};

static UNUSABLE: Line = Line::new();

/// The reason why a login, or what belongs to it, failed.
pub enum Failed {
    /// The link is not one of this browser, or too old.
    Stale,
    /// The provider or the agent refuses.
    Refused(String),
    /// Something does not answer.
    Unavailable,
    /// A parameter is malformed.
    Malformed(&'static str),
}

impl Failed {
    /// Returns the page.
    pub fn response(self, settings: &Settings) -> Response {
        let (status, title, text) = match self {
            Self::Stale => (
                StatusCode::BAD_REQUEST,
                "This page is too old",
                "It was opened in another browser, took too long, or was used before. Start again.".to_owned(),
            ),
            Self::Refused(why) => (
                StatusCode::FORBIDDEN,
                "That is not possible",
                format!("The reason: {why}."),
            ),
            Self::Unavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "Please try again in a moment",
                "A part of the service does not answer.".to_owned(),
            ),
            Self::Malformed(what) => (StatusCode::BAD_REQUEST, "This address is not right", format!("{what}.")),
        };
        let page = Problem {
            frame: Frame {
                base: settings.issuer.path().to_owned(),
                ..Frame::default()
            },
            status,
            title: title.to_owned(),
            text,
        };
        let mut response = page.response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        }
        response
    }
}

impl From<StateError> for Failed {
    fn from(error: StateError) -> Self {
        UNUSABLE.log(error);
        Self::Unavailable
    }
}
