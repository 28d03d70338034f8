//! One delivery as far as it runs beside the reactor thread: fetch, check, seal.
//!
//! Where the source does nothing but block, all of it runs on one thread, from the reactor thread and back to it, since
//! each change of threads is time that a job waits.

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use config::{Asked, Check, Config, Denied, Selection, Values};
use seal::{ExposeSecret, Owner as JobOwner, Record, Variables};
use source::{
    Fetched, Source,
    verify::{Trusted, Unverified},
};
use tokio::sync::Notify;

use crate::{
    facts::{JobFacts, Needed, OwnerFacts, Spec},
    owner::{Owner, Owners},
};

/// How many deliveries of one rule are under way at once, where its source blocks. Those that hang, hang up their rule
/// only; more do not make munged faster.
const BLOCKING: usize = 8;

/// Pauses between tries while munged does not answer: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How often a pause is interrupted to see whether it still has a purpose.
const SLICE: Duration = Duration::from_millis(50);

/// A configuration, with what was made of it. Deliveries keep the one that they began with.
pub(crate) struct Setup {
    pub config: Config,
    pub owners: Owners,
    /// Whether who the job owner is has a part in the choice of a rule.
    by_owner: bool,
    /// What is read of the jobspecs of jobs.
    pub needed: Needed,
    sources: Vec<Box<dyn Source>>,
    /// The source for rabbit jobs, beside what their service sends.
    rabbit: Option<Box<dyn Source>>,
    /// Whom tokens are verified against, in the order of the configuration.
    trusted: Vec<Arc<Trusted>>,
    /// What the instance is called in tokens that name a job: as Flux has it, or as configured.
    instance: String,
    munge: seal::Munge,
}

/// What is to be delivered to whom.
pub(crate) struct Task {
    pub jobid: u64,
    pub f58: String,
    pub uid: u32,
    /// The uid that the instance runs as.
    pub sealer: u32,
    pub spec: Spec,
    pub what: What,
    /// Who that is, where it was needed and has been found out.
    pub owner: Option<Arc<Owner>>,
}

/// Where the variables of a delivery come from.
#[derive(Debug)]
pub(crate) enum What {
    /// From the source of one of these rules.
    Rules(Candidates),
    /// From who began the delivery. What the source for rabbit jobs gives, where there is one, is added, and wins.
    Given(Variables),
}

/// The rules that may be for a job, of which there is one at least. Where there are several, or who the job owner is may
/// change until the job's turn comes, the delivery decides.
#[derive(Debug)]
pub(crate) struct Candidates {
    /// In the order of the configuration.
    pub rules: Vec<usize>,
    /// The one that it will be by what is known.
    pub likely: usize,
}

/// Which source: that of a rule, or the one for rabbit jobs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Which {
    Rule(usize),
    Rabbit,
}

/// How a task ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub result: Result<Sealed, Failure>,
    /// For the operator's log.
    pub notes: Vec<String>,
    /// The same, of what the operator must see to.
    pub warnings: Vec<String>,
}

/// What there is to be kept.
#[derive(Debug)]
pub(crate) enum Sealed {
    /// The record, as it is kept, and the names of its variables.
    Record(String, Vec<String>),
    /// No rule is for this job, after all.
    NoRule,
}

/// Why there is no record, for two readers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// For the user: what failed, and nothing of the site.
    pub user: String,
    /// For the operator: the cause.
    pub operator: String,
}

impl Failure {
    pub fn new(user: impl Into<String>, operator: impl Into<String>) -> Self {
        Self {
            user: user.into(),
            operator: operator.into(),
        }
    }

    /// A fault of this plugin. What the panic said is not repeated: it may quote anything.
    pub fn internal() -> Self {
        Self::new(
            "an internal error",
            "an internal error: its place is in the broker's output",
        )
    }
}

/// How far a task has come: written where it runs, read on the reactor thread, which gives it up when its time is over.
#[derive(Default)]
pub(crate) struct Progress {
    stage: AtomicU8,
    fetching: OnceLock<(Which, Instant)>,
    given_up: AtomicBool,
    cancel: Notify,
    trouble: Mutex<Option<String>>,
}

/// Where the time goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    Waiting,
    Owner,
    Fetching,
    Checking,
    Sealing,
    Storing,
}

impl Progress {
    pub fn enter(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Relaxed);
    }

    /// What it is at.
    pub fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Relaxed) {
            0 => Stage::Waiting,
            1 => Stage::Owner,
            2 => Stage::Fetching,
            3 => Stage::Checking,
            4 => Stage::Sealing,
            _ => Stage::Storing,
        }
    }

    /// Which source it is asking, and since when, if that is what it is at.
    pub fn fetching(&self) -> Option<(Which, Instant)> {
        self.fetching.get().copied().filter(|_| self.stage() == Stage::Fetching)
    }

    /// Nobody waits for its result any more.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
        self.cancel.notify_one();
    }

    /// What it struggles with, for the operator: what went wrong and is tried again.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn struggles(&self, trouble: String) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(trouble);
    }

    fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }
}

impl Stage {
    /// For the operator: what was done when the time was over.
    pub fn describe(self) -> &'static str {
        match self {
            Stage::Waiting => "it waited for its turn (max-parallel), or for a thread",
            Stage::Owner => "the job owner was looked up",
            Stage::Fetching => "its source was asked",
            Stage::Checking => "its token was verified",
            Stage::Sealing => "munged was asked to seal: is it running?",
            Stage::Storing => "the KVS was asked to store it",
        }
    }
}

/// Which source is asked, and what it is told of the job beside what is known anyway.
struct Chosen {
    which: Which,
    values: Values,
}

/// What is left to do when a thread has done what it can.
pub(crate) enum Next {
    /// Nothing.
    Done(Outcome),
    /// The source is to be awaited.
    Await(Task, Which, Values),
}

impl Setup {
    /// # Errors
    /// The key of the configuration that is wrong here, and what is wrong with it; or what keeps MUNGE from being used.
    pub fn new(config: Config, helpers: &[std::path::PathBuf], instance: String) -> Result<Self, String> {
        let helpers: Vec<_> = config.helper.iter().chain(helpers).cloned().collect();
        let rules = config.rules.iter();
        let sources = rules.map(|rule| source::of_rule(rule, &helpers));
        let trusts = config.trusts.iter();
        let trusted = trusts.map(|trust| Trusted::new(trust).map(Arc::new));
        let trusted = trusted.collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            sources: sources.collect::<Result<_, _>>()?,
            rabbit: config.dws.as_ref().and_then(|dws| {
                let kubernetes = dws.kubernetes.as_ref()?;
                Some(source::of_kubernetes(
                    kubernetes,
                    &config.variable,
                    dws.timeout,
                    &helpers,
                ))
            }),
            munge: config.munge.client().map_err(|e| e.to_string())?,
            needed: Needed::by(&config),
            by_owner: config.rules.iter().any(|rule| depends_on_owner(rule, &config)),
            owners: Owners::new(&config, crate::identity::verify(&config, &trusted)?),
            trusted,
            instance: config.instance.clone().unwrap_or(instance),
            config,
        })
    }

    /// The rules that may be for a job: by what is known of its owner, and, as that may change until the delivery decides,
    /// by what does not depend on it.
    pub fn candidates(&self, job: &JobFacts<'_>) -> Option<Candidates> {
        let likely = match self.config.select(job) {
            Selection::None => return None,
            Selection::Rule(rule) if !self.by_owner => {
                let rules = vec![rule];
                return Some(Candidates { rules, likely: rule });
            }
            Selection::Rule(rule) => Some(rule),
            Selection::Unknown => None,
        };
        let open = JobFacts { owner: None, ..*job };
        let mut rules = Vec::new();
        for (index, rule) in self.config.rules.iter().enumerate() {
            let holds = rule.conditions.hold(&open);
            if holds != Some(false) {
                rules.push(index);
            }
            if holds == Some(true) {
                break;
            }
        }
        let likely = likely.or(rules.first().copied())?;
        Some(Candidates { rules, likely })
    }

    /// Whether it has to be known who the job owner is.
    pub fn needs_owner(&self, what: &What) -> bool {
        if !self.config.projects.is_empty() {
            return true;
        }
        match what {
            What::Rules(Candidates { rules, likely }) => {
                rules.len() > 1 || asks_for_owner(&self.config.rules[*likely]) || self.sources[*likely].needs_user()
            }
            What::Given(_) => self.rabbit.as_ref().is_some_and(|source| source.needs_user()),
        }
    }

    /// How many deliveries like this one may be under way at once.
    pub fn parallel(&self, what: &What) -> usize {
        let blocking = match what {
            What::Rules(candidates) => self.sources[candidates.likely].is_blocking(),
            What::Given(_) => self.rabbit.is_none(),
        };
        if blocking {
            self.config.max_parallel.min(BLOCKING)
        } else {
            self.config.max_parallel
        }
    }

    fn source(&self, which: Which) -> Option<&dyn Source> {
        match which {
            Which::Rule(rule) => self.sources.get(rule).map(|source| &**source),
            Which::Rabbit => self.rabbit.as_deref(),
        }
    }

    /// How long a source may be asked, as configured.
    pub fn fetch_timeout(&self, which: Which) -> Duration {
        match which {
            Which::Rule(rule) => self.config.rules[rule].timeout,
            Which::Rabbit => self.config.dws.as_ref().map_or(self.config.timeout, |dws| dws.timeout),
        }
    }

    /// The same, after which it is given up. One that can be awaited minds its own time, with better words, and has a
    /// moment more to say them.
    pub fn fetch_limit(&self, which: Which) -> Duration {
        let blocking = self.source(which).is_some_and(Source::is_blocking);
        let grace = if blocking {
            Duration::ZERO
        } else {
            Duration::from_secs(3)
        };
        self.fetch_timeout(which) + grace
    }

    /// Does what can be done on this thread, which may block.
    pub fn work(&self, task: Task, progress: &Progress) -> Next {
        ffi::inject_fault("work");
        if progress.is_given_up() {
            return Next::Done(Outcome::given_up());
        }
        let Chosen { which, values } = match self.choose(&task) {
            Ok(Some(chosen)) => chosen,
            Ok(None) => return Next::Done(Outcome::of(Ok(Sealed::NoRule))),
            Err(why) => return Next::Done(Outcome::of(Err(why))),
        };
        let Some(source) = self.source(which) else {
            // There is nothing to be added to what was given.
            return Next::Done(self.finish(task, progress, which, Fetched::nothing()));
        };
        progress.fetching.get_or_init(|| (which, Instant::now()));
        progress.enter(Stage::Fetching);
        match source.fetch_here(&values) {
            Some(fetched) => Next::Done(self.finish(task, progress, which, fetched)),
            None => Next::Await(task, which, values),
        }
    }

    /// Awaits the source, and does the rest on a thread that may block.
    pub async fn fetch(self: Arc<Self>, task: Task, progress: Arc<Progress>, which: Which, values: Values) -> Outcome {
        ffi::inject_fault("fetch");
        let Some(source) = self.source(which) else {
            return Outcome::given_up();
        };
        let fetched = tokio::select! {
            fetched = source.fetch(&values) => fetched,
            () = progress.cancel.notified() => return Outcome::given_up(),
        };
        let rest = tokio::task::spawn_blocking(move || self.finish(task, &progress, which, fetched));
        rest.await.unwrap_or_else(|_| Outcome::of(Err(Failure::internal())))
    }

    fn finish(&self, task: Task, progress: &Progress, which: Which, fetched: Fetched) -> Outcome {
        ffi::inject_fault("finish");
        let Fetched {
            result,
            mut notes,
            mut warnings,
        } = fetched;
        let owner = JobOwner {
            jobid: task.jobid,
            uid: task.uid,
        };
        let fetched = result.map_err(|e| Failure::new(e.summary(), e.to_string()));
        let result = fetched.and_then(|fetched| {
            progress.enter(Stage::Checking);
            self.check(which, &task, &fetched, &mut warnings)?;
            let variables = match task.what {
                What::Rules(_) => fetched,
                What::Given(mut variables) => {
                    variables.extend(fetched);
                    variables
                }
            };
            progress.enter(Stage::Sealing);
            self.seal(owner, task.sealer, progress, &variables, &mut notes)
        });
        Outcome {
            result,
            notes,
            warnings,
        }
    }

    /// The source, and what it is to be told: the job owner and the project, where these or the choice of the rule need that.
    /// This is where it counts who is in which project, whatever was found when the job was submitted or updated.
    fn choose(&self, task: &Task) -> Result<Option<Chosen>, Failure> {
        let candidates: &[usize] = match &task.what {
            What::Rules(candidates) => &candidates.rules,
            What::Given(_) => &[],
        };
        if !self.needs_owner(&task.what) {
            return Ok(Some(Chosen {
                which: candidates.first().map_or(Which::Rabbit, |rule| Which::Rule(*rule)),
                values: self.values(task, None, None),
            }));
        }
        // It is found out before a delivery is handed to a thread.
        let owner = task.owner.as_deref().ok_or_else(Failure::internal)?;
        let projects = &self.config.projects;
        let project = projects.of_job(&task.spec.asked, owner);
        let project = project.map_err(|denied| denied_to(owner, &denied))?;
        let project = project.map(|project| &*project.name);
        let asks = |index: &usize| asks_for_owner(&self.config.rules[*index]);
        if owner.name.is_none() && candidates.iter().any(asks) {
            let why = format!(
                "uid {} is not in the user database, and a rule asks for its name or groups",
                task.uid
            );
            return Err(Failure::new("its owner could not be looked up", why));
        }
        let which = match &task.what {
            What::Given(_) => Which::Rabbit,
            What::Rules(_) => {
                let facts = OwnerFacts {
                    owner,
                    project: (!projects.is_empty()).then_some(project),
                };
                let mut candidates = candidates.iter();
                let holds = |index: &&usize| self.config.rules[**index].conditions.hold(&facts) == Some(true);
                match candidates.find(holds) {
                    Some(rule) => Which::Rule(*rule),
                    None => return Ok(None),
                }
            }
        };
        if project.is_none() && self.needs_project(which) {
            return Err(denied_to(owner, &projects.needed(owner)));
        }
        let values = self.values(task, owner.name.clone(), project);
        self.admit(which, &values, owner)?;
        Ok(Some(Chosen { which, values }))
    }

    /// Refuses a token for the workspace that is a project's, as its rule has it, to who is not in that project.
    fn admit(&self, which: Which, values: &Values, owner: &Owner) -> Result<(), Failure> {
        let rule = match which {
            Which::Rule(rule) => &self.config.rules[rule],
            Which::Rabbit => return Ok(()),
        };
        let config::Source::Issuer(settings) = &rule.source else {
            return Ok(());
        };
        let projects = &self.config.projects;
        // What cannot be filled in is told by the source.
        let Some(Ok(workspace)) = settings.workspace.as_ref().map(|workspace| workspace.fill(values)) else {
            return Ok(());
        };
        if !projects.list.iter().any(|project| project.name == workspace) {
            return Ok(());
        }
        let admitted = projects.of_job(&Asked::Project(workspace), owner);
        admitted.map(|_| ()).map_err(|denied| denied_to(owner, &denied))
    }

    fn values(&self, task: &Task, user: Option<String>, project: Option<&str>) -> Values {
        Values {
            f58: task.f58.clone(),
            jobid: task.jobid,
            uid: task.uid,
            user,
            project: project.map(str::to_owned),
            limit: task.spec.limit,
            instance: self.instance.clone(),
        }
    }

    fn needs_project(&self, which: Which) -> bool {
        match which {
            Which::Rule(rule) => self.config.rules[rule].source.needs_project(),
            Which::Rabbit => {
                let kubernetes = self.config.dws.as_ref().and_then(|dws| dws.kubernetes.as_ref());
                kubernetes.is_some_and(|settings| settings.object.needs_project())
            }
        }
    }

    fn check(
        &self,
        which: Which,
        task: &Task,
        variables: &Variables,
        warnings: &mut Vec<String>,
    ) -> Result<(), Failure> {
        // What is given to a rabbit job is the business of its service.
        let Which::Rule(index) = which else { return Ok(()) };
        let rule = &self.config.rules[index];
        let source = rule.source.name();
        for (name, value) in variables.iter().filter(|(name, _)| *name == rule.variable) {
            let refused = |e: &dyn std::fmt::Display, hint: &str| {
                Failure::new(
                    format!("the token that its source gave was refused: {e}"),
                    format!("rule {index}, source {source}: the value for {name} was refused: {e}{hint}"),
                )
            };
            match rule.check {
                Check::None => {}
                Check::Shape => {
                    let hint = " (check = \"none\" is for secrets that are no JWT)";
                    token::check_shape(value.expose_secret(), SystemTime::now()).map_err(|e| refused(&e, hint))?;
                }
                Check::Verify(trust) => {
                    let hint = format!(" (trust = \"{}\")", self.config.trusts[trust].name);
                    let (verified, said) = self.trusted[trust].verify(value.expose_secret(), SystemTime::now());
                    warnings.extend(said);
                    let claims = verified.map_err(|e| match e {
                        Unverified::Refused(e) => refused(&e, &hint),
                        Unverified::NoKeys(e) => Failure::new(
                            format!("the token that its source gave could not be verified: {}", e.summary()),
                            format!("rule {index}, source {source}: the value for {name} was not verified: {e}{hint}"),
                        ),
                    })?;
                    of_this_job(&claims, task, &self.instance).map_err(|e| refused(&e, &hint))?;
                }
            }
        }
        Ok(())
    }

    /// Seals; while munged does not answer, again and again until it is given up.
    fn seal(
        &self,
        owner: JobOwner,
        sealer: u32,
        progress: &Progress,
        variables: &Variables,
        notes: &mut Vec<String>,
    ) -> Result<Sealed, Failure> {
        let mut pause = PAUSES.0;
        let mut told = false;
        loop {
            match Record::seal(&self.munge, owner, sealer, variables) {
                Ok(record) => {
                    let names = variables.names().map(str::to_owned).collect();
                    return Ok(Sealed::Record(record.to_json(), names));
                }
                Err(e) if e.is_retryable() && !progress.is_given_up() => {
                    if !std::mem::replace(&mut told, true) {
                        notes.push(format!("{e}: it was tried again"));
                    }
                    progress.struggles(e.to_string());
                    let until = Instant::now() + pause;
                    while Instant::now() < until && !progress.is_given_up() {
                        thread::sleep(SLICE.min(pause));
                    }
                    pause = (pause * 2).min(PAUSES.1);
                }
                Err(e @ seal::Error::TooLarge { .. }) => return Err(Failure::new(e.to_string(), e.to_string())),
                Err(e) => return Err(Failure::new("it could not be sealed", e.to_string())),
            }
        }
    }
}

/// A token that is bound to a job is for no other.
fn of_this_job(claims: &token::Claims, task: &Task, instance: &str) -> Result<(), &'static str> {
    let Some(job) = claims.job() else {
        return match claims.get("flux") {
            None => Ok(()),
            Some(_) => Err("it names a job (claim `flux`), and is not a workflow token (scope `session`)"),
        };
    };
    if job.uid != task.uid {
        Err("it is the token of a job of another user")
    } else if job.instance != instance {
        // Job ids are those of an instance: another one has the same.
        Err("it is the token of a job of another instance of Flux")
    } else if is_id_of(job.id, task) {
        Ok(())
    } else {
        Err("it is the token of another job")
    }
}

/// Whether a text is the id of a job, in F58 or as a number.
fn is_id_of(text: &str, task: &Task) -> bool {
    let f58 = task.f58.parse::<token::Session>();
    f58.is_ok_and(|id| id.as_str() == text) || text.parse() == Ok(task.jobid)
}

/// Why the owner of a job gets no token for a project.
fn denied_to(owner: &Owner, denied: &Denied) -> Failure {
    let detail = match &owner.refused {
        Some(why) => format!("{denied}: the identity token: {}", why.operator),
        None => denied.to_string(),
    };
    Failure::new(denied.to_string(), detail)
}

/// Whether a condition of a rule is decided by who the job owner is: by what the name service or an identity token says.
fn depends_on_owner(rule: &config::Rule, config: &Config) -> bool {
    asks_for_owner(rule) || (rule.conditions.project.is_some() && !config.projects.is_empty())
}

/// Whether the name service is to be asked for who the job owner is.
fn asks_for_owner(rule: &config::Rule) -> bool {
    matches!(rule.conditions.user, Some(config::Principal::Name(_))) || rule.conditions.group.is_some()
}

impl Outcome {
    /// With nothing to be noted.
    pub fn of(result: Result<Sealed, Failure>) -> Self {
        Self {
            result,
            notes: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Of a task that nobody waits for: it is not looked at.
    fn given_up() -> Self {
        Self::of(Err(Failure::new("it was given up", "it was given up")))
    }
}

#[cfg(test)]
mod tests {
    use token::{Algorithm, KeySet, SigningKey, Verifier};

    use super::*;

    #[test]
    fn a_token_that_names_a_job_is_for_that_job_of_that_instance_only() {
        let key = SigningKey::generate(Algorithm::EdDsa);
        let mut keys = KeySet::new();
        keys.insert(key.verifying_key());
        let task = Task {
            jobid: 0x1234,
            f58: "ƒ2Xg".to_owned(),
            uid: 1000,
            sealer: 0,
            spec: Spec::none(),
            what: What::Given(Variables::default()),
            owner: None,
        };
        let check = |more: &str| {
            let claims = format!(r#"{{"aud":"a","sub":"alice","iat":1,"exp":4102444800{more}}}"#);
            let token = key.sign(&[("typ", "JWT")], claims.as_bytes());
            let verifier = Verifier::new(keys.clone()).audience("a");
            let claims = verifier.verify(token.expose_secret(), SystemTime::now());
            of_this_job(&claims.unwrap(), &task, "fluke")
        };
        let flux = |id: &str, uid: u32, instance: &str| {
            format!(
                r#","scope":"session","workspace":"a","flux":{{"jobid":"{id}","uid":{uid},"instance":"{instance}"}}"#
            )
        };
        assert_eq!(check(""), Ok(()));
        assert_eq!(check(&flux("f2Xg", 1000, "fluke")), Ok(()));
        for (claims, says) in [
            (flux("f2Xh", 1000, "fluke"), "of another job"),
            (flux("f2Xg", 1001, "fluke"), "of another user"),
            (flux("f2Xg", 1000, "fluke2"), "of another instance"),
            (
                flux("f2Xg", 1000, "fluke").replace("session", "other"),
                "is not a workflow token",
            ),
            (
                flux("f2Xg", 1000, "fluke").replace(r#""session""#, r#"["session"]"#),
                "is not a workflow token",
            ),
        ] {
            let refused = check(&claims).unwrap_err();
            assert!(refused.contains(says), "{claims}: {refused}");
        }
    }
}
