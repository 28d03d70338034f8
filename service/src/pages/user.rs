//! The page of a user: identity, the jobs that hold tokens, and the sessions.

use askama::Template;
use protocol::Held;

use super::{Frame, time::Moment};

/// The page of a user.
#[derive(Template)]
#[template(path = "me.html")]
pub struct Me {
    /// The common parts.
    pub frame: Frame,
    /// The time, in seconds since 1970-01-01T00:00:00Z, as all times here.
    pub now: u64,
    /// The name of the user.
    pub user: String,
    /// The uid on the cluster.
    pub uid: u32,
    /// The projects.
    pub projects: Vec<String>,
    /// When this session ends.
    pub session_expires: u64,
    /// The jobs that hold tokens; none if the agent cannot report them at the moment. Each has a button, which is a POST to
    /// `/me/revoke` with `instance` and `jobid`.
    pub jobs: Option<Vec<Held>>,
    /// The other sessions and logins of the user.
    pub sessions: Vec<SessionRow>,
    /// The login whose tokens jobs get.
    pub job_login: Option<JobLoginRow>,
}

/// A session or login. The button is a POST to `/me/end` with `id`.
pub struct SessionRow {
    /// Its name in the form, which is not the secret in the cookie.
    pub id: String,
    /// The client: `Browser`, or the name of a command-line tool.
    pub client: String,
    /// When it began.
    pub since: u64,
    /// When it ends.
    pub expires: u64,
}

/// The login whose tokens jobs get. The button is a POST to `/me/end` with `id`.
pub struct JobLoginRow {
    /// Its name in the form.
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
