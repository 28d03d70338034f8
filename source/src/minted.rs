// SPDX-License-Identifier: MIT OR Apache-2.0

//! `source = "issuer"`: tokens that the instance mints for one job each.

use std::{
    fmt::Display,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use config::{SlurmJob, Values};
use seal::{ExposeSecret, Variables};
use secrecy::SecretString;
use token::{ClaimsToIssue, Grant, Job, JobScheduler, Session, SigningKey, StatusEntry, Token, workflow_lifetime};

use crate::{
    Error, Fetched, Slot, Source, blocking,
    keys::KeyStore,
    status_lists::{StatusLists, TokenToList, uri_of},
};

#[derive(Clone)]
pub(crate) struct Minted {
    settings: config::Issuer,
    keys: Arc<KeyStore>,
    statuses: Option<Arc<StatusLists>>,
    variable: String,
    timeout: Duration,
}

impl Minted {
    pub(crate) fn new(settings: &config::Issuer, variable: String, timeout: Duration) -> Result<Self, String> {
        let keys = crate::expand(&settings.keys).map_err(|e| format!("workflow-token.issuer.keys: {e}"))?;
        Ok(Self {
            settings: settings.clone(),
            keys: KeyStore::signing(keys),
            statuses: settings.status_list.as_deref().map(StatusLists::of),
            variable,
            timeout,
        })
    }

    /// Mints the token of a job. Reads the key files, so it blocks.
    fn mint(&self, job: &Values) -> Fetched {
        let (keys, mut warnings) = self.keys.keys();
        let result = self.claims(job).and_then(|claims| {
            let unreadable = |e: &dyn Display| Error::new("there is no key to sign it with", e);
            let keys = keys.map_err(|e| unreadable(&e))?;
            let key = keys.signing().ok_or_else(|| {
                let path = self.keys.path().display();
                unreadable(&format!(
                    "{path}: no key is active: activate one with `[flux] workflow-token rotate promote`"
                ))
            })?;
            let mut variables = Variables::new();
            // A token contains no NUL, and the configuration parser has checked the name.
            let token = self.sign(key, claims, job.jobid, &mut warnings);
            let inserted = variables.insert(&self.variable, token);
            inserted.map_err(|e| Error::new("it has no usable value", e))?;
            Ok(variables)
        });
        Fetched {
            warnings,
            ..Fetched::of(result)
        }
    }

    /// Signs a token with an entry in a status list, if configured. If the list cannot be used, the token has no entry,
    /// so that the job can start.
    fn sign(&self, key: &SigningKey, claims: ClaimsToIssue, jobid: u64, warnings: &mut Vec<String>) -> SecretString {
        let Some(statuses) = &self.statuses else {
            return token::mint(key, &claims);
        };
        sign_with_entry(statuses, key, &claims, jobid).unwrap_or_else(|e| {
            warnings.extend(statuses.report(&e));
            token::mint(key, &claims)
        })
    }

    fn claims(&self, job: &Values) -> Result<ClaimsToIssue, Error> {
        let settings = &self.settings;
        let no_name = || {
            let why = format!(
                "the claim `sub` needs a user name, but uid {} has none: add the user",
                job.uid
            );
            Error::new("its owner has no name", why)
        };
        let unsuitable = |e: &dyn Display| Error::new("its claims cannot be formed", e);
        let workspace = match (&settings.workspace, &job.project) {
            (Some(workspace), _) => workspace.fill(job).map_err(|e| unsuitable(&e))?,
            (None, Some(project)) => project.clone(),
            (None, None) => {
                let why =
                    "the job is in no project, and its rule has no workspace: use -S project=NAME, or set workspace";
                return Err(Error::new("it is in no project", why));
            }
        };
        let workspace = workspace.parse().map_err(|e: token::NameError| {
            unsuitable(&format!("the workspace `{}` is {e}", workspace.escape_debug()))
        })?;
        let id: Session = job.f58.parse().map_err(|e: token::SessionError| unsuitable(&e))?;
        Ok(ClaimsToIssue {
            iss: settings.name.clone(),
            sub: job.user.clone().filter(|name| !name.is_empty()).ok_or_else(no_name)?,
            aud: match &job.request.audience {
                Some(audience) => vec![audience.clone()],
                None => settings.audience.clone(),
            },
            iat: SystemTime::now(),
            lifetime: {
                let lifetime = workflow_lifetime(job.limit, settings.margin, settings.max_lifetime);
                job.request
                    .lifetime
                    .map_or(lifetime, |wanted| wanted.min(settings.max_lifetime))
            },
            grant: Grant::Session {
                workspace,
                job: Job {
                    id,
                    uid: job.uid,
                    instance: settings.instance.clone().unwrap_or_else(|| job.instance.clone()),
                    scheduler: match job.slurm {
                        Some(SlurmJob { array, restarts }) => JobScheduler::Slurm { array, restarts },
                        None => JobScheduler::Flux,
                    },
                },
            },
            status: None,
        })
    }
}

fn sign_with_entry(
    statuses: &StatusLists,
    key: &SigningKey,
    claims: &ClaimsToIssue,
    jobid: u64,
) -> Result<SecretString, String> {
    let Grant::Session { job, .. } = &claims.grant else {
        return Err("the token belongs to no job".to_owned());
    };
    let place = statuses.give(&job.instance, claims.iat)?;
    let status = StatusEntry {
        index: place.index,
        uri: uri_of(&claims.iss, place.list),
    };
    let claims = ClaimsToIssue {
        status: Some(status),
        ..claims.clone()
    };
    let token = token::mint(key, &claims);
    let shown = Token::inspect(token.expose_secret()).map_err(|e| e.to_string())?;
    let shown = shown.claims().as_map();
    // The seconds fit until 2106.
    let seconds = |claim: &str| u32::try_from(shown.get(claim).and_then(|seconds| seconds.as_u64()).unwrap_or(0));
    let of = TokenToList {
        jobid,
        uid: job.uid,
        sub: &claims.sub,
        jti: shown
            .get("jti")
            .and_then(|jti| jti.as_str())
            .ok_or("the token has no jti")?,
        iat: seconds("iat").unwrap_or(u32::MAX),
        exp: seconds("exp").unwrap_or(u32::MAX),
    };
    statuses.record(&job.instance, place, &of)?;
    Ok(token)
}

#[async_trait]
impl Source for Minted {
    async fn fetch(&self, job: &Values, slot: Slot) -> Fetched {
        let (minted, job) = (self.clone(), job.clone());
        let mint = move || minted.mint(&job);
        let minted = blocking("its token could not be minted", self.timeout, slot, mint).await;
        minted.unwrap_or_else(Fetched::failed)
    }

    fn fetch_here(&self, job: &Values) -> Option<Fetched> {
        Some(self.mint(job))
    }

    fn is_blocking(&self) -> bool {
        true
    }

    /// For the claim `sub`.
    fn needs_user(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use config::{KeyPath, Template};
    use token::{Algorithm, Claims, Scope, Verifier};

    use super::*;
    use crate::keys;

    const HOUR: Duration = Duration::from_secs(3600);

    fn settings(keys: &std::path::Path) -> config::Issuer {
        config::Issuer {
            keys: KeyPath::parse(keys.to_str().unwrap()).unwrap(),
            name: "https://hpc.example.org".to_owned(),
            audience: vec!["copy-offload".to_owned()],
            margin: Duration::from_secs(600),
            max_lifetime: 24 * HOUR,
            instance: None,
            status_list: None,
            workspace: None,
        }
    }

    fn job() -> Values {
        Values {
            f58: "ƒ2oLkTLb1".to_owned(),
            jobid: 1,
            uid: 1000,
            user: Some("alice".to_owned()),
            project: Some("hydro".to_owned()),
            limit: Some(HOUR),
            instance: "fluke".to_owned(),
            slurm: None,
            request: config::TokenRequest::default(),
        }
    }

    fn mint(settings: &config::Issuer, job: &Values) -> Result<String, Error> {
        let issuer = Minted::new(settings, "T".to_owned(), Duration::from_secs(60)).unwrap();
        let fetched = issuer.fetch_here(job).unwrap();
        let variables = fetched.result?;
        let (name, token) = variables.iter().next().unwrap();
        assert_eq!((name, variables.len()), ("T", 1));
        Ok(token.expose_secret().to_owned())
    }

    fn verified(keys: &std::path::Path, token: &str) -> Claims {
        let keys = keys::read(keys, keys::Want::Verifying).unwrap();
        let verifier = Verifier::new(Arc::clone(keys.verifying()))
            .issuer("https://hpc.example.org")
            .audience("copy-offload");
        verifier.verify(token, SystemTime::now()).unwrap()
    }

    #[test]
    fn a_token_is_bound_to_its_job_its_owner_and_its_workspace() {
        let dir = tempfile::tempdir().unwrap();
        for algorithm in [Algorithm::EdDsa, Algorithm::Es256, Algorithm::Rs256, Algorithm::Hs256] {
            let keys = dir.path().join(algorithm.as_str());
            keys::create(&keys, algorithm).unwrap();
            let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as f64;
            let claims = verified(&keys, &mint(&settings(&keys), &job()).unwrap());
            assert_eq!((claims.sub(), claims.scope()), (Some("alice"), Some(Scope::Session)));
            assert_eq!(claims.workspaces().collect::<Vec<_>>(), ["hydro"]);
            let of = claims.job().unwrap();
            assert_eq!((of.id, of.uid, of.instance), ("f2oLkTLb1", 1000, "fluke"));
            let (iat, exp) = (claims.iat().unwrap().seconds(), claims.exp().seconds());
            assert!(iat >= before, "{iat} {before}");
            assert_eq!(exp - iat, 4200.0, "the time limit and the margin");
        }
    }

    #[test]
    fn its_life_is_capped_and_a_rule_may_say_which_workspace_and_instance() {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("keys");
        keys::create(&keys, Algorithm::EdDsa).unwrap();
        let settings = config::Issuer {
            instance: Some("system".to_owned()),
            workspace: Some(Template::parse("u-{user}").unwrap()),
            ..settings(&keys)
        };
        for limit in [None, Some(Duration::ZERO), Some(48 * HOUR)] {
            let job = Values {
                limit,
                project: None,
                ..job()
            };
            let claims = verified(&keys, &mint(&settings, &job).unwrap());
            let life = claims.exp().seconds() - claims.iat().unwrap().seconds();
            assert_eq!(life, 86_400.0, "{limit:?}");
            assert_eq!(claims.workspaces().collect::<Vec<_>>(), ["u-alice"]);
            assert_eq!(claims.job().unwrap().instance, "system");
        }
    }

    /// Mints a token. Returns its claims and the warnings for the operator.
    fn minted(issuer: &Minted, keys: &std::path::Path) -> (Claims, Vec<String>) {
        let fetched = issuer.fetch_here(&job()).unwrap();
        let variables = fetched.result.unwrap();
        let (_, token) = variables.iter().next().unwrap();
        (verified(keys, token.expose_secret()), fetched.warnings)
    }

    #[test]
    fn a_token_has_an_entry_of_its_own_and_one_that_can_have_none_is_minted_nevertheless() {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("keys");
        keys::create(&keys, Algorithm::EdDsa).unwrap();
        let settings = config::Issuer {
            status_list: Some(dir.path().join("status")),
            ..settings(&keys)
        };
        let issuer = Minted::new(&settings, "T".to_owned(), Duration::from_secs(60)).unwrap();
        let mint = || {
            let (claims, warnings) = minted(&issuer, &keys);
            let status = claims.status().map(|status| (status.index, status.uri.to_owned()));
            (status, warnings)
        };
        let statuses = StatusLists::of(&dir.path().join("status"));
        let (first, second) = (mint(), mint());
        let number = statuses.numbers("fluke").unwrap()[0];
        let uri = format!("https://hpc.example.org/status/{number}");
        let (first, second) = (first.0.unwrap(), second.0.unwrap());
        assert_eq!((&first.1, &second.1), (&uri, &uri));
        assert_ne!(first.0, second.0);
        assert_eq!(statuses.jobs("fluke", SystemTime::now() + HOUR).unwrap(), [1].into());
        drop((issuer, statuses));
        // A directory that others can write to is not used. The operator is warned once.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(dir.path().join("status"), open).unwrap();
        let issuer = Minted::new(&settings, "T".to_owned(), Duration::from_secs(60)).unwrap();
        let mint = || {
            let (claims, warnings) = minted(&issuer, &keys);
            (claims.status().is_some(), warnings)
        };
        let (has_entry, warnings) = mint();
        assert!(
            !has_entry && warnings.len() == 1 && warnings[0].contains("status-list"),
            "{warnings:?}"
        );
        assert_eq!(mint(), (false, Vec::new()));
    }

    #[test]
    fn without_what_a_token_must_say_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("keys");
        keys::create(&keys, Algorithm::EdDsa).unwrap();
        let of_user = config::Issuer {
            workspace: Some(Template::parse("{user}").unwrap()),
            ..settings(&keys)
        };
        let fails = |settings: &config::Issuer, job: Values| mint(settings, &job).unwrap_err().to_string();
        let error = fails(&settings(&keys), Values { project: None, ..job() });
        assert!(error.contains("the job is in no project"), "{error}");
        let error = fails(&settings(&keys), Values { user: None, ..job() });
        assert!(error.contains("uid 1000 has none"), "{error}");
        let user = Some("Alice_X".to_owned());
        let error = fails(&of_user, Values { user, ..job() });
        assert!(error.contains("the workspace `Alice_X` is not a name"), "{error}");

        std::fs::remove_file(keys.join("active")).unwrap();
        let error = fails(&settings(&keys), job());
        assert!(
            error.contains("rotate promote") && error.contains(keys.to_str().unwrap()),
            "{error}"
        );
        let missing = dir.path().join("missing");
        let error = fails(&settings(&missing), job());
        assert!(error.contains("No such file"), "{error}");
    }
}
