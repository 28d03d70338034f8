// SPDX-License-Identifier: MIT OR Apache-2.0

//! One sample of each page.

use axum::http::StatusCode;
use protocol::{Count, Figures, Held, JobFacts, KeyFigures, Latency, SourceFigures};
use service::pages::{Confirm, Done, EnterCode, Frame, JobLoginRow, LoggedOut, Me, Operator, Problem, SessionRow};

use crate::html::Answered;

/// The time on all pages.
const NOW: u64 = 1_800_000_000;

pub fn frame() -> Frame {
    Frame {
        base: "/tokens".to_owned(),
        user: Some("alice".to_owned()),
        csrf: Some("canary-csrf".to_owned()),
        form_origins: Vec::new(),
    }
}

fn held(text: &str) -> Held {
    Held {
        job: JobFacts {
            instance: text.to_owned(),
            jobid: 17,
            uid: 1000,
        },
        name: text.to_owned(),
        variables: vec![text.to_owned()],
        expires_at: Some(NOW + 3600),
        renew_at: Some(NOW + 1800),
    }
}

pub fn me(text: &str) -> Me {
    let owned = || text.to_owned();
    Me {
        frame: frame(),
        now: NOW,
        user: owned(),
        uid: 1000,
        projects: vec![owned()],
        session_expires: NOW + 60,
        jobs: Some(vec![held(text)]),
        sessions: vec![SessionRow {
            id: owned(),
            client: owned(),
            since: NOW - 7200,
            expires: NOW + 86400,
        }],
        job_login: Some(JobLoginRow {
            id: owned(),
            since: NOW - 86400,
        }),
    }
}

pub fn figures(text: &str) -> Figures {
    let count = |name: &str, count| Count {
        name: name.to_owned(),
        count,
    };
    Figures {
        since: NOW - 3600,
        results: vec![count("delivered", 1234), count(text, 5)],
        latency: vec![
            Latency {
                within_ms: Some(500),
                count: 7,
            },
            Latency {
                within_ms: None,
                count: 3,
            },
        ],
        sources: vec![SourceFigures {
            name: text.to_owned(),
            fetched: 9,
            failures: vec![count(text, 2)],
        }],
        due: vec![0, 4, 0],
        keys: vec![KeyFigures {
            issuer: text.to_owned(),
            kid: text.to_owned(),
            is_active: true,
            since: Some(NOW - 10 * 86400),
        }],
    }
}

/// Returns all pages, with this text in every place that takes a text.
pub async fn pages(text: &str) -> Vec<Answered> {
    let (frame, owned) = (frame(), || text.to_owned());
    let framed = Frame {
        user: Some(owned()),
        csrf: Some(owned()),
        ..frame.clone()
    };
    let problem = Problem {
        frame: framed,
        status: StatusCode::BAD_REQUEST,
        title: owned(),
        text: owned(),
    };
    let enter_code = EnterCode {
        frame: frame.clone(),
        code: Some(owned()),
        problem: Some(owned()),
    };
    let confirm = Confirm {
        frame: frame.clone(),
        action: "/device".to_owned(),
        hidden: vec![(owned(), owned())],
        client: owned(),
        code: Some(owned()),
        audience: vec![owned()],
        scope: owned(),
        projects: vec![owned()],
        expires_in: Some(3600),
        for_jobs: Some(owned()),
    };
    let done = Done {
        frame: frame.clone(),
        title: owned(),
        text: owned(),
    };
    let operator = |figures| Operator {
        frame: Frame::default(),
        now: NOW,
        figures,
    };
    vec![
        Answered::of("problem", problem).await,
        Answered::of("logged-out", LoggedOut { frame }).await,
        Answered::of("enter-code", enter_code).await,
        Answered::of("confirm", confirm).await,
        Answered::of("done", done).await,
        Answered::of("me", me(text)).await,
        Answered::of("operator", operator(Ok(figures(text)))).await,
        Answered::of("no-figures", operator(Err(owned()))).await,
    ]
}
