// SPDX-License-Identifier: MIT OR Apache-2.0

//! A simulated login provider behind the agent of a test, and browsers.

use std::collections::HashMap;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use protocol::{
    Answer, BeginLogin, Bound, Denial, DenialCode, FinishLogin, JobLogin, LoggedIn, LoginQuestion, ProviderSession,
    SecretText, UserRequest,
};

use super::{Response, Service, write_private};

/// The public client `cli`, for the file of a service.
pub const MORE: &str = "[[client]]\nid = \"cli\"\npublic = true\nredirect-uris = [\"http://127.0.0.1/callback\"]\n";

/// The URL of the simulated provider.
const PROVIDER: &str = "https://provider.example.org/authorize";

/// The logins of a simulated agent.
#[derive(Default)]
pub struct Logins {
    /// Logins in progress, by `nonce`.
    begun: HashMap<String, BeginLogin>,
    /// The users with a login for jobs.
    pub for_jobs: Vec<String>,
    /// The revocations that users requested: the user and the job.
    pub revoked: Vec<String>,
    /// Makes tickets JWTs, as those of a real agent are.
    pub has_jwts: bool,
    /// The lifetime of logins in seconds. Default: one hour.
    pub lifetime: Option<u64>,
}

impl Logins {
    /// Replies like an agent whose provider gives a user the code `code-USER`.
    pub fn answer(&mut self, question: LoginQuestion) -> Answer {
        match question {
            LoginQuestion::Begin(begin) => {
                let address = format!("{PROVIDER}?state={}&nonce={}&scope=openid", begin.state, begin.nonce);
                self.begun.insert(begin.nonce.clone(), begin);
                Answer::LoginAt(address)
            }
            LoginQuestion::Finish(finish) => self.finish(&finish).unwrap_or_else(|text| {
                let code = DenialCode::InvalidGrant;
                Answer::Denied(Denial { code, text })
            }),
            LoginQuestion::LogoutToken(SecretText(token)) => match token.split_once(':') {
                Some((sub, sid)) => Answer::LoggedOut(ProviderSession {
                    sub: Some(sub.to_owned()).filter(|sub| !sub.is_empty()),
                    sid: Some(sid.to_owned()).filter(|sid| !sid.is_empty()),
                }),
                None => Answer::Denied(Denial {
                    code: DenialCode::InvalidGrant,
                    text: "canary-reason".to_owned(),
                }),
            },
            LoginQuestion::Bind(SecretText(credential)) => {
                let user = credential.strip_prefix("MUNGE:canary-secret-").unwrap().to_owned();
                let proof = SecretText(format!("canary-secret-proof-{user}").into());
                Answer::Bound(Bound { user, proof })
            }
            LoginQuestion::User { ticket, request } => {
                let user = &user_of(&ticket.0);
                match request {
                    UserRequest::EndJobLogin => self.for_jobs.retain(|other| other != user),
                    UserRequest::JobLogin => {}
                    UserRequest::Revoke { instance, jobid } => {
                        self.revoked.push(format!("{user} {instance} {jobid}"));
                        return Answer::Revoked;
                    }
                }
                Answer::JobLogin(self.for_jobs.iter().any(|other| other == user).then_some(1000))
            }
            LoginQuestion::JobLogin {
                request,
                credential: SecretText(credential),
            } => {
                let user = credential.strip_prefix("MUNGE:canary-secret-").unwrap();
                if request == JobLogin::End {
                    self.for_jobs.retain(|other| other != user);
                }
                Answer::JobLogin(self.for_jobs.iter().any(|other| other == user).then_some(1000))
            }
        }
    }

    fn finish(&mut self, finish: &FinishLogin) -> Result<Answer, String> {
        let begun = self.begun.remove(&finish.nonce).ok_or("the code was used before")?;
        let challenge = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, finish.verifier.0.as_bytes());
        assert_eq!(URL_SAFE_NO_PAD.encode(challenge), begun.challenge);
        assert_eq!(finish.redirect_uri, begun.redirect_uri);
        let user = finish
            .code
            .0
            .strip_prefix("code-")
            .ok_or("the code is wrong")?
            .to_owned();
        if let Some(SecretText(proof)) = &finish.binding {
            if **proof != format!("canary-secret-proof-{user}") {
                return Err("you logged in as another user".to_owned());
            }
            assert!(begun.is_for_jobs);
            self.for_jobs.push(user.clone());
        }
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        Ok(Answer::LoggedIn(Box::new(LoggedIn {
            ticket: SecretText(ticket(&user, self.has_jwts).into()),
            uid: 1000,
            projects: vec!["hydro".to_owned()],
            expires: now + self.lifetime.unwrap_or(3600),
            session: ProviderSession {
                sub: Some(format!("sub-{user}")),
                sid: Some(format!("sid-{user}")),
            },
            end_session: Some("https://provider.example.org/end?client_id=us".to_owned()),
            user,
        })))
    }
}

fn ticket(user: &str, is_jwt: bool) -> String {
    if !is_jwt {
        return format!("canary-secret-ticket-{user}");
    }
    let part = |json: serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let header = part(serde_json::json!({"alg": "EdDSA", "typ": "JWT"}));
    format!(
        "{header}.{}.AAAA",
        part(serde_json::json!({"jti": format!("login-{user}")}))
    )
}

/// Returns the user of a ticket.
fn user_of(ticket: &str) -> String {
    if let Some(user) = ticket.strip_prefix("canary-secret-ticket-") {
        return user.to_owned();
    }
    let claims = URL_SAFE_NO_PAD.decode(ticket.split('.').nth(1).unwrap()).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    let jti = claims["jti"].as_str().unwrap();
    jti.strip_prefix("login-").unwrap().to_owned()
}

/// Starts a service at which users can log in, with the public client `cli`.
pub fn service_with_logins() -> Service {
    let state = "[state]\ndatabase = \"sqlite://DIR/state/state.db\"\nkey-file = \"DIR/keys\"\n\n";
    Service::with_files("address = \"127.0.0.1:0\"", &format!("{state}{MORE}"), |dir| {
        std::fs::create_dir(dir.join("state")).unwrap();
        write_private(&dir.join("keys"), &format!("{}\n", "0123456789abcdef".repeat(4)));
    })
}

/// A browser, with its cookies.
pub struct Browser<'a> {
    pub service: &'a Service,
    pub cookies: HashMap<String, String>,
}

impl<'a> Browser<'a> {
    pub fn new(service: &'a Service) -> Self {
        Self {
            service,
            cookies: HashMap::new(),
        }
    }

    fn headers(&self) -> String {
        let pairs: Vec<String> = self
            .cookies
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        pairs.join("; ")
    }

    fn keep(&mut self, response: Response) -> Response {
        for cookie in &response.cookies {
            let (name, value) = cookie.split(';').next().unwrap().split_once('=').unwrap();
            match cookie.contains("Max-Age=0") {
                true => self.cookies.remove(name),
                false => self.cookies.insert(name.to_owned(), value.to_owned()),
            };
        }
        response
    }

    pub fn get(&mut self, path: &str) -> Response {
        let cookies = self.headers();
        let headers: &[(&str, &str)] = if cookies.is_empty() {
            &[]
        } else {
            &[("Cookie", &cookies)]
        };
        let response = self.service.get_with(path, headers);
        self.keep(response)
    }

    /// Posts a form, with additional headers.
    pub fn post_with(&mut self, path: &str, form: &str, headers: &[(&str, &str)]) -> Response {
        let cookies = self.headers();
        let mut all = vec![("Cookie", cookies.as_str())];
        all.extend(headers);
        let response = self.service.post_as(None, path, form, &all);
        self.keep(response)
    }

    /// Submits the form of a page, with its hidden fields and these.
    pub fn submit(&mut self, page: &Response, action: &str, more: &str) -> Response {
        let form = format!("{}{more}", hidden_fields(page, action));
        self.post_with(action, &form, &[("Origin", super::ISSUER)])
    }

    /// Follows the redirect to the provider. Returns `state`.
    pub fn begin(&mut self, path: &str) -> String {
        let response = self.get(path);
        assert_eq!(response.status, 303, "{response:?}");
        state_of(&response)
    }

    /// Returns from the provider as a user.
    pub fn finish(&mut self, state: &str, user: &str) -> Response {
        self.get(&format!("/callback?state={state}&code=code-{user}"))
    }

    /// Logs in as a user.
    pub fn log_in(&mut self, user: &str) {
        let state = self.begin("/login");
        let response = self.finish(&state, user);
        assert_eq!(
            (response.status, response.header("location")),
            (303, Some("/me")),
            "{response:?}"
        );
    }
}

/// Returns `state` from a redirect to the provider.
pub fn state_of(response: &Response) -> String {
    let location = response.header("location").unwrap();
    assert!(location.starts_with(PROVIDER), "{location}");
    location
        .split("state=")
        .nth(1)
        .unwrap()
        .split('&')
        .next()
        .unwrap()
        .to_owned()
}

/// Returns the hidden fields of the form with an action, each followed by `&`.
pub fn hidden_fields(page: &Response, action: &str) -> String {
    let start = page.body.find(&format!("action=\"{action}\"")).expect(&page.body);
    let form = &page.body[start..];
    let form = &form[..form.find("</form>").unwrap()];
    let mut query = form_urlencoded::Serializer::new(String::new());
    for input in form.split("<input").skip(1).filter(|input| input.contains("hidden")) {
        let attribute = |name: &str| {
            let after = input.split(&format!("{name}=\"")).nth(1)?;
            Some(after.split('"').next()?.replace("&#38;", "&").replace("&amp;", "&"))
        };
        query.append_pair(&attribute("name").unwrap(), &attribute("value").unwrap());
    }
    format!("{}&", query.finish())
}
