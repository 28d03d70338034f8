// SPDX-License-Identifier: MIT OR Apache-2.0

//! The payload of the credential: JSON, written once into a buffer that is never moved, and wiped afterwards.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use secrecy::ExposeSecret;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use crate::{
    error::{Error, Owner},
    renewal::Renewal,
    variables::{Secret, Variables},
    version::{self, VERSION},
};

/// The largest payload, in bytes. munged accepts messages of 1 MiB (1,048,576 bytes). A request to open a credential
/// must fit into one message and contains the payload in base64: four bytes for three. Headers, MAC and the options of
/// a request take less than 1 KiB.
pub const MAX_PAYLOAD: usize = (3 << 18) - 1024;

#[derive(Deserialize)]
pub(crate) struct Payload {
    version: u64,
    pub jobid: u64,
    pub uid: u32,
    /// The scheduler instance, where it has a name.
    pub instance: Option<String>,
    #[serde(default)]
    pub renewal: Renewal,
    pub variables: BTreeMap<String, PayloadValue>,
}

/// The maximum number of bytes around each variable, and around all of them.
pub(crate) const AROUND: usize = 80;

impl Payload {
    pub fn encode(
        owner: Owner,
        instance: Option<&str>,
        variables: &Variables,
        renewal: &Renewal,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        // Moving the buffer would leave a copy behind, so it never grows. Most values need no escapes.
        let plain: usize = variables
            .iter()
            .map(|(name, value)| name.len() + value.expose_secret().len() + AROUND)
            .sum();
        let plain = plain + instance.map_or(0, str::len) + renewal.room() + AROUND;
        let within = |room: usize| {
            let mut out = Room(Zeroizing::new(Vec::with_capacity(room)));
            Self::write(&mut out, owner, instance, variables, renewal).ok()?;
            Some(out.0)
        };
        if let Some(out) = within(plain.min(MAX_PAYLOAD)) {
            return Ok(out);
        }
        let mut size = Length(0);
        // Counting cannot fail.
        let _ = Self::write(&mut size, owner, instance, variables, renewal);
        Some(size.0)
            .filter(|size| *size <= MAX_PAYLOAD)
            .and_then(within)
            .ok_or(Error::TooLarge {
                size: size.0,
                limit: MAX_PAYLOAD,
            })
    }

    fn write(
        out: &mut impl Write,
        owner: Owner,
        instance: Option<&str>,
        variables: &Variables,
        renewal: &Renewal,
    ) -> io::Result<()> {
        let Owner { jobid, uid } = owner;
        write!(out, r#"{{"version":{VERSION},"jobid":{jobid},"uid":{uid}"#)?;
        if let Some(instance) = instance {
            out.write_all(br#","instance":"#)?;
            write_string(out, instance)?;
        }
        renewal.write_member(out)?;
        out.write_all(br#","variables":{"#)?;
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

    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        version::parse(bytes, |payload: &Self| payload.version, version::malformed)
    }
}

/// Writes a JSON string. Most tokens and credentials need no escapes. The test processes many bytes at a time.
pub(crate) fn write_string(out: &mut impl Write, text: &str) -> io::Result<()> {
    let is_escaped = |byte: u8| (byte < 0x20) | (byte == b'"') | (byte == b'\\');
    if text.bytes().fold(false, |any, byte| any | is_escaped(byte)) {
        return Ok(serde_json::to_writer(out, text)?);
    }
    out.write_all(b"\"")?;
    out.write_all(text.as_bytes())?;
    out.write_all(b"\"")
}

/// A writer that rejects data beyond its capacity.
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

/// A secret value during deserialization.
pub(crate) struct PayloadValue(pub Secret);

impl<'de> Deserialize<'de> for PayloadValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|s| PayloadValue(Secret::from(s)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let payload = Payload::encode(owner, None, &variables, &Renewal::default()).unwrap();
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
