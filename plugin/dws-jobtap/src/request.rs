// SPDX-License-Identifier: MIT OR Apache-2.0

//! The payloads of the requests of the service for Data Workflow Services, in the format of flux-coral2.

use std::fmt;

use ffi::JobId;
use seal::{Secret, Variables};
use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

/// A malformed request, and the job that it names if that part is readable. `why` quotes nothing of the payload.
#[derive(Debug)]
pub struct Malformed {
    pub job: Option<JobId>,
    pub why: String,
}

/// `job-manager.dws.resource-update`: the resources of a job.
#[derive(Debug)]
pub struct ResourceUpdate {
    pub job: JobId,
    pub resources: Value,
    pub errmsg: Option<String>,
    /// Constraints that exclude rabbits, or null.
    pub exclude: Value,
}

/// `job-manager.dws.prolog-remove`: the job may start with these variables.
#[derive(Debug)]
pub struct PrologRemove {
    pub job: JobId,
    pub variables: Variables,
}

/// `job-manager.dws.epilog-remove`: the file systems of the job are deleted.
#[derive(Debug)]
pub struct EpilogRemove {
    pub job: JobId,
}

impl ResourceUpdate {
    pub fn parse(payload: Option<&str>) -> Result<Self, Malformed> {
        #[derive(Deserialize)]
        struct Raw {
            id: u64,
            resources: Value,
            errmsg: Option<String>,
            #[serde(deserialize_with = "Value::deserialize")]
            exclude: Value,
        }
        let raw: Raw = parse(payload)?;
        Ok(Self {
            job: JobId(raw.id),
            resources: raw.resources,
            errmsg: raw.errmsg,
            exclude: raw.exclude,
        })
    }
}

impl PrologRemove {
    pub fn parse(payload: Option<&str>) -> Result<Self, Malformed> {
        #[derive(Deserialize)]
        struct Raw {
            id: u64,
            variables: Checked,
        }
        let raw: Raw = parse(payload)?;
        let job = JobId(raw.id);
        match raw.variables.0 {
            Ok(variables) => Ok(Self { job, variables }),
            Err(why) => Err(Malformed { job: Some(job), why }),
        }
    }
}

impl EpilogRemove {
    pub fn parse(payload: Option<&str>) -> Result<Self, Malformed> {
        let Id { id } = parse(payload)?;
        Ok(Self { job: JobId(id) })
    }
}

/// Returns the job that a request names.
pub fn job(payload: Option<&str>) -> Option<JobId> {
    let Id { id } = serde_json::from_str(payload?).ok()?;
    Some(JobId(id))
}

#[derive(Deserialize)]
struct Id {
    id: u64,
}

/// Parses a payload. An error contains only its class and position: serde_json quotes the input, which may be secret.
fn parse<'a, T: Deserialize<'a>>(payload: Option<&'a str>) -> Result<T, Malformed> {
    let text = payload.unwrap_or_default();
    serde_json::from_str(text).map_err(|e| Malformed {
        job: job(payload),
        why: format!("{:?} error at line {} column {}", e.classify(), e.line(), e.column()),
    })
}

/// The variables, or the error in them. They are parsed directly into types that are zeroized.
struct Checked(Result<Variables, String>);

impl<'de> Deserialize<'de> for Checked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Checked;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a string for each variable")
            }

            fn visit_map<M: de::MapAccess<'de>>(self, mut map: M) -> Result<Checked, M::Error> {
                let mut checked = Ok(Variables::new());
                while let Some(name) = map.next_key::<String>()? {
                    let OnlyString(value) = map.next_value()?;
                    let Ok(variables) = &mut checked else { continue };
                    let wrong = match value {
                        Some(value) => variables.insert(&name, value).err().map(|e| e.to_string()),
                        None => Some(format!("the value for {} is not a string", name.escape_default())),
                    };
                    if let Some(wrong) = wrong {
                        checked = Err(wrong);
                    }
                }
                Ok(Checked(checked))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// A string, or none for another type. (The code that serde derives for such a choice keeps copies.)
struct OnlyString(Option<Secret>);

impl<'de> Deserialize<'de> for OnlyString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = OnlyString;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E>(self, text: &str) -> Result<OnlyString, E> {
                Ok(OnlyString(Some(Secret::from(text.to_owned()))))
            }

            fn visit_string<E>(self, text: String) -> Result<OnlyString, E> {
                Ok(OnlyString(Some(Secret::from(text))))
            }

            fn visit_unit<E>(self) -> Result<OnlyString, E> {
                Ok(OnlyString(None))
            }

            fn visit_bool<E>(self, _: bool) -> Result<OnlyString, E> {
                Ok(OnlyString(None))
            }

            fn visit_i64<E>(self, _: i64) -> Result<OnlyString, E> {
                Ok(OnlyString(None))
            }

            fn visit_u64<E>(self, _: u64) -> Result<OnlyString, E> {
                Ok(OnlyString(None))
            }

            fn visit_f64<E>(self, _: f64) -> Result<OnlyString, E> {
                Ok(OnlyString(None))
            }

            fn visit_seq<S: de::SeqAccess<'de>>(self, mut seq: S) -> Result<OnlyString, S::Error> {
                while seq.next_element::<de::IgnoredAny>()?.is_some() {}
                Ok(OnlyString(None))
            }

            fn visit_map<M: de::MapAccess<'de>>(self, mut map: M) -> Result<OnlyString, M::Error> {
                while map.next_entry::<de::IgnoredAny, de::IgnoredAny>()?.is_some() {}
                Ok(OnlyString(None))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Only Flux formats job ids, and these tests run without Flux.

    #[test]
    fn requests_of_the_service_are_read() {
        let update = ResourceUpdate::parse(Some(r#"{"id":7,"resources":[1],"exclude":null,"copy-offload":false}"#))
            .ok()
            .unwrap();
        assert_eq!((update.job.0, update.exclude), (7, Value::Null));
        let remove = PrologRemove::parse(Some(r#"{"id":7,"variables":{"A":"x","B":""},"rabbits":{}}"#))
            .ok()
            .unwrap();
        assert_eq!(remove.variables.names().collect::<Vec<_>>(), ["A", "B"]);
        assert_eq!(EpilogRemove::parse(Some(r#"{"id":7}"#)).ok().unwrap().job.0, 7);
    }

    #[test]
    fn what_is_malformed_names_its_job_and_quotes_nothing() {
        for (payload, job) in [
            (None, None),
            (Some(""), None),
            (Some(r#"{"id":"canary"}"#), None),
            (Some(r#"{"id":7}"#), Some(7)),
            (Some(r#"{"id":7,"variables":["canary"]}"#), Some(7)),
            (Some(r#"{"id":7,"variables":{"A":{"canary":1}}}"#), Some(7)),
            (Some(r#"{"id":7,"variables":{"A=":"canary"}}"#), Some(7)),
            (Some(r#"{"id":7,"variables":{"A":"canary\u0000"}}"#), Some(7)),
        ] {
            let e = PrologRemove::parse(payload).err().unwrap();
            assert_eq!(e.job.map(|job| job.0), job, "{payload:?}");
            assert!(!e.why.contains("canary"), "{}", e.why);
        }
        // A required key may be null, but not missing.
        assert!(ResourceUpdate::parse(Some(r#"{"id":7,"resources":[]}"#)).is_err());
    }
}
