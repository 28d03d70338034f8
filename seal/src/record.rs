// SPDX-License-Identifier: MIT OR Apache-2.0

//! The sealed record in the job's KVS directory. Opening performs its checks in the order of trust.

use std::{
    io::{self, Write},
    thread,
    time::{Duration, Instant, SystemTime},
};

use munge_sys as sys;
use serde::Deserialize;

use crate::{
    error::{Error, Owner},
    munge::{Decoded, Munge},
    payload::{AROUND, Payload, PayloadValue, write_string},
    renewal::Renewal,
    variables::Variables,
    version::{self, VERSION},
};

/// The keys of sealed records, relative to the job's KVS directory. Each plugin that delivers has one.
pub mod key {
    /// The workflow token.
    pub const WORKFLOW_TOKEN: &str = "workflow-token";
    /// The variables that Data Workflow Services provide to a rabbit job.
    pub const DWS_ENVIRONMENT: &str = "dws-environment";
    /// The ports and secret of Cray's libpmi.
    pub const CRAY_PMI_BOOTSTRAP: &str = "cray-pmi-bootstrap";
    /// All keys.
    pub const ALL: [&str; 3] = [WORKFLOW_TOKEN, DWS_ENVIRONMENT, CRAY_PMI_BOOTSTRAP];
}

/// The pause between attempts to reach munged.
const PAUSE: Duration = Duration::from_millis(200);

/// A sealed record. It contains no secret in clear text. Only the credential is authenticated.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Record {
    version: u64,
    jobid: u64,
    uid: u32,
    sealer: u32,
    variables: Vec<String>,
    sealed_at: f64,
    #[serde(default)]
    renewal: Renewal,
    credential: String,
}

/// The expected properties of a record.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// The job, and the uid of its owner, who opens the record.
    pub owner: Owner,
    /// The uid of the instance. Only records sealed by this uid are valid.
    pub instance_owner: u32,
}

/// An opened record.
#[derive(Debug)]
pub struct Opened {
    /// The variables.
    pub variables: Variables,
    /// The generation of the record, and the way tasks receive the next one.
    pub renewal: Renewal,
    /// The time when the credential was encoded, by the clock of the sealing node.
    pub sealed_at: SystemTime,
    /// The last check of MUNGE that failed, if any: expiry, clock or replay.
    pub staleness: Option<Staleness>,
}

/// MUNGE checks MAC, authorization, time and replay in this order, so a credential that fails one of the last two is
/// still authentic. Such credentials are accepted: jobs wait in long prologs, clocks differ, and several shells of
/// one job run on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Staleness {
    /// Older than its time to live.
    Expired,
    /// From the future, by this node's clock.
    Rewound,
    /// Opened on this node before.
    Replayed,
}

impl Record {
    /// Seals variables for a job, which only its owner can open. Blocks on munged, see [`Munge::encode`].
    ///
    /// # Errors
    /// [`Error::TooLarge`] before the call to munged; [`Error::Munge`].
    pub fn seal(
        munge: &Munge,
        owner: Owner,
        sealer: u32,
        variables: &Variables,
        renewal: &Renewal,
    ) -> Result<Self, Error> {
        let payload = Payload::encode(owner, munge.instance_name(), variables, renewal)?;
        let credential = munge.encode(&payload, owner.uid)?;
        let sealed_at = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Ok(Self {
            version: VERSION,
            jobid: owner.jobid,
            uid: owner.uid,
            sealer,
            variables: variables.names().map(str::to_owned).collect(),
            sealed_at: sealed_at.as_millis() as f64 / 1e3,
            renewal: renewal.clone(),
            credential,
        })
    }

    /// Parses a record.
    ///
    /// # Errors
    /// [`Error::Malformed`], [`Error::Version`].
    pub fn from_json(text: &str) -> Result<Self, Error> {
        version::parse(
            text.as_bytes(),
            |record: &Self| record.version,
            |e| Error::Malformed(e.to_string()),
        )
    }

    /// Returns the text for the KVS.
    pub fn to_json(&self) -> String {
        let mut out = Vec::with_capacity(self.credential.len() + 2 * AROUND);
        // Writing to memory cannot fail.
        let _ = self.write(&mut out);
        String::from_utf8(out).unwrap_or_default()
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let Self {
            version,
            jobid,
            uid,
            sealer,
            sealed_at,
            renewal,
            ..
        } = self;
        write!(
            out,
            r#"{{"version":{version},"jobid":{jobid},"uid":{uid},"sealer":{sealer},"variables":"#
        )?;
        serde_json::to_writer(&mut *out, &self.variables)?;
        write!(out, r#","sealed-at":{sealed_at:?}"#)?;
        renewal.write_member(out)?;
        out.write_all(br#","credential":"#)?;
        write_string(out, &self.credential)?;
        out.write_all(b"}")
    }

    /// Opens the record as the uid of this process.
    ///
    /// # Errors
    /// Any [`Error`] except `TooLarge`. A record is accepted only if every check passes.
    pub fn open(&self, munge: &Munge, expected: &Expected) -> Result<Opened, Error> {
        let decoded = munge.decode(&self.credential, expected.instance_owner)?;
        check_sealer(&decoded, expected)?;
        check_restriction(&decoded, expected)?;
        let payload = Payload::decode(&decoded.payload)?;
        let found = Owner {
            jobid: payload.jobid,
            uid: payload.uid,
        };
        if found != expected.owner {
            return Err(Error::Foreign {
                found,
                expected: expected.owner,
            });
        }
        if payload.instance.as_deref() != munge.instance_name() {
            return Err(Error::OtherInstance {
                found: payload.instance,
                expected: munge.instance_name().map(str::to_owned),
            });
        }
        let mut variables = Variables::new();
        for (name, PayloadValue(value)) in payload.variables {
            variables
                .insert(&name, value)
                .map_err(|e| Error::Malformed(e.to_string()))?;
        }
        Ok(Opened {
            variables,
            renewal: payload.renewal,
            sealed_at: decoded.encoded_at,
            staleness: Staleness::of(decoded.code),
        })
    }

    /// Opens the record like [`Record::open`], and retries for up to `time` while munged does not respond. Blocks.
    ///
    /// # Errors
    /// As for [`Record::open`].
    pub fn open_within(&self, time: Duration, munge: &Munge, expected: &Expected) -> Result<Opened, Error> {
        let start = Instant::now();
        loop {
            match self.open(munge, expected) {
                Err(e) if e.is_retryable() && start.elapsed() < time => thread::sleep(PAUSE),
                opened => return opened,
            }
        }
    }

    /// Returns the version of the record.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Returns the job that the record names.
    pub fn jobid(&self) -> u64 {
        self.jobid
    }

    /// Returns the uid of the job owner that the record names.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Returns the uid of the sealer that the record names. Only opening the record proves it.
    pub fn sealer(&self) -> u32 {
        self.sealer
    }

    /// Returns the names of the variables that the record lists.
    pub fn variables(&self) -> &[String] {
        &self.variables
    }

    /// Returns the time of sealing, by the clock of the sealing node.
    pub fn sealed_at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::try_from_secs_f64(self.sealed_at).unwrap_or_default()
    }

    /// Returns the generation of the record, and the time when the next one is due. Only opening the record proves
    /// it.
    pub fn renewal(&self) -> &Renewal {
        &self.renewal
    }

    /// Returns the MUNGE credential.
    pub fn credential(&self) -> &str {
        &self.credential
    }
}

impl Staleness {
    fn of(code: sys::munge_err_t) -> Option<Self> {
        match code {
            sys::munge_err_EMUNGE_CRED_EXPIRED => Some(Staleness::Expired),
            sys::munge_err_EMUNGE_CRED_REWOUND => Some(Staleness::Rewound),
            sys::munge_err_EMUNGE_CRED_REPLAYED => Some(Staleness::Replayed),
            _ => None,
        }
    }
}

fn check_sealer(decoded: &Decoded, expected: &Expected) -> Result<(), Error> {
    if decoded.uid == expected.instance_owner {
        Ok(())
    } else {
        Err(Error::Sealer {
            found: decoded.uid,
            owner: expected.instance_owner,
        })
    }
}

/// We never create a credential that anybody can open. Assume that its secret is known.
fn check_restriction(decoded: &Decoded, expected: &Expected) -> Result<(), Error> {
    if decoded.restricted_to != Some(expected.owner.uid) {
        return Err(Error::Unrestricted {
            uid: expected.owner.uid,
        });
    }
    if decoded.encrypted {
        Ok(())
    } else {
        Err(Error::Unencrypted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{payload::MAX_PAYLOAD, variables::Secret};

    const RECORD: &str =
        r#"{"version":1,"jobid":7,"uid":1000,"sealer":100,"variables":["A"],"sealed-at":1.5,"credential":"MUNGE:x:"}"#;

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let record = Record::from_json(RECORD).unwrap();
        assert_eq!(record.to_json(), RECORD);
        let credential = "\"\\\u{1}é".to_owned();
        let odd = Record {
            credential,
            ..record.clone()
        };
        assert_eq!(Record::from_json(&odd.to_json()).unwrap(), odd);
        let renewal = Renewal {
            generation: 7,
            renew_at: Some(1.5),
            files: vec!["A".to_owned()],
            ..Renewal::default()
        };
        let renewed = Record {
            renewal,
            ..record.clone()
        };
        assert_eq!(Record::from_json(&renewed.to_json()).unwrap(), renewed);
        assert_eq!(record.sealed_at(), SystemTime::UNIX_EPOCH + Duration::from_millis(1500));
    }

    #[test]
    fn a_newer_version_is_named_before_anything_else_of_it_is_read() {
        let newer = r#"{"version":2,"credential":{"scheme":"unknown"}}"#;
        let error = Record::from_json(newer).unwrap_err().to_string();
        assert!(
            error.contains("version 2") && error.contains("update the plugin"),
            "{error}"
        );
    }

    #[test]
    fn damaged_records_are_refused() {
        for bad in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"version":1}"#,
            r#"{"version":"1"}"#,
            r#"{"version":0}"#,
            &RECORD[..40],
        ] {
            assert!(matches!(Record::from_json(bad), Err(Error::Malformed(_))), "{bad:?}");
        }
    }

    #[test]
    fn an_oversized_payload_is_rejected_before_munged_is_contacted() {
        let nowhere = Munge::new(Some(std::path::Path::new("/nonexistent"))).unwrap();
        let owner = Owner { jobid: 1, uid: 1 };
        for size in [MAX_PAYLOAD, MAX_PAYLOAD + 1, 3 * MAX_PAYLOAD] {
            let mut variables = Variables::new();
            variables.insert("T", Secret::from("x".repeat(size))).unwrap();
            let error = Record::seal(&nowhere, owner, 0, &variables, &Renewal::default()).unwrap_err();
            assert!(matches!(error, Error::TooLarge { .. }), "{error}");
        }
    }
}
