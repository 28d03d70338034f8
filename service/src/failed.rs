// SPDX-License-Identifier: MIT OR Apache-2.0

//! Error pages of logins.

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

/// The reason why a login, or a request of a logged-in user, failed.
pub enum Failed {
    /// The link belongs to another browser, or has expired.
    Stale,
    /// The provider or the agent refused.
    Refused(String),
    /// The agent, the provider or the state is not available.
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
                "This page has expired",
                "It was opened in another browser, took too long, or was used before. Start again.".to_owned(),
            ),
            Self::Refused(why) => (
                StatusCode::FORBIDDEN,
                "The request was refused",
                format!("The reason: {why}."),
            ),
            Self::Unavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "Please try again in a moment",
                "A part of the service does not respond.".to_owned(),
            ),
            Self::Malformed(what) => (StatusCode::BAD_REQUEST, "This address is not valid", format!("{what}.")),
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
