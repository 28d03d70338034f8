// SPDX-License-Identifier: MIT OR Apache-2.0

//! Checks that a token that names a job is for the job of a delivery.

use crate::task::Task;

/// Checks that a token that is bound to a job is bound to this one.
pub(crate) fn check(claims: &token::Claims, task: &Task, instance: &str) -> Result<(), &'static str> {
    let Some(job) = claims.job() else {
        return match claims.get("flux").or_else(|| claims.get("slurm")) {
            None => Ok(()),
            Some(_) => Err("it names a job (claim `flux` or `slurm`), and is not a workflow token (scope `session`)"),
        };
    };
    if job.is_slurm != task.slurm.is_some() {
        Err("it is the token of a job of another scheduler")
    } else if job.uid != task.uid {
        Err("it is the token of a job of another user")
    } else if job.instance != instance {
        // Another instance has jobs with the same ids.
        Err("it is the token of a job of another instance or cluster")
    } else if is_id_of(job.id, task) {
        Ok(())
    } else {
        Err("it is the token of another job")
    }
}

/// Returns whether a text is the id of the job, in F58 or as a number.
fn is_id_of(text: &str, task: &Task) -> bool {
    let f58 = task.f58.parse::<token::Session>();
    f58.is_ok_and(|id| id.as_str() == text) || text.parse() == Ok(task.jobid)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use config::Asked;
    use seal::ExposeSecret;
    use token::{Algorithm, KeySet, SigningKey, Verifier};

    use crate::task::{Task, Variables};

    #[test]
    fn a_token_that_names_a_job_is_for_that_job_of_that_instance_only() {
        let key = SigningKey::generate(Algorithm::EdDsa);
        let mut keys = KeySet::new();
        keys.insert(key.verifying_key());
        let task = Task {
            jobid: 0x1234,
            f58: "ƒ2Xg".to_owned(),
            uid: 1000,
            timeout: Duration::ZERO,
            asked: Asked::Nothing,
            limit: None,
            slurm: None,
            requests: Default::default(),
            generation: 0,
            variables: Variables::Rules(Vec::new()),
        };
        let check = |more: &str| {
            let claims = format!(r#"{{"aud":"a","sub":"alice","iat":1,"exp":4102444800{more}}}"#);
            let token = key.sign(&[("typ", "JWT")], claims.as_bytes());
            let verifier = Verifier::new(keys.clone()).audience("a");
            let claims = verifier.verify(token.expose_secret(), SystemTime::now());
            super::check(&claims.unwrap(), &task, "fluke")
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
