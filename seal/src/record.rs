//! The sealed record: what is kept in the job's KVS directory, and the steps in which it is trusted.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::{Duration, SystemTime},
};

use munge_sys as sys;
use secrecy::ExposeSecret;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use zeroize::Zeroizing;

use crate::{Error, Munge, Owner, Secret, Variables, munge::Decoded};

/// The keys of sealed records, relative to the job's KVS directory: one for each plugin that delivers.
pub mod key {
    /// The workflow token.
    pub const WORKFLOW_TOKEN: &str = "workflow-token";
    /// The variables that Data Workflow Services give to a rabbit job.
    pub const DWS_ENVIRONMENT: &str = "dws-environment";
    /// What Cray's libpmi wires a job up with.
    pub const CRAY_PMI_BOOTSTRAP: &str = "cray-pmi-bootstrap";
    /// All of them.
    pub const ALL: [&str; 3] = [WORKFLOW_TOKEN, DWS_ENVIRONMENT, CRAY_PMI_BOOTSTRAP];
}

/// The version of records and payloads that this code writes, and the newest that it reads.
pub const VERSION: u64 = 1;

/// The largest payload, in bytes. munged takes messages of 1 MiB (1,048,576 bytes). To be opened again, the credential
/// must fit in one, which has the payload in base64: four bytes for three. Headers, MAC and the options of a request take
/// less than 1 KiB.
pub const MAX_PAYLOAD: usize = (3 << 18) - 1024;

/// A sealed record. Nothing in it is secret; nothing in it but the credential is authenticated.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Record {
    version: u64,
    jobid: u64,
    uid: u32,
    sealer: u32,
    variables: Vec<String>,
    sealed_at: f64,
    credential: String,
}

/// What a record must be to be accepted.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// The job, and the uid of its owner, who is the one that opens.
    pub owner: Owner,
    /// The uid that the instance runs as, the only one whose seal counts.
    pub instance_owner: u32,
}

/// An opened record.
#[derive(Debug)]
pub struct Opened {
    /// The variables.
    pub variables: Variables,
    /// When the credential was encoded, by the clock of the sealing node.
    pub sealed_at: SystemTime,
    /// Which of MUNGE's last three checks did not pass.
    pub staleness: Option<Staleness>,
}

/// MUNGE checks MAC, authorization, time and replay in this order, so these come with an authentic payload. They are
/// accepted: jobs wait in long prologs, clocks differ, and several shells of one job run on one node.
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
    /// Seals variables for a job, to be opened by its owner only. Blocks while munged is asked, see [`Munge::encode`].
    ///
    /// # Errors
    /// [`Error::TooLarge`] before munged is asked; [`Error::Munge`].
    pub fn seal(munge: &Munge, owner: Owner, sealer: u32, variables: &Variables) -> Result<Self, Error> {
        let payload = Payload::encode(owner, variables)?;
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
            credential,
        })
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`Error::Malformed`], [`Error::Version`].
    pub fn from_json(text: &str) -> Result<Self, Error> {
        parse(
            text.as_bytes(),
            |record: &Self| record.version,
            |e| Error::Malformed(e.to_string()),
        )
    }

    /// The text that is kept in the KVS.
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
            ..
        } = self;
        write!(
            out,
            r#"{{"version":{version},"jobid":{jobid},"uid":{uid},"sealer":{sealer},"variables":"#
        )?;
        serde_json::to_writer(&mut *out, &self.variables)?;
        write!(out, r#","sealed-at":{sealed_at:?},"credential":"#)?;
        write_string(out, &self.credential)?;
        out.write_all(b"}")
    }

    /// Opens the record as the uid of this process.
    ///
    /// # Errors
    /// Any of [`Error`] but `TooLarge`: a record is accepted only where every check passes.
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
        let mut variables = Variables::new();
        for (name, Value(value)) in payload.variables {
            variables
                .insert(&name, value)
                .map_err(|e| Error::Malformed(e.to_string()))?;
        }
        Ok(Opened {
            variables,
            sealed_at: decoded.encoded_at,
            staleness: Staleness::of(decoded.code),
        })
    }

    /// The version of the record.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The job that the record says it is for.
    pub fn jobid(&self) -> u64 {
        self.jobid
    }

    /// The uid that the record says it is for.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The uid that the record says sealed it. Only opening the record tells for certain.
    pub fn sealer(&self) -> u32 {
        self.sealer
    }

    /// The names of the variables, as the record says.
    pub fn variables(&self) -> &[String] {
        &self.variables
    }

    /// When it was sealed, by the clock of the sealing node.
    pub fn sealed_at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::try_from_secs_f64(self.sealed_at).unwrap_or_default()
    }

    /// The MUNGE credential.
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

/// A credential that anybody could have opened was none of ours: its secret is to be taken as known.
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

fn check_version(text: &[u8]) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u64,
    }
    let Versioned { version } = serde_json::from_slice(text).map_err(|e| malformed(&e))?;
    match version {
        VERSION => Ok(()),
        other => Err(not_known(other)),
    }
}

fn not_known(version: u64) -> Error {
    match version {
        0 => Error::Malformed("version 0 does not exist".to_owned()),
        found => Error::Version { found, known: VERSION },
    }
}

/// Reads something that has a version, which decides how the rest is to be read.
fn parse<T: DeserializeOwned>(
    text: &[u8],
    version: impl Fn(&T) -> u64,
    malformed: impl FnOnce(&serde_json::Error) -> Error,
) -> Result<T, Error> {
    match serde_json::from_slice(text) {
        Ok(read) => match version(&read) {
            VERSION => Ok(read),
            other => Err(not_known(other)),
        },
        // That it is of another version explains it better than what of it could not be read.
        Err(e) => Err(check_version(text).err().unwrap_or_else(|| malformed(&e))),
    }
}

/// What is inside of the credential.
#[derive(Deserialize)]
struct Payload {
    version: u64,
    jobid: u64,
    uid: u32,
    variables: BTreeMap<String, Value>,
}

/// How many bytes of a payload are around each variable, and around all of them, at most.
const AROUND: usize = 80;

impl Payload {
    fn encode(owner: Owner, variables: &Variables) -> Result<Zeroizing<Vec<u8>>, Error> {
        // The buffer is never moved, which would leave a copy behind. Most values are written as they are.
        let plain: usize = variables
            .iter()
            .map(|(name, value)| name.len() + value.expose_secret().len() + AROUND)
            .sum();
        let within = |room: usize| {
            let mut out = Room(Zeroizing::new(Vec::with_capacity(room)));
            Self::write(&mut out, owner, variables).ok()?;
            Some(out.0)
        };
        if let Some(out) = within((plain + AROUND).min(MAX_PAYLOAD)) {
            return Ok(out);
        }
        let mut size = Length(0);
        // Counting cannot fail.
        let _ = Self::write(&mut size, owner, variables);
        Some(size.0)
            .filter(|size| *size <= MAX_PAYLOAD)
            .and_then(within)
            .ok_or(Error::TooLarge {
                size: size.0,
                limit: MAX_PAYLOAD,
            })
    }

    fn write(out: &mut impl Write, owner: Owner, variables: &Variables) -> io::Result<()> {
        let Owner { jobid, uid } = owner;
        write!(
            out,
            r#"{{"version":{VERSION},"jobid":{jobid},"uid":{uid},"variables":{{"#
        )?;
        for (n, (name, value)) in variables.iter().enumerate() {
            if n > 0 {
                out.write_all(b",")?;
            }
            write_string(out, name)?;
            out.write_all(b":")?;
            write_string(out, value.expose_secret())?;
        }
        out.write_all(b"}}")
    }

    fn decode(bytes: &[u8]) -> Result<Self, Error> {
        parse(bytes, |payload: &Self| payload.version, malformed)
    }
}

/// Writes a string of JSON. Tokens and credentials have nothing to be escaped, which is seen many bytes at a time.
fn write_string(out: &mut impl Write, text: &str) -> io::Result<()> {
    let is_escaped = |byte: u8| (byte < 0x20) | (byte == b'"') | (byte == b'\\');
    if text.bytes().fold(false, |any, byte| any | is_escaped(byte)) {
        return Ok(serde_json::to_writer(out, text)?);
    }
    out.write_all(b"\"")?;
    out.write_all(text.as_bytes())?;
    out.write_all(b"\"")
}

/// A writer that takes no more than there is room for.
struct Room(Zeroizing<Vec<u8>>);

impl io::Write for Room {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.0.capacity() - self.0.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A writer that only counts.
struct Length(usize);

impl io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Of a JSON error only its kind and place are kept: serde_json quotes what it could not use.
fn malformed(e: &serde_json::Error) -> Error {
    Error::Malformed(format!(
        "{:?} error at line {} column {}",
        e.classify(),
        e.line(),
        e.column()
    ))
}

/// A secret on its way out of a payload.
struct Value(Secret);

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|s| Value(Secret::from(s)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn what_is_too_large_is_refused_before_munged_is_asked() {
        let nowhere = Munge::new(Some(std::path::Path::new("/nonexistent"))).unwrap();
        let owner = Owner { jobid: 1, uid: 1 };
        for size in [MAX_PAYLOAD, MAX_PAYLOAD + 1, 3 * MAX_PAYLOAD] {
            let mut variables = Variables::new();
            variables.insert("T", Secret::from("x".repeat(size))).unwrap();
            let error = Record::seal(&nowhere, owner, 0, &variables).unwrap_err();
            assert!(matches!(error, Error::TooLarge { .. }), "{error}");
        }
    }

    #[test]
    fn a_payload_is_written_in_one_place_whether_values_are_escaped_or_not() {
        let owner = Owner {
            jobid: u64::MAX,
            uid: u32::MAX - 1,
        };
        for value in [
            "e30.e30.AAAA".to_owned(),
            "\"\\\u{1}".repeat(1000),
            "é".repeat(1000),
            String::new(),
        ] {
            let mut variables = Variables::new();
            variables.insert("A", Secret::from(value.clone())).unwrap();
            variables.insert("B", Secret::from("x")).unwrap();
            let room = value.len() + 3 + 3 * AROUND;
            let payload = Payload::encode(owner, &variables).unwrap();
            let read = Payload::decode(&payload).unwrap();
            assert_eq!((read.jobid, read.uid), (owner.jobid, owner.uid));
            assert_eq!(read.variables["A"].0.expose_secret(), value);
            let expected = if payload.len() <= room { room } else { payload.len() };
            assert_eq!(payload.capacity(), expected);
        }
    }

    #[test]
    fn an_error_in_a_payload_does_not_quote_it() {
        let bytes = br#"{"version":1,"jobid":1,"uid":1,"variables":"canary"}"#;
        let Err(error) = Payload::decode(bytes) else {
            panic!("accepted")
        };
        assert!(!format!("{error} {error:?}").contains("canary"));
    }
}
