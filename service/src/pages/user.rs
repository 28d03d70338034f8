// SPDX-License-Identifier: MIT OR Apache-2.0

//! The page of a user: identity, jobs that hold tokens, and sessions.

use askama::Template;
use protocol::Held;

use super::{Frame, time::Moment};

/// The page of a user.
#[derive(Template)]
#[template(path = "me.html")]
pub struct Me {
    /// The common parts.
    pub frame: Frame,
    /// The current time, in seconds since 1970-01-01T00:00:00Z. All times here have this unit.
    pub now: u64,
    /// The name of the user.
    pub user: String,
    /// The user's uid on the cluster.
    pub uid: u32,
    /// The user's projects.
    pub projects: Vec<String>,
    /// When this session ends.
    pub session_expires: u64,
    /// The jobs that hold tokens, or `None` if the agent cannot report them at the moment. Each has a button: a POST to
    /// `/me/revoke` with `instance` and `jobid`.
    pub jobs: Option<Vec<Held>>,
    /// The other sessions and logins of the user.
    pub sessions: Vec<SessionRow>,
    /// The login for jobs.
    pub job_login: Option<JobLoginRow>,
}

/// A session or login. Its button is a POST to `/me/end` with `id`.
pub struct SessionRow {
    /// The id in the form. It differs from the secret in the cookie.
    pub id: String,
    /// The client: `Browser`, or the name of a command-line tool.
    pub client: String,
    /// When it began.
    pub since: u64,
    /// When it ends.
    pub expires: u64,
}

/// The login for jobs. Its button is a POST to `/me/end` with `id`.
pub struct JobLoginRow {
    /// The id in the form.
    pub id: String,
    /// When it began.
    pub since: u64,
}

impl Me {
    /// Returns a time, for the template.
    fn at(&self, at: &u64) -> Moment {
        Moment::new(*at, self.now)
    }
}
