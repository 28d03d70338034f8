//! The generations of a record. A job whose token expires gets one record after the other, each in place of the former.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

/// The generation of a record, and how tasks get the next one. Times are in seconds since 1970-01-01T00:00:00Z, by the clock
/// of the sealing node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Renewal {
    /// The number of records that the job had before this one.
    pub generation: u32,
    /// The time when the next record is fetched; none if there will be no other.
    pub renew_at: Option<f64>,
    /// The time when the first of the tokens expires; none if none of them does, or that is unknown.
    pub expires_at: Option<f64>,
    /// The variables whose values are also in files on the nodes of the job.
    pub files: Vec<String>,
    /// The one of them whose file `BEARER_TOKEN_FILE` names, too.
    pub bearer: Option<String>,
    /// The signal that tasks receive when their files hold new values, signal(7).
    pub signal: Option<i32>,
    /// The consequence of a token that expires before it could be renewed.
    pub on_expiry: OnExpiry,
}

/// The next record of a job, for whoever fetches it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Due {
    /// The number of records that the job had before it.
    pub records: u32,
    /// As in [`Renewal`].
    pub renew_at: f64,
    /// As in [`Renewal`].
    pub expires_at: Option<f64>,
    /// As in [`Renewal`].
    pub on_expiry: OnExpiry,
}

/// The consequence of a token that expires before it could be renewed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnExpiry {
    /// A line in the log and an exception that does not end the job.
    #[default]
    Warn,
    /// In addition, the tasks of the job receive SIGTERM.
    Signal,
    /// The job ends with an exception.
    Exception,
}

impl Renewal {
    /// Returns the next record; none if there will be no other.
    pub fn due(&self) -> Option<Due> {
        Some(Due {
            records: self.generation.saturating_add(1),
            renew_at: self.renew_at?,
            expires_at: self.expires_at,
            on_expiry: self.on_expiry,
        })
    }

    /// Writes it as the next member of an object of JSON, unless it is that of a record that stays the only one.
    pub(crate) fn write_member(&self, out: &mut impl Write) -> io::Result<()> {
        if *self == Self::default() {
            return Ok(());
        }
        out.write_all(br#","renewal":"#)?;
        Ok(serde_json::to_writer(out, self)?)
    }

    /// Returns how many bytes it takes at most, if names need no escapes.
    pub(crate) fn room(&self) -> usize {
        const MEMBERS: usize = 256;
        if *self == Self::default() {
            return 0;
        }
        let names = self.files.iter().chain(&self.bearer);
        MEMBERS + names.map(|name| name.len() + 4).sum::<usize>()
    }
}
