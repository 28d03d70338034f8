//! `source = "issuer"`: tokens that the instance mints itself, each for one job.

use std::{
    fmt::Display,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use config::{SlurmJob, Values};
use seal::Variables;
use token::{ClaimsToIssue, Grant, Job, JobScheduler, Session, workflow_lifetime};

use crate::{Error, Fetched, Slot, Source, blocking, keys::KeyStore};

#[derive(Clone)]
pub(crate) struct Minted {
    settings: config::Issuer,
    keys: Arc<KeyStore>,
    variable: String,
    timeout: Duration,
}

impl Minted {
    pub(crate) fn new(settings: &config::Issuer, variable: String, timeout: Duration) -> Result<Self, String> {
        let keys = crate::expand(&settings.keys).map_err(|e| format!("workflow-token.issuer.keys: {e}"))?;
        Ok(Self {
            settings: settings.clone(),
            keys: KeyStore::signing(keys),
            variable,
            timeout,
        })
    }

    /// Mints the token of a job. Blocks, as the keys are files.
    fn mint(&self, job: &Values) -> Fetched {
        let (keys, warnings) = self.keys.keys();
        let result = self.claims(job).and_then(|claims| {
            let unreadable = |e: &dyn Display| Error::new("there is no key to sign it with", e);
            let keys = keys.map_err(|e| unreadable(&e))?;
            let key = keys.signing().ok_or_else(|| {
                let path = self.keys.path().display();
                unreadable(&format!(
                    "{path}: no key is the active one: have one sign with `flux workflow-token rotate promote`"
                ))
            })?;
            let mut variables = Variables::new();
            // A token has no NUL, and the name is valid since the configuration was read.
            let inserted = variables.insert(&self.variable, token::mint(key, &claims));
            inserted.map_err(|e| Error::new("it has no usable value", e))?;
            Ok(variables)
        });
        Fetched {
            warnings,
            ..Fetched::of(result)
        }
    }

    fn claims(&self, job: &Values) -> Result<ClaimsToIssue, Error> {
        let settings = &self.settings;
        let no_name = || {
            let why = format!(
                "uid {} has no user name, which the claim `sub` is: add the user",
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
                    "the job is in no project, and its rule has no workspace: one of them says what its token is for";
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
    use seal::ExposeSecret;
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
        assert!(error.contains("uid 1000 has no user name"), "{error}");
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
