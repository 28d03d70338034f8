// SPDX-License-Identifier: MIT OR Apache-2.0

//! A client of the token service for users who authenticate with a MUNGE credential. It gets tokens and logs in for
//! jobs.

use std::time::Duration;

use config::{Discovery, check_url};
use seal::Secret;
use serde::{Deserialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use crate::{
    http::{HttpReply, Peer, SourceError, quote},
    remote::{Remote, ask_here},
};

/// The longest answer, in bytes.
const MAX_BODY: usize = 256 << 10;

/// The token service in messages.
static SERVER: Peer = Peer {
    server: "the token service",
    unreachable: "the token service could not be reached",
    unwell: "the token service returned no usable answer",
    credential: "the certificates for the token service cannot be used",
    address: "--issuer",
    authorities: "--ca-file",
    name: None,
    client_certificate: None,
};

/// The token that a user requests.
#[derive(Debug, Default)]
pub struct Wanted {
    /// The audiences. If empty, all allowed ones.
    pub audience: Vec<String>,
    /// The projects. If empty, all.
    pub projects: Vec<String>,
    /// The lifetime. If none, the longest one.
    pub lifetime: Option<Duration>,
}

/// The token service of a cluster.
pub struct TokenService {
    issuer: String,
    remote: Remote,
    metadata: Metadata,
    limit: Duration,
}

/// A started login for jobs.
#[derive(Deserialize)]
pub struct Begun {
    device_code: Zeroizing<String>,
    /// The code that the user enters.
    pub user_code: String,
    /// The address at which the user enters the code.
    pub verification_uri: String,
    /// The same address with the code, if any.
    pub verification_uri_complete: Option<String>,
    /// The lifetime of the code, in seconds.
    pub expires_in: u64,
    /// The shortest interval between two polls, in seconds.
    #[serde(default)]
    pub interval: Option<u64>,
}

/// The progress of a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The user has not finished the login.
    Pending,
    /// The user has not finished the login, and the poll came too early.
    TooEarly,
    /// The user has logged in.
    Done,
}

impl TokenService {
    /// Fetches the metadata of the service. Every call of this type blocks for at most `limit`.
    ///
    /// # Errors
    /// For the user: the service cannot be reached.
    pub fn connect(issuer: &str, network: &Discovery, limit: Duration) -> Result<Self, String> {
        let remote = Remote::new(network, &SERVER);
        let metadata = ask_here(&SERVER, limit, async {
            let url = format!("{issuer}/.well-known/openid-configuration");
            let reply = remote.get(&url, MAX_BODY, limit).await?;
            if !reply.status.is_success() {
                return Err(remote.unusable(&reply));
            }
            metadata(issuer, &reply)
        });
        let metadata = metadata.map_err(|e| format!("issuer {issuer}: {e}"))?;
        Ok(Self {
            issuer: issuer.to_owned(),
            remote,
            metadata,
            limit,
        })
    }

    /// Returns the uid that MUNGE credentials for the service are restricted to.
    pub fn munge_uid(&self) -> u32 {
        self.metadata.munge_uid
    }

    /// Exchanges a MUNGE credential for a token of the user who encoded it.
    ///
    /// # Errors
    /// For the user: the service issued no token.
    pub fn token(&self, wanted: &Wanted, credential: &str) -> Result<Secret, String> {
        let token: Token = self.post(&self.metadata.token_endpoint, form(wanted, credential))?;
        Ok(Secret::from(token.access_token.as_str()))
    }

    /// Begins a login for the jobs of the user who encoded a MUNGE credential.
    ///
    /// # Errors
    /// For the user: users cannot log in here, or the service does not answer.
    pub fn begin_login(&self, credential: &str) -> Result<Begun, String> {
        let at = self.login_endpoint(self.metadata.device_authorization_endpoint.as_ref())?;
        self.post(at, munge_form(credential, &[]))
    }

    /// Polls the progress of a login.
    ///
    /// # Errors
    /// For the user: the login failed.
    pub fn progress(&self, begun: &Begun) -> Result<Progress, String> {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "urn:ietf:params:oauth:grant-type:device_code")
            .append_pair("device_code", &begun.device_code);
        let form = Zeroizing::new(form.finish().into_bytes());
        match self.send::<Token>(&self.metadata.token_endpoint, form)? {
            Ok(_) => Ok(Progress::Done),
            Err(refusal) => match refusal.error.as_str() {
                "authorization_pending" => Ok(Progress::Pending),
                "slow_down" => Ok(Progress::TooEarly),
                _ => Err(self.refused(&refusal)),
            },
        }
    }

    /// Queries (`status`) or ends (`logout`) the login for the jobs of a user. Returns the time of its start or last
    /// use, in seconds since 1970-01-01T00:00:00Z; none if the user has not logged in.
    ///
    /// # Errors
    /// For the user: users cannot log in here, or the service does not answer.
    pub fn job_login(&self, request: &str, credential: &str) -> Result<Option<u64>, String> {
        let at = self.login_endpoint(self.metadata.job_login_endpoint.as_ref())?;
        let since: Since = self.post(at, munge_form(credential, &[("request", request)]))?;
        Ok(since.since)
    }

    fn login_endpoint<'a>(&self, endpoint: Option<&'a String>) -> Result<&'a String, String> {
        endpoint.ok_or_else(|| format!("users cannot log in at {}: ask the operators", self.issuer))
    }

    fn post<T: DeserializeOwned>(&self, url: &str, form: Zeroizing<Vec<u8>>) -> Result<T, String> {
        self.send(url, form)?.map_err(|refusal| self.refused(&refusal))
    }

    fn refused(&self, refusal: &Refusal) -> String {
        format!(
            "{} refused the request [{}]: {}",
            self.issuer,
            quote(&refusal.error, &[]),
            quote(&refusal.error_description, &[])
        )
    }

    fn send<T: DeserializeOwned>(&self, url: &str, form: Zeroizing<Vec<u8>>) -> Result<Result<T, Refusal>, String> {
        let failed = |e: SourceError| format!("issuer {}: {e}", self.issuer);
        let posted = self.remote.post(url, None, form, MAX_BODY, self.limit);
        let reply = ask_here(&SERVER, self.limit, posted).map_err(failed)?;
        let unusable = || failed(self.remote.unusable(&reply));
        match reply.status.is_success() {
            true => serde_json::from_slice(reply.json()).map(Ok).map_err(|_| unusable()),
            false => serde_json::from_slice(reply.json()).map(Err).map_err(|_| unusable()),
        }
    }
}

/// The used parts of the metadata of the service.
#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    token_endpoint: String,
    device_authorization_endpoint: Option<String>,
    job_login_endpoint: Option<String>,
    munge_uid: u32,
}

#[derive(Deserialize)]
struct Token {
    access_token: Zeroizing<String>,
}

#[derive(Deserialize)]
struct Since {
    since: Option<u64>,
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
    #[serde(default)]
    error_description: String,
}

fn metadata(issuer: &str, reply: &HttpReply) -> Result<Metadata, SourceError> {
    let wrong = |cause: &str| {
        SourceError::permanent(
            SERVER.unwell,
            cause,
            "retry, or check that --issuer is the URL of the token service",
        )
    };
    let metadata: Metadata = serde_json::from_slice(reply.json())
        .map_err(|_| wrong("its metadata lack munge_uid or token_endpoint, as before its agent is connected"))?;
    if metadata.issuer != issuer {
        return Err(wrong("its metadata belong to another issuer"));
    }
    let are_urls = [&metadata.device_authorization_endpoint, &metadata.job_login_endpoint]
        .into_iter()
        .flatten()
        .chain([&metadata.token_endpoint])
        .all(|url| check_url(url).is_ok());
    match are_urls {
        true => Ok(metadata),
        false => Err(wrong("one of its endpoints is not an https URL")),
    }
}

fn munge_form(credential: &str, more: &[(&str, &str)]) -> Zeroizing<Vec<u8>> {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("subject_token_type", "urn:x-workflow-token:munge")
        .append_pair("subject_token", credential)
        .extend_pairs(more);
    Zeroizing::new(form.finish().into_bytes())
}

fn form(wanted: &Wanted, credential: &str) -> Zeroizing<Vec<u8>> {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange")
        .append_pair("subject_token_type", "urn:x-workflow-token:munge")
        .append_pair("subject_token", credential);
    for audience in &wanted.audience {
        form.append_pair("audience", audience);
    }
    if !wanted.projects.is_empty() {
        form.append_pair("project", &wanted.projects.join(" "));
    }
    if let Some(lifetime) = wanted.lifetime {
        form.append_pair("lifetime", &lifetime.as_secs().to_string());
    }
    Zeroizing::new(form.finish().into_bytes())
}
