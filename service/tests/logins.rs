// SPDX-License-Identifier: MIT OR Apache-2.0

//! Users log in, and allow programs to act for them.

mod support;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use support::{
    Response, Service,
    login::{Browser, hidden_fields, service_with_logins, state_of},
};

const DEVICE_CODE: &str = "grant_type=urn:ietf:params:oauth:grant-type:device_code";
const SESSION: &str = "__Host-workflow-token";
const ATTEMPT: &str = "__Host-workflow-token-login";
/// The code verifier of RFC 7636 appendix B.
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const AUTHORIZE: &str = "/authorize?response_type=code&client_id=cli&state=s1&code_challenge_method=S256\
                         &redirect_uri=http%3A%2F%2F127.0.0.1%3A7777%2Fcallback\
                         &code_challenge=E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

fn answer(response: &Response) -> Value {
    assert_eq!(response.status, 200, "{}", response.body);
    serde_json::from_str(&response.body).unwrap()
}

fn error(response: &Response) -> String {
    let body: Value = serde_json::from_str(&response.body).unwrap_or_else(|_| panic!("{response:?}"));
    body["error"].as_str().unwrap().to_owned()
}

/// Returns the subject of the login for which a token was minted.
fn proof(answer: &Value) -> String {
    let payload = answer["access_token"].as_str().unwrap().split('.').nth(1).unwrap();
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap();
    claims["proof"].as_str().unwrap().to_owned()
}

fn device_with(service: &Service, more: &str) -> Value {
    answer(&service.post_as(None, "/device_authorization", more, &[]))
}

fn device(service: &Service, more: &str) -> Value {
    device_with(service, &format!("client_id=cli{more}"))
}

fn redeem_as(service: &Service, client: &str, device: &Value) -> Response {
    let code = device["device_code"].as_str().unwrap();
    let form = format!("{DEVICE_CODE}&device_code={code}{client}");
    service.post_as(None, "/token", &form, &[])
}

fn redeem(service: &Service, device: &Value) -> Response {
    redeem_as(service, "&client_id=cli", device)
}

fn refresh(service: &Service, token: &str) -> Response {
    let form = format!("grant_type=refresh_token&client_id=cli&refresh_token={token}");
    service.post_as(None, "/token", &form, &[])
}

/// Approves the login of a device.
fn allow(browser: &mut Browser, device: &Value) -> Response {
    let code = device["user_code"].as_str().unwrap();
    let page = browser.get(&format!("/device?user_code={code}"));
    assert!(page.body.contains(code), "{page:?}");
    browser.submit(&page, "/device", "decision=allow")
}

#[test]
fn a_browser_logs_in_and_out() {
    let service = service_with_logins();
    let mut browser = Browser::new(&service);
    let response = browser.get("/me");
    assert_eq!(
        (response.status, response.header("location")),
        (303, Some("/login?return=%2Fme"))
    );
    browser.log_in("alice");
    assert!(!browser.cookies.contains_key(ATTEMPT));
    let page = browser.get("/me");
    assert!(
        page.status == 200 && page.body.contains("alice") && page.body.contains("hydro"),
        "{page:?}"
    );
    assert!(!page.body.contains("canary-secret"));
    let session = browser.cookies[SESSION].clone();
    let response = browser.submit(&page, "/logout", "");
    let location = response.header("location").unwrap();
    assert!(
        location.starts_with("https://provider.example.org/end?client_id=us&"),
        "{location}"
    );
    assert!(location.contains("post_logout_redirect_uri=https%3A%2F%2Ftokens.example.org%2Flogged-out"));
    assert!(!browser.cookies.contains_key(SESSION));
    // A copy of the cookie is useless after the logout.
    browser.cookies.insert(SESSION.to_owned(), session);
    assert_eq!(browser.get("/me").status, 303);
    assert_eq!(browser.get("/logged-out").status, 200);
    let audit = std::fs::read_to_string(service.dir.path().join("audit")).unwrap();
    let events: Vec<Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let events: Vec<&str> = events.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["login", "logout"]);
    assert!(!audit.contains("canary-secret"));
}

#[test]
fn a_login_ends_in_the_browser_and_attempt_that_it_began_in() {
    let service = service_with_logins();
    let (mut alice, mut eve) = (Browser::new(&service), Browser::new(&service));
    let state = alice.begin("/login");
    let of_eve = eve.begin("/login");
    // With swapped cookies, neither browser has a session.
    for (browser, state) in [(&mut eve, &state), (&mut alice, &of_eve)] {
        let attempt = browser.cookies.get(ATTEMPT).cloned();
        assert_eq!(browser.finish(state, "alice").status, 400);
        assert!(!browser.cookies.contains_key(SESSION) && !browser.cookies.contains_key(ATTEMPT));
        browser.cookies.insert(ATTEMPT.to_owned(), attempt.unwrap());
    }
    let attempt = alice.cookies[ATTEMPT].clone();
    for query in [
        "code=code-alice".to_owned(),
        format!("state={state}"),
        format!("state={state}&state={state}&code=code-alice"),
        format!("state={state}&code=code-alice&code=code-alice"),
        format!("state={state}x&code=code-alice"),
        format!("state={state}&error=access_denied"),
        format!("state={state}&code=wrong"),
    ] {
        alice.cookies.insert(ATTEMPT.to_owned(), attempt.clone());
        let response = alice.get(&format!("/callback?{query}"));
        assert!(matches!(response.status, 400 | 403), "{query}: {response:?}");
        assert!(!alice.cookies.contains_key(SESSION), "{query}");
    }
    // A changed cookie is not valid.
    let mut changed = attempt.clone().into_bytes();
    let last = changed.len() - 1;
    changed[last] ^= 1;
    alice
        .cookies
        .insert(ATTEMPT.to_owned(), String::from_utf8(changed).unwrap());
    assert_eq!(alice.finish(&state, "alice").status, 400);
    // The cookie of the session is not valid here, either.
    let state = alice.begin("/login");
    alice.finish(&state, "alice");
    let session = alice.cookies[SESSION].clone();
    alice.cookies.insert(ATTEMPT.to_owned(), session);
    assert_eq!(alice.finish(&state, "alice").status, 400);
    // A code is valid once, even if the browser has kept the cookie.
    let state = alice.begin("/login");
    let attempt = alice.cookies[ATTEMPT].clone();
    alice.finish(&state, "alice");
    alice.cookies.insert(ATTEMPT.to_owned(), attempt);
    assert_eq!(alice.finish(&state, "alice").status, 403);
}

#[test]
fn a_login_returns_to_pages_of_the_service_only() {
    let service = service_with_logins();
    for back in [
        "https://evil.example.org/",
        "//evil.example.org/",
        "/\\evil.example.org",
        "/me/../../evil",
        "/%2f/evil",
        "https://tokens.example.org@evil.example.org/me",
        "/mee",
        "/me#x y",
        "me",
        "/me\r\nX: y",
        "/callback",
    ] {
        let query = form_urlencoded::byte_serialize(back.as_bytes()).collect::<String>();
        let response = service.get(&format!("/login?return={query}"));
        assert_eq!(response.status, 400, "{back}: {response:?}");
    }
    assert_eq!(service.get("/login?return=/me&return=/me").status, 400);
    let mut browser = Browser::new(&service);
    let state = browser.begin("/login?return=%2Fdevice%3Fuser_code%3DWDJB-MJHT");
    let response = browser.finish(&state, "alice");
    assert_eq!(response.header("location"), Some("/device?user_code=WDJB-MJHT"));
}

#[test]
fn a_session_is_another_one_after_each_login() {
    let service = service_with_logins();
    let mut browser = Browser::new(&service);
    browser.cookies.insert(SESSION.to_owned(), "fixed".to_owned());
    browser.log_in("alice");
    let first = browser.cookies[SESSION].clone();
    assert_ne!(first, "fixed");
    browser.log_in("alice");
    assert_ne!(browser.cookies[SESSION], first);
    let mut other = Browser::new(&service);
    other.cookies.insert(SESSION.to_owned(), first);
    assert_eq!(other.get("/me").status, 303, "the former session is still valid");
    // A repeated cookie counts as none.
    let twice = format!("{SESSION}={0}; {SESSION}={0}", browser.cookies[SESSION]);
    assert_eq!(service.get_with("/me", &[("Cookie", &twice)]).status, 303);
}

#[test]
fn a_form_of_another_site_changes_nothing() {
    let service = service_with_logins();
    let mut browser = Browser::new(&service);
    browser.log_in("alice");
    let page = browser.get("/me");
    let fields = hidden_fields(&page, "/logout");
    let mut eve = Browser::new(&service);
    eve.log_in("eve");
    let of_eve = hidden_fields(&eve.get("/me"), "/logout");
    let evil = [("Origin", "https://evil.example.org")];
    let device = device(&service, "");
    let code = format!("user_code={}&decision=allow&", device["user_code"].as_str().unwrap());
    let authorize = format!("{}&decision=allow&", AUTHORIZE.split_once('?').unwrap().1);
    for path in ["/logout", "/me/end", "/device", "/authorize"] {
        let more = match path {
            "/device" => &code,
            "/authorize" => &authorize,
            _ => "id=eHg&",
        };
        for (form, headers) in [
            (more.to_owned(), &[][..]),
            (format!("{more}csrf="), &[]),
            (format!("{more}{of_eve}"), &[]),
            (format!("{more}{fields}"), &evil),
            (format!("{more}{fields}"), &[("Origin", "null")]),
        ] {
            let response = browser.post_with(path, &form, headers);
            assert_eq!(response.status, 400, "{path} {form} {headers:?}: {response:?}");
        }
    }
    assert_eq!(browser.get("/me").status, 200);
    assert_eq!(error(&redeem(&service, &device)), "authorization_pending");
}

#[test]
fn a_device_gets_a_token_when_its_user_allows_it() {
    let service = service_with_logins();
    let device = device(&service, "&audience=a&scope=openid+offline_access&project=hydro");
    let code = device["user_code"].as_str().unwrap();
    assert_eq!(device["verification_uri"], "https://tokens.example.org/device");
    assert_eq!((&device["interval"], &device["expires_in"]), (&json!(5), &json!(600)));
    assert_eq!(error(&redeem(&service, &device)), "authorization_pending");
    assert_eq!(error(&redeem(&service, &device)), "slow_down");
    let mut browser = Browser::new(&service);
    // The page requires a login, which returns to it.
    let response = browser.get(&format!("/device?user_code={code}"));
    let login = response.header("location").unwrap().to_owned();
    let state = browser.begin(&login);
    let response = browser.finish(&state, "alice");
    assert_eq!(
        response.header("location").unwrap(),
        format!("/device?user_code={code}")
    );
    // The code is accepted in every form that people type.
    let page = browser.get("/device");
    let typed = code.to_lowercase().replace('-', " ");
    let response = browser.submit(&page, "/device", &format!("user_code={}", typed.replace(' ', "+")));
    assert_eq!(response.status, 303, "{response:?}");
    let page = browser.get(response.header("location").unwrap());
    assert!(page.body.contains("cli") && page.body.contains(code), "{page:?}");
    let done = browser.submit(&page, "/device", "decision=allow");
    assert!(done.body.contains("You are logged in"), "{done:?}");
    let given = answer(&redeem(&service, &device));
    assert_eq!(proof(&given), "login:canary-secret-ticket-alice");
    assert_eq!(given["scope"], "workspace");
    // The code is valid once.
    assert_eq!(error(&redeem(&service, &device)), "expired_token");
    let page = browser.get(&format!("/device?user_code={code}"));
    assert!(page.body.contains("wrong or has expired"), "{page:?}");
}

#[test]
fn a_device_that_is_denied_or_of_another_client_gets_nothing() {
    let service = service_with_logins();
    let mut browser = Browser::new(&service);
    browser.log_in("alice");
    let first = device(&service, "");
    let code = first["user_code"].as_str().unwrap();
    let page = browser.get(&format!("/device?user_code={code}"));
    browser.submit(&page, "/device", "decision=deny");
    assert_eq!(error(&redeem(&service, &first)), "access_denied");
    assert_eq!(error(&redeem(&service, &first)), "expired_token");
    let second = device(&service, "");
    allow(&mut browser, &second);
    let code = second["device_code"].as_str().unwrap();
    let form = format!("{DEVICE_CODE}&device_code={code}");
    assert_eq!(error(&service.post("/token", &form)), "expired_token");
    assert_eq!(error(&service.post_as(None, "/token", &form, &[])), "invalid_client");
    answer(&redeem(&service, &second));
    assert_eq!(
        error(&service.post_as(None, "/device_authorization", "client_id=other", &[])),
        "invalid_client"
    );
}

#[test]
fn a_refresh_token_is_good_once_and_ends_with_its_theft() {
    let service = service_with_logins();
    let mut browser = Browser::new(&service);
    browser.log_in("alice");
    let device = device(&service, "&audience=a");
    allow(&mut browser, &device);
    let token = |answer: &Value| answer["refresh_token"].as_str().unwrap().to_owned();
    let first = token(&answer(&redeem(&service, &device)));
    let given = answer(&refresh(&service, &first));
    assert_eq!(proof(&given), "login:canary-secret-ticket-alice");
    let second = token(&given);
    assert_ne!(first, second);
    // A program gets no more than was granted.
    let wider = format!("grant_type=refresh_token&client_id=cli&audience=b&refresh_token={second}");
    assert_eq!(error(&service.post_as(None, "/token", &wider, &[])), "invalid_target");
    // Another client cannot use the token.
    let other = format!("grant_type=refresh_token&refresh_token={second}");
    assert_eq!(error(&service.post("/token", &other)), "invalid_grant");
    // If the agent cannot mint a token, the refresh token stays valid.
    service
        .agent
        .set(|answers| answers.denied = Some(protocol::DenialCode::InvalidGrant));
    assert_eq!(error(&refresh(&service, &second)), "invalid_grant");
    service.agent.set(|answers| answers.denied = None);
    let third = token(&answer(&refresh(&service, &second)));
    // The use of a former token ends the family.
    assert_eq!(error(&refresh(&service, &second)), "invalid_grant");
    assert_eq!(error(&refresh(&service, &third)), "invalid_grant");
    assert!(service.log().contains("was used twice"), "{}", service.log());
}

#[test]
fn a_client_revokes_its_refresh_token_and_a_user_ends_logins() {
    let service = service_with_logins();
    let mut browser = Browser::new(&service);
    browser.log_in("alice");
    let login = |browser: &mut Browser| {
        let device = device(&service, "");
        allow(browser, &device);
        answer(&redeem(&service, &device))["refresh_token"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let token = login(&mut browser);
    // A stranger cannot revoke it.
    service.post("/revoke", &format!("token={token}"));
    let token = answer(&refresh(&service, &token))["refresh_token"]
        .as_str()
        .unwrap()
        .to_owned();
    let revoked = service.post_as(None, "/revoke", &format!("client_id=cli&token={token}"), &[]);
    assert_eq!(revoked.status, 200);
    assert_eq!(error(&refresh(&service, &token)), "invalid_grant");
    let token = login(&mut browser);
    let page = browser.get("/me");
    assert!(page.body.contains("cli"), "{page:?}");
    // Another user cannot end it.
    let mut eve = Browser::new(&service);
    eve.log_in("eve");
    let fields = hidden_fields(&page, "/me/end");
    let id = fields.split("id=").nth(1).unwrap().split('&').next().unwrap();
    let of_eve = hidden_fields(&eve.get("/me"), "/logout");
    let response = eve.post_with("/me/end", &format!("{of_eve}id={id}"), &[]);
    assert_eq!(response.status, 303);
    let token = answer(&refresh(&service, &token))["refresh_token"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(browser.submit(&page, "/me/end", "").status, 303);
    assert_eq!(error(&refresh(&service, &token)), "invalid_grant");
}

#[test]
fn a_program_with_a_browser_gets_a_token_by_a_code() {
    let service = service_with_logins();
    let mut browser = Browser::new(&service);
    browser.log_in("alice");
    let page = browser.get(AUTHORIZE);
    assert_eq!(page.status, 200, "{page:?}");
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("http://127.0.0.1:7777"), "{policy}");
    let code = |browser: &mut Browser| {
        let response = browser.submit(&page, "/authorize", "decision=allow");
        let location = response
            .header("location")
            .unwrap_or_else(|| panic!("{response:?}"))
            .to_owned();
        assert!(
            location.starts_with("http://127.0.0.1:7777/callback?code="),
            "{location}"
        );
        assert!(location.contains("&state=s1") && location.contains("&iss=https%3A%2F%2Ftokens.example.org"));
        location
            .split("code=")
            .nth(1)
            .unwrap()
            .split('&')
            .next()
            .unwrap()
            .to_owned()
    };
    let redeem = |code: &str, more: &str| {
        let form = format!("grant_type=authorization_code&client_id=cli&code={code}&{more}");
        service.post_as(None, "/token", &form, &[])
    };
    let redirect = "redirect_uri=http://127.0.0.1:7777/callback";
    let first = code(&mut browser);
    let given = answer(&redeem(&first, &format!("code_verifier={VERIFIER}&{redirect}")));
    assert_eq!(proof(&given), "login:canary-secret-ticket-alice");
    let token = given["refresh_token"].as_str().unwrap();
    // A second use of the code ends the family that began with it.
    assert_eq!(
        error(&redeem(&first, &format!("code_verifier={VERIFIER}&{redirect}"))),
        "invalid_grant"
    );
    assert_eq!(error(&refresh(&service, token)), "invalid_grant");
    for wrong in [
        format!("code_verifier={VERIFIER}x&{redirect}"),
        format!("code_verifier={VERIFIER}&redirect_uri=http://127.0.0.1:7778/callback"),
        format!("code_verifier={VERIFIER}"),
    ] {
        let code = code(&mut browser);
        assert_eq!(error(&redeem(&code, &wrong)), "invalid_grant", "{wrong}");
        // A wrong guess consumes the code.
        let right = format!("code_verifier={VERIFIER}&{redirect}");
        assert_eq!(error(&redeem(&code, &right)), "invalid_grant", "{wrong}");
    }
    let code = code(&mut browser);
    assert_eq!(error(&redeem(&code, redirect)), "invalid_request", "without a verifier");
    let denied = browser.submit(&page, "/authorize", "decision=deny");
    assert!(denied.header("location").unwrap().contains("error=access_denied"));
}

#[test]
fn requests_for_codes_go_to_known_addresses_only() {
    let service = service_with_logins();
    let mut browser = Browser::new(&service);
    for (change, to) in [
        ("client_id=cli", "client_id=other"),
        ("client_id=cli", "client_id=copy"),
        ("127.0.0.1%3A7777%2Fcallback", "127.0.0.1%3A7777%2Fcallback%2Fx"),
        ("127.0.0.1%3A7777%2Fcallback", "evil.example.org%2Fcallback"),
        (
            "127.0.0.1%3A7777%2Fcallback",
            "127.0.0.1%3A7777%40evil.example.org%2Fcallback",
        ),
        ("127.0.0.1%3A7777%2Fcallback", "127.0.0.1.evil.example.org%2Fcallback"),
        ("http%3A%2F%2F127.0.0.1%3A7777", "https%3A%2F%2F127.0.0.1%3A7777"),
        ("client_id=cli", "client_id=cli&client_id=cli"),
    ] {
        assert!(AUTHORIZE.contains(change));
        let response = browser.get(&AUTHORIZE.replace(change, to));
        assert_eq!(
            (response.status, response.header("location")),
            (400, None),
            "{to}: {response:?}"
        );
    }
    for (change, to, says) in [
        ("response_type=code", "response_type=token", "unsupported_response_type"),
        (
            "code_challenge_method=S256",
            "code_challenge_method=plain",
            "invalid_request",
        ),
        ("code_challenge_method=S256", "x=y", "invalid_request"),
        ("code_challenge=E9", "code_challenge=9", "invalid_request"),
        ("state=s1", "state=s1&request_uri=x", "invalid_request"),
    ] {
        assert!(AUTHORIZE.contains(change));
        let response = browser.get(&AUTHORIZE.replace(change, to));
        let location = response
            .header("location")
            .unwrap_or_else(|| panic!("{to}: {response:?}"));
        assert!(
            location.starts_with("http://127.0.0.1:7777/callback?error="),
            "{location}"
        );
        assert!(
            location.contains(says) && location.contains("state=s1"),
            "{to}: {location}"
        );
    }
}

#[test]
fn a_login_for_jobs_is_of_the_user_whose_jobs_they_are() {
    let service = service_with_logins();
    let munge = "subject_token_type=urn:x-workflow-token:munge&subject_token=MUNGE:canary-secret-alice";
    for (user, is_same) in [("eve", false), ("alice", true)] {
        let device = device_with(&service, munge);
        let redeem = |service, device| redeem_as(service, "", device);
        let mut browser = Browser::new(&service);
        browser.log_in(user);
        let code = device["user_code"].as_str().unwrap();
        let page = browser.get(&format!("/device?user_code={code}"));
        assert!(page.body.contains("alice"), "it says whose jobs: {page:?}");
        let policy = page.header("content-security-policy").unwrap();
        assert!(policy.contains("https://provider.example.org"), "{policy}");
        let response = browser.submit(&page, "/device", "decision=allow");
        // A session is not enough: the user must log in again.
        assert_eq!(error(&redeem(&service, &device)), "authorization_pending");
        let state = state_of(&response);
        let response = browser.finish(&state, user);
        match is_same {
            false => {
                assert!(
                    response.status == 403 && response.body.contains("another user"),
                    "{response:?}"
                );
                assert_eq!(error(&redeem(&service, &device)), "slow_down");
            }
            true => {
                assert_eq!(response.header("location"), Some("/done"));
                assert!(browser.get("/done").body.contains("terminal"));
                let given = answer(&redeem(&service, &device));
                assert_eq!(
                    (&given["token_type"], &given["access_token"]),
                    (&json!("N_A"), &json!(""))
                );
                assert_eq!(error(&redeem(&service, &device)), "expired_token");
            }
        }
    }
    assert_eq!(service.agent.get(|answers| answers.logins.for_jobs.clone()), ["alice"]);
    let ask = |request| service.post_as(None, "/job-login", &format!("request={request}&{munge}"), &[]);
    assert_eq!(answer(&ask("status")), json!({"since": 1000}));
    assert_eq!(error(&ask("login")), "invalid_request");
    assert_eq!(answer(&ask("logout")), json!({"since": null}));
    assert_eq!(answer(&ask("status")), json!({"since": null}));
    let wrong = "subject_token_type=urn:x-workflow-token:munge&subject_token=x";
    assert_eq!(
        error(&service.post_as(None, "/device_authorization", wrong, &[])),
        "invalid_request"
    );
}

#[test]
fn a_user_sees_the_jobs_that_hold_tokens_and_revokes_them() {
    let service = service_with_logins();
    let job = protocol::JobFacts {
        instance: "hpc".to_owned(),
        jobid: 17,
        uid: 1000,
    };
    service.agent.set(|answers| {
        answers.held = vec![protocol::Held {
            job,
            name: "17-<b>canary".to_owned(),
            variables: vec!["DW_WORKFLOW_TOKEN".to_owned()],
            expires_at: None,
            renew_at: None,
        }];
        answers.logins.for_jobs = vec!["alice".to_owned()];
    });
    let mut browser = Browser::new(&service);
    browser.log_in("alice");
    let page = browser.get("/me");
    assert!(
        page.body.contains("DW_WORKFLOW_TOKEN") && !page.body.contains("<b>canary"),
        "{page:?}"
    );
    let fields = hidden_fields(&page, "/me/revoke");
    assert!(
        fields.contains("instance=hpc") && fields.contains("jobid=17"),
        "{fields}"
    );
    assert_eq!(
        browser.post_with("/me/revoke", "instance=hpc&jobid=17", &[]).status,
        400
    );
    assert_eq!(browser.submit(&page, "/me/revoke", "").status, 303);
    assert_eq!(
        service.agent.get(|answers| answers.logins.revoked.clone()),
        ["alice hpc 17"]
    );
    // The user ends the login for jobs there, too.
    assert!(fields.contains("csrf=") && page.body.contains("job-login"));
    assert_eq!(browser.submit(&page, "/me/end", "").status, 303);
    assert_eq!(service.agent.get(|answers| answers.logins.for_jobs.len()), 0);
}

#[test]
fn the_provider_ends_sessions() {
    let service = service_with_logins();
    let (mut alice, mut other, mut bob) = (Browser::new(&service), Browser::new(&service), Browser::new(&service));
    alice.log_in("alice");
    bob.log_in("bob");
    let logout = |token: &str| {
        let form = format!("logout_token={token}");
        service.post_as(None, "/backchannel-logout", &form, &[]).status
    };
    assert_eq!(logout("nonsense"), 400);
    assert_eq!(logout("sub-bob:sid-alice"), 200);
    assert_eq!(alice.get("/me").status, 200, "it is not of this user");
    assert_eq!(logout("sub-alice:sid-alice"), 200);
    assert_eq!((alice.get("/me").status, bob.get("/me").status), (303, 200));
    alice.log_in("alice");
    other.log_in("alice");
    assert_eq!(logout(":sid-alice"), 200);
    assert_eq!((alice.get("/me").status, other.get("/me").status), (303, 303));
    bob.log_in("bob");
    assert_eq!(logout("sub-bob:"), 200);
    assert_eq!(bob.get("/me").status, 303);
}

#[test]
fn a_page_of_the_same_origin_exchanges_its_session_for_a_token() {
    let service = service_with_logins();
    let mut browser = Browser::new(&service);
    let same = [("Sec-Fetch-Site", "same-origin"), ("Origin", support::ISSUER)];
    assert_eq!(error(&browser.post_with("/session/token", "", &same)), "invalid_grant");
    browser.log_in("alice");
    let given = answer(&browser.post_with("/session/token", "audience=a", &same));
    assert_eq!(given["token"], given["access_token"]);
    assert_eq!(proof(&given), "login:canary-secret-ticket-alice");
    assert_eq!(given.get("refresh_token"), None);
    answer(&browser.post_with("/session/token", "", &[("X-Requested-With", "fetch")]));
    for headers in [
        &[][..],
        &[("Sec-Fetch-Site", "cross-site")],
        &[("Sec-Fetch-Site", "same-site")],
        &[
            ("Sec-Fetch-Site", "same-origin"),
            ("Origin", "https://evil.example.org"),
        ],
    ] {
        assert_eq!(
            error(&browser.post_with("/session/token", "", headers)),
            "invalid_request",
            "{headers:?}"
        );
    }
    assert_eq!(service.get_with("/session/token", &same).status, 405);
}

#[test]
fn a_session_ends_in_time_and_outlives_the_service() {
    let mut service = service_with_logins();
    service.agent.set(|answers| answers.logins.lifetime = Some(2));
    let cookie = {
        let mut browser = Browser::new(&service);
        browser.log_in("alice");
        browser.cookies[SESSION].clone()
    };
    support::until("the session ends", || {
        service
            .get_with("/me", &[("Cookie", &format!("{SESSION}={cookie}"))])
            .status
            == 303
    });
    service.agent.set(|answers| answers.logins.lifetime = None);
    let cookie = {
        let mut browser = Browser::new(&service);
        browser.log_in("alice");
        browser.cookies[SESSION].clone()
    };
    service.restart();
    let response = service.get_with("/me", &[("Cookie", &format!("{SESSION}={cookie}"))]);
    assert_eq!(response.status, 200, "{response:?}");
    let database = std::fs::read(service.dir.path().join("state/state.db")).unwrap();
    for secret in ["canary-secret", &cookie] {
        assert!(!database.windows(secret.len()).any(|window| window == secret.as_bytes()));
    }
}

#[test]
fn a_logout_at_the_provider_revokes_the_login() {
    let service = service_with_logins();
    service.agent.set(|answers| answers.logins.has_jwts = true);
    // Carol has left her session before. Programs may still act by her login.
    for (user, token) in [("alice", ":sid-alice"), ("bob", "sub-bob:"), ("carol", ":sid-carol")] {
        let mut browser = Browser::new(&service);
        browser.log_in(user);
        if user == "carol" {
            let page = browser.get("/me");
            assert_eq!(browser.submit(&page, "/logout", "").status, 303);
        }
        let response = service.post_as(None, "/backchannel-logout", &format!("logout_token={token}"), &[]);
        assert_eq!(response.status, 200);
        assert_eq!(browser.get("/me").status, 303);
    }
    let mut revoked: Vec<String> = service.agent.get(|answers| answers.revoked.iter().cloned().collect());
    revoked.sort();
    assert_eq!(revoked, ["login-alice", "login-bob", "login-carol"]);
}
