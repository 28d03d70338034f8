// SPDX-License-Identifier: MIT OR Apache-2.0

//! The pages for people: escaping, headers, forms and structure.

mod html;
mod samples;
#[path = "../support/mod.rs"]
mod support;

use std::collections::HashSet;

use axum::{body::to_bytes, http::StatusCode};
use html::{Answered, Tag, tags};
use samples::{figures, frame, me, pages};
use service::pages::{Confirm, Frame, LoggedOut, Me, style};
use support::Service;

/// A text that would be markup without escaping, in text and in attributes.
const CANARY: &str = r#"<script>canary('&amp;')</script>" autofocus onfocus="canary()"#;

#[tokio::test]
async fn nothing_from_elsewhere_is_markup() {
    for page in pages(CANARY).await {
        let Answered { name, html, .. } = &page;
        assert!(
            html.contains("canary") || *name == "logged-out",
            "{name}: it does not show the text"
        );
        for tag in page.tags() {
            assert!(!matches!(tag.name, "script" | "style" | "iframe"), "{name}: {tag:?}");
            for (attribute, _) in &tag.attributes {
                let is_strange = attribute.starts_with("on") || matches!(*attribute, "autofocus" | "style");
                assert!(!is_strange, "{name}: {tag:?}");
            }
        }
    }
}

#[tokio::test]
async fn browsers_are_told_to_load_and_keep_nothing() {
    for page in pages("a").await {
        let policy = page.header("content-security-policy");
        let directives: HashSet<&str> = policy.split("; ").collect();
        let expected = [
            "default-src 'none'",
            "style-src 'self'",
            "img-src 'self' data:",
            "form-action 'self'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
        ];
        assert_eq!(directives, expected.into(), "{}", page.name);
        for (name, value) in [
            ("content-type", "text/html; charset=utf-8"),
            ("cache-control", "no-store"),
            ("referrer-policy", "same-origin"),
            ("x-frame-options", "DENY"),
            ("cross-origin-opener-policy", "same-origin"),
        ] {
            assert_eq!(page.header(name), value, "{}", page.name);
        }
        let status = match page.name {
            "problem" => StatusCode::BAD_REQUEST,
            "no-figures" => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::OK,
        };
        assert_eq!(page.status, status, "{}", page.name);
    }
}

#[tokio::test]
async fn a_form_leads_to_the_service_and_the_named_origins_only() {
    let policy = async |origins: &[&str]| {
        let form_origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
        let frame = Frame {
            form_origins,
            ..frame()
        };
        let page = Answered::of("logged-out", LoggedOut { frame }).await;
        let policy = page.header("content-security-policy").to_owned();
        policy.split_once("form-action ").unwrap().1.to_owned()
    };
    assert_eq!(
        policy(&[
            "https://login.example.org/authorize?a=b",
            "http://127.0.0.1:8080/callback",
            "http://[::1]:9/"
        ])
        .await,
        "'self' https://login.example.org http://127.0.0.1:8080 http:"
    );
    for origin in [
        "",
        "/login",
        "https:",
        "//a.example.org",
        "javascript://a.example.org",
        "https://*",
        "https://a;script-src *",
        "https://a b",
        "https://a,b",
        "https://user@a.example.org",
        "https://a\r\nSet-Cookie:a",
    ] {
        assert_eq!(policy(&[origin]).await, "'self'", "{origin}");
    }
}

#[tokio::test]
async fn every_form_has_its_secret_and_every_field_a_label() {
    let mut forms = Vec::new();
    for page in pages("a").await {
        for form in page.html.split("<form").skip(1) {
            let (form, _) = form.split_once("</form>").unwrap();
            let form = format!("<form{form}");
            let tags = tags(&form);
            assert_eq!(tags[0].get("method"), Some("post"), "{}", page.name);
            let action = tags[0].get("action").unwrap();
            forms.push((page.name, action.to_owned()));
            let mut inputs = tags.iter().filter(|tag| tag.name == "input");
            let csrf = inputs
                .clone()
                .find(|input| input.get("name") == Some("csrf"))
                .expect("a field csrf");
            assert_eq!(
                (csrf.get("type"), csrf.get("value")),
                (Some("hidden"), Some("canary-csrf"))
            );
            let is_labelled = |input: &Tag| {
                let mut labels = tags.iter().filter(|tag| tag.name == "label");
                input.get("type") == Some("hidden") || labels.any(|label| label.get("for") == input.get("id"))
            };
            assert!(inputs.all(is_labelled), "{}: {form}", page.name);
            let mut buttons = tags.iter().filter(|tag| tag.name == "button").peekable();
            assert!(buttons.peek().is_some() && buttons.all(|button| !button.text.trim().is_empty()));
        }
    }
    let expected = [
        ("enter-code", "/tokens/device"),
        ("confirm", "/tokens/device"),
        ("me", "/tokens/logout"),
        ("me", "/tokens/me/revoke"),
        ("me", "/tokens/me/end"),
        ("me", "/tokens/me/end"),
    ];
    assert_eq!(forms, expected.map(|(name, action)| (name, action.to_owned())));
}

#[tokio::test]
async fn all_pages_are_for_screen_readers_and_phones() {
    for page in pages("a").await {
        let (name, tags) = (page.name, page.tags());
        let count = |name: &str| tags.iter().filter(|tag| tag.name == name).count();
        assert_eq!(
            (count("header"), count("main"), count("h1"), count("title")),
            (1, 1, 1, count("svg") + 1),
            "{name}"
        );
        assert!(page.html.starts_with("<!DOCTYPE html>\n<html lang=\"en\">"), "{name}");
        assert!(
            page.html
                .contains(r#"<meta name="viewport" content="width=device-width, initial-scale=1">"#)
        );
        let mut level = 0;
        for tag in &tags {
            let heading = ["h1", "h2", "h3"].iter().position(|heading| *heading == tag.name);
            if let Some(heading) = heading {
                assert!(heading < level + 1, "{name}: {tag:?}");
                level = heading + 1;
            }
            let is_labelled = match tag.name {
                "th" => tag.get("scope").is_some(),
                "svg" => tag.get("role") == Some("img") && tag.get("aria-labelledby").is_some(),
                _ => true,
            };
            assert!(is_labelled, "{name}: {tag:?}");
        }
        assert_eq!(count("table"), count("caption"), "{name}");
        assert_eq!(
            (count("svg"), count("svg")),
            (count("desc"), count("details")),
            "{name}"
        );
        let ids: Vec<_> = tags.iter().filter_map(|tag| tag.get("id")).collect();
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len(), "{name}: {ids:?}");
        for tag in &tags {
            for id in ["aria-labelledby", "aria-describedby", "for"]
                .iter()
                .filter_map(|name| tag.get(name))
            {
                assert!(id.split(' ').all(|id| ids.contains(&id)), "{name}: {tag:?}");
            }
            let base = if matches!(name, "operator" | "no-figures") {
                "/"
            } else {
                "/tokens/"
            };
            for url in ["href", "action"].iter().filter_map(|name| tag.get(name)) {
                assert!(url.starts_with(base) || url == "data:,", "{name}: {tag:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_user_sees_jobs_logins_and_sessions() {
    let page = Answered::of("me", me("hydro")).await;
    assert_eq!(
        page.texts(&["h1", "h2"]),
        [
            "Your tokens",
            "You",
            "Jobs that hold tokens",
            "Login for jobs",
            "Other sessions and logins"
        ]
    );
    assert_eq!(page.texts(&["button"]), ["Log out", "Revoke", "End", "End"]);
    let times = [
        r#"<time datetime="2027-01-15T08:01:00Z">15 Jan 2027, 08:01 UTC</time> (in 1 minute)"#,
        r#"<time datetime="2027-01-15T09:00:00Z">15 Jan 2027, 09:00 UTC</time> (in 1 hour)"#,
        r#"<time datetime="2027-01-15T08:30:00Z">15 Jan 2027, 08:30 UTC</time> (in 30 minutes)"#,
        r#"<time datetime="2027-01-15T06:00:00Z">15 Jan 2027, 06:00 UTC</time> (2 hours ago)"#,
    ];
    for time in times {
        assert!(page.html.contains(time), "{time}: {}", page.html);
    }
    let revoke = page
        .tags()
        .into_iter()
        .filter(|tag| tag.get("name").is_some_and(|name| name != "csrf"));
    let fields: Vec<_> = revoke
        .filter_map(|tag| Some((tag.get("name")?, tag.get("value")?)))
        .collect();
    for field in [("instance", "hydro"), ("jobid", "17"), ("id", "hydro")] {
        assert!(fields.contains(&field), "{fields:?}");
    }
    let nothing = Me {
        projects: Vec::new(),
        jobs: Some(Vec::new()),
        sessions: Vec::new(),
        job_login: None,
        ..me("hydro")
    };
    let page = Answered::of("me", nothing).await;
    assert_eq!(page.texts(&["button"]), ["Log out"]);
    for text in [
        "None of your jobs holds a token.",
        "You have no other sessions or logins.",
    ] {
        assert!(page.html.contains(text), "{text}");
    }
    let unknown = Me {
        jobs: None,
        ..me("hydro")
    };
    let page = Answered::of("me", unknown).await;
    assert!(page.html.contains("cannot be listed at the moment"), "{}", page.html);
    assert_eq!(page.texts(&["button"]), ["Log out", "End", "End"]);
}

#[tokio::test]
async fn a_user_can_allow_and_deny() {
    let confirm = || Confirm {
        frame: frame(),
        action: "/authorize".to_owned(),
        hidden: vec![("request".to_owned(), "canary".to_owned())],
        client: "copy-offload".to_owned(),
        code: None,
        audience: vec!["copy".to_owned(), "data".to_owned()],
        scope: "workspace session".to_owned(),
        projects: Vec::new(),
        expires_in: Some(3600),
        for_jobs: None,
    };
    let page = Answered::of("confirm", confirm()).await;
    let buttons = page.tags().into_iter().filter(|tag| tag.name == "button");
    let buttons: Vec<_> = buttons
        .map(|tag| (tag.get("name"), tag.get("value"), tag.text))
        .collect();
    assert_eq!(
        buttons,
        [
            (Some("decision"), Some("allow"), "Allow"),
            (Some("decision"), Some("deny"), "Deny")
        ]
    );
    assert_eq!(page.texts(&["dt"]), ["Services", "Scope", "Expires"]);
    assert_eq!(page.texts(&["code"]), ["copy", "data", "workspace", "session"]);
    assert!(page.html.contains("after 1 hour") && page.html.contains(r#"name="request" value="canary""#));
    assert!(page.html.contains("Continue only if you started this yourself."));
    assert!(!page.html.contains("This login is for jobs."));
    let for_jobs = Confirm {
        for_jobs: Some("alice1".to_owned()),
        code: Some("ABCD-EFGH".to_owned()),
        ..confirm()
    };
    let page = Answered::of("confirm", for_jobs).await;
    assert!(page.html.contains("This login is for jobs.") && page.html.contains("<strong>alice1</strong>"));
    assert!(page.html.contains(r#"<p class="code">ABCD-EFGH</p>"#));
}

#[tokio::test]
async fn the_style_sheet_is_cached_until_it_changes() {
    let page = Answered::of("logged-out", LoggedOut { frame: frame() }).await;
    let link = page.tags().into_iter().find(|tag| tag.get("rel") == Some("stylesheet"));
    let url = link.unwrap().get("href").unwrap();
    let version = url.strip_prefix("/tokens/assets/style.css?v=").unwrap();
    assert_eq!(version.len(), 16);
    let (parts, body) = style().await.into_parts();
    assert_eq!(parts.headers["content-type"], "text/css; charset=utf-8");
    assert_eq!(parts.headers["cache-control"], "public, max-age=31536000, immutable");
    let sheet = String::from_utf8(to_bytes(body, usize::MAX).await.unwrap().to_vec()).unwrap();
    // The policy of the pages forbids the sheet to load anything.
    assert!(sheet.contains("prefers-color-scheme: dark") && !sheet.contains("url(") && !sheet.contains("@import"));
    let service = Service::start();
    let served = service.get(&format!("/assets/style.css?v={version}"));
    assert_eq!(
        (served.status, served.header("content-type")),
        (200, Some("text/css; charset=utf-8"))
    );
    assert_eq!(
        served.header("cache-control"),
        Some("public, max-age=31536000, immutable")
    );
    assert_eq!(served.body, sheet);
}

#[test]
fn operators_see_the_figures_of_the_agent() {
    let service = Service::with("[metrics]\naddress = \"127.0.0.1:0\"");
    let missing = service.internal("/operator");
    assert_eq!(missing.status, 503);
    assert!(
        missing.body.contains("canary-cause-for-the-operator"),
        "{}",
        missing.body
    );
    service
        .agent
        .set(|answers| answers.figures = Some(figures("rule 0 (file)")));
    let page = service.internal("/operator");
    assert_eq!(
        (page.status, page.header("x-content-type-options")),
        (200, Some("nosniff"))
    );
    // A table contains the numbers of each plot, too.
    for (label, number) in [
        ("delivered", "1234"),
        ("rule 0 (file): fetched", "9"),
        ("rule 0 (file): rule 0 (file)", "2"),
        ("0.5", "7"),
        ("more", "3"),
        ("10", "4"),
    ] {
        let row = format!(r#"<tr><th scope="row">{label}</th><td>{number}</td></tr>"#);
        assert!(page.body.contains(&row), "{row}: {}", page.body);
    }
    assert!(
        page.body.contains("signs: rule 0 (file), of rule 0 (file)"),
        "{}",
        page.body
    );
    let link = tags(&page.body)
        .into_iter()
        .find(|tag| tag.get("rel") == Some("stylesheet"))
        .unwrap();
    assert_eq!(service.internal(link.get("href").unwrap()).status, 200);
    // The page is for operators only.
    assert_eq!(service.get("/operator").status, 404);
}
