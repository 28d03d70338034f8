// SPDX-License-Identifier: MIT OR Apache-2.0

use std::path::Path;

use delivery::Engine;
use protocol::{Ask, IssuerQuestion, JobEnd, Question, Reply, Subject, TokenFacts, VERSION, Validity};
use serde_json::json;
use source::status_lists::{Place, TokenToList};
use tempfile::TempDir;
use token::{Algorithm, Verifier};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::{
    issuer::{self, Checks, Issuer},
    revocations::Revocations,
    validity::{Instance, Instances},
};

const ISSUER: &str = "https://a.example.org";

/// An issuer with status lists.
struct Site {
    directory: TempDir,
    issuer: Arc<Issuer>,
    engine: Arc<Engine>,
    lists: Arc<StatusLists>,
    revocations: Store,
}

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        source::keys::create(&directory.path().join("keys"), Algorithm::EdDsa).unwrap();
        let (issuer, engine) = configured(directory.path(), true);
        Self {
            lists: StatusLists::of(&directory.path().join("status")),
            revocations: Some(Revocations::open(&directory.path().join("revocations")).map(Arc::new)),
            issuer,
            engine,
            directory,
        }
    }

    fn status(&self) -> &Status {
        self.issuer.status().unwrap()
    }

    /// Adds the token of a job.
    fn add(&self, jobid: u64) -> Place {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let place = self.lists.give("hpc", SystemTime::now()).unwrap();
        let token = TokenToList {
            jobid,
            uid: 1000,
            sub: "alice",
            jti: &format!("of-{jobid}"),
            iat: now as u32 - 10,
            exp: now as u32 + 3600,
        };
        self.lists.record("hpc", place, &token).unwrap();
        place
    }

    /// Returns the statuses of tokens in a signed list.
    fn statuses<const N: usize>(&self, signed: &Answer, places: [Place; N]) -> [u8; N] {
        let Answer::Signed(token) = signed else {
            panic!("{signed:?}");
        };
        let keys = source::keys::read(&self.directory.path().join("keys"), source::keys::Want::Verifying).unwrap();
        let verifier = Verifier::new(Arc::clone(keys.verifying())).issuer(ISSUER);
        let verified = verifier.verify_status_list(token, SystemTime::now()).unwrap();
        assert_eq!(verified.uri, format!("{ISSUER}/status/{}", places[0].list));
        assert_eq!(
            (verified.ttl, verified.exp.seconds() - verified.iat.seconds()),
            (STATUS_LIST_TTL, 600.0)
        );
        places.map(|place| verified.list.get(place.index).unwrap())
    }

    /// Waits until the last list is no longer used.
    async fn wait(&self) {
        self.status().signed.lock().await.swept = None;
    }
}

fn configured(directory: &Path, has_lists: bool) -> (Arc<Issuer>, Arc<Engine>) {
    let mut table = json!({"keys": directory.join("keys"), "name": ISSUER, "audience": "a"});
    if has_lists {
        table["status-list"] = json!(directory.join("status"));
    }
    let configure = protocol::Configure {
        generation: 0,
        conf: json!({"workflow-token": {"issuer": table}}).to_string(),
        overrides: "null".to_owned(),
        path: None,
        part: config::Part::Tokens,
        instance: "hpc".to_owned(),
    };
    let engine = Engine::new(&configure, Path::new("/none"), &Arc::default(), Box::new(|_, _| {})).unwrap();
    (Issuer::of(&engine).unwrap().unwrap(), Arc::new(engine))
}

/// Ended jobs, or an error, and revocations.
struct Known {
    ended: Result<Vec<u64>, String>,
    revocations: Store,
}

impl Checks for Known {
    async fn check(&self, _: TokenFacts) -> Validity {
        Validity::Active
    }

    async fn held(&self, _: u32) -> Answer {
        Answer::Held(Vec::new())
    }

    async fn revoke(&self, _: Subject, _: u64) -> Answer {
        Answer::Revoked
    }
}

impl Ends for Known {
    async fn find_ended(&self, status: &Status) -> Result<(), String> {
        status.add_ended(self.ended.clone()?);
        Ok(())
    }

    fn revocations_of(&self, instance: &str) -> Store {
        assert_eq!(instance, "hpc");
        self.revocations.clone()
    }
}

async fn ask(site: &Site, checks: &Known, question: IssuerQuestion) -> Answer {
    let known = Some((Arc::clone(&site.issuer), Arc::clone(&site.engine)));
    issuer::answer(known, checks, ISSUER, question).await
}

#[tokio::test]
async fn a_list_shows_which_jobs_have_ended_and_which_tokens_were_revoked() {
    let site = Site::new();
    let places = [1, 2, 3, 4, 5].map(|jobid| site.add(jobid));
    let number = places[0].list;
    let mut checks = Known {
        ended: Ok(vec![2, 77]),
        revocations: site.revocations.clone(),
    };
    let revoke = |subject| {
        site.revocations
            .clone()
            .unwrap()
            .unwrap()
            .revoke(&[subject], Duration::from_secs(60))
    };
    revoke(Subject::Jti("of-3".to_owned())).unwrap();
    assert_eq!(
        ask(&site, &checks, IssuerQuestion::StatusLists).await,
        Answer::StatusLists(vec![number])
    );
    let signed = ask(&site, &checks, IssuerQuestion::StatusList { number }).await;
    assert_eq!(site.statuses(&signed, places), [0, 1, 1, 0, 0]);
    // For a short time, all callers get the same list.
    checks.ended = Ok(vec![4]);
    assert_eq!(ask(&site, &checks, IssuerQuestion::StatusList { number }).await, signed);
    site.wait().await;
    let next = ask(&site, &checks, IssuerQuestion::StatusList { number }).await;
    assert_eq!(site.statuses(&next, places), [0, 1, 1, 1, 0]);
    // A revocation concerns tokens that were issued before it; that of a job also concerns later ones.
    revoke(Subject::Job {
        instance: Some("hpc".to_owned()),
        jobid: 5,
    })
    .unwrap();
    site.wait().await;
    ask(&site, &checks, IssuerQuestion::StatusList { number }).await;
    let later = site.add(5);
    site.wait().await;
    let last = ask(&site, &checks, IssuerQuestion::StatusList { number }).await;
    assert_eq!(site.statuses(&last, [places[0], places[4], later]), [0, 1, 1]);
}

#[tokio::test]
async fn a_list_is_not_signed_while_something_is_not_known() {
    let site = Site::new();
    let place = site.add(1);
    let number = place.list;
    let failed = async |checks: &Known, number| match ask(&site, checks, IssuerQuestion::StatusList { number }).await {
        Answer::Failed(why) => why,
        answer => panic!("{answer:?}"),
    };
    let unknown = |ended, revocations| Known { ended, revocations };
    let silent = unknown(Err("squeue does not answer".to_owned()), None);
    assert_eq!(failed(&silent, number).await, "squeue does not answer");
    let unreadable = unknown(Ok(vec![1]), Some(Err("the disk is gone".to_owned())));
    assert_eq!(failed(&unreadable, number).await, "the disk is gone");
    let known = unknown(Ok(Vec::new()), None);
    assert_eq!(
        failed(&known, number ^ 1).await,
        format!("there is no status list {}", number ^ 1)
    );
    // The entries of ended jobs stay marked.
    let signed = ask(&site, &known, IssuerQuestion::StatusList { number }).await;
    assert_eq!(site.statuses(&signed, [place]), [1]);

    let (issuer, engine) = configured(site.directory.path(), false);
    let none = |question| {
        issuer::answer(
            Some((Arc::clone(&issuer), Arc::clone(&engine))),
            &known,
            ISSUER,
            question,
        )
    };
    assert_eq!(none(IssuerQuestion::StatusLists).await, Answer::StatusLists(Vec::new()));
    assert!(matches!(
        none(IssuerQuestion::StatusList { number }).await,
        Answer::Failed(_)
    ));
}

/// A plugin that reports that the job 2 has ended. Returns the number of questions.
async fn answer(instances: &Instances, replies: &mut UnboundedReceiver<Reply>) -> usize {
    let mut count = 0;
    while let Some(reply) = replies.recv().await {
        let Reply::AskJob { number, jobid } = reply else {
            panic!("{reply:?}");
        };
        count += 1;
        instances.answered(number, (jobid == 2).then(JobEnd::default));
    }
    count
}

#[tokio::test]
async fn a_plugin_is_asked_once_about_jobs_of_before_and_reports_the_others() {
    let site = Site::new();
    let places: [Place; 200] = std::array::from_fn(|i| site.add(i as u64));
    let number = places[0].list;
    let instances = Arc::new(Instances::default());
    let question = || {
        instances.answer(Ask {
            version: VERSION,
            question: Question::Issuer {
                name: ISSUER.to_owned(),
                question: IssuerQuestion::StatusList { number },
            },
        })
    };
    assert!(matches!(question().await, Answer::Failed(_)), "no plugin is connected");
    let (replies, mut received) = unbounded_channel();
    let instance = Instance {
        connection: 9,
        replies,
        revocations: None,
        issuer: Some(Arc::clone(&site.issuer)),
        engine: Arc::clone(&site.engine),
    };
    instances.add("hpc", instance);
    let plugin = Arc::clone(&instances);
    let plugin = tokio::spawn(async move { answer(&plugin, &mut received).await });
    let some = || [places[1], places[2], places[3], places[199]];
    assert_eq!(site.statuses(&question().await, some()), [0, 1, 0, 0]);
    instances.ended(8, 1);
    instances.ended(9, 3);
    site.wait().await;
    assert_eq!(site.statuses(&question().await, some()), [0, 1, 1, 0]);
    instances.remove(9);
    assert_eq!(plugin.await.unwrap(), 200);
    assert!(matches!(question().await, Answer::Failed(_)), "no plugin is connected");
}

#[tokio::test]
async fn ends_that_nobody_asks_about_are_written_in_bulk() {
    let site = Site::new();
    let (first, last) = (site.add(0), site.add(WAITING as u64));
    let written: Vec<u64> = (0..WAITING as u64)
        .filter(|job| site.status().add_ended([*job]))
        .collect();
    assert_eq!(written, [WAITING as u64 - 2]);
    let statuses =
        |places: [Place; 2]| places.map(|place| site.lists.list("hpc", place.list).unwrap().unwrap().get(place.index));
    assert_eq!(statuses([first, last]), [Some(0), Some(0)]);
    site.status().sweep(&None).unwrap();
    assert_eq!(statuses([first, last]), [Some(1), Some(0)]);
}

#[test]
fn ends_that_could_not_be_marked_are_marked_later() {
    let site = Site::new();
    site.add(1);
    // The lists are of another instance, so a sweep fails.
    let status = Status::of(
        &site.directory.path().join("status"),
        "other",
        Arc::clone(&site.status().signer),
    );
    status.add_ended([7]);
    assert!(status.sweep(&site.revocations).is_err());
    assert!(status.ended.lock().unwrap().contains(&7));
    // All tokens are compared with the revocations again.
    assert_eq!(*status.swept_by.lock().unwrap(), None);
}
