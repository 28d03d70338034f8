// SPDX-License-Identifier: MIT OR Apache-2.0

//! The files of a step on one node, from the first record to the last.

use std::{
    io,
    os::unix::net::UnixStream,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use nix::unistd::alarm;
use seal::{Munge, Opened, Renewal, TokenFiles};
use slurm::{Answer, LocalRecord, Node, Site, Start};

use crate::{
    syslog::log,
    tasks::{Tasks, Woken},
    user::JobOwner,
};

/// The time in seconds after which this process exits, unless it waits for the tasks: the user controls the file system
/// of the files. A look-up may wait for another step, for agents and for munged.
pub const TIMEOUT: u32 = 120;

/// A time longer than any job runs.
const NEVER: Duration = Duration::from_secs(365 * 86_400);

/// The files of a step, and the state needed to renew them.
pub struct Step {
    start: Start,
    site: Site,
    agent_uid: u32,
    munge: Munge,
    owner: JobOwner,
    files: TokenFiles,
    renewal: Renewal,
    tasks: Tasks,
}

impl Step {
    /// Becomes the job owner, and writes the first record to files. Returns the variables that name the files.
    ///
    /// # Errors
    /// Text for the operator.
    pub fn begin(start: Start) -> Result<(Self, Vec<(String, PathBuf)>), String> {
        let site = Site::read(&start.config)?;
        let agent_uid = site.agent_uid()?;
        let munge = site.config.munge_client().map_err(|e| e.to_string())?;
        let record = seal::Record::from_json(&start.record).map_err(|e| e.to_string())?;
        let owner = JobOwner::become_one(start.uid, start.gid).map_err(|e| e.to_string())?;
        let record = LocalRecord {
            record,
            jobid: start.jobid,
            agent_uid,
        };
        let opened = record.open(&munge).map_err(|e| e.to_string())?;
        let created = TokenFiles::create(start.jobid.into(), &opened.variables, &opened.renewal);
        let files = created.map_err(|e| format!("the files could not be written: {e}"))?;
        let variables = files.variables(&opened.variables, &opened.renewal);
        let step = Self {
            tasks: Tasks::new(start.tasks),
            start,
            site,
            agent_uid,
            munge,
            owner,
            files,
            renewal: opened.renewal,
        };
        Ok((step, variables))
    }

    /// Renews the files until the tasks have ended, then removes them.
    ///
    /// # Errors
    /// From [`Tasks::wait`] and [`JobOwner::step_out`].
    pub fn follow(mut self, plugin: &mut UnixStream) -> io::Result<()> {
        let mut next = self.first_look_up();
        loop {
            let time = next.saturating_duration_since(Instant::now());
            alarm::cancel();
            let woken = self.tasks.wait(plugin, time)?;
            alarm::set(TIMEOUT);
            match woken {
                Woken::End => return Ok(()),
                Woken::Task => {}
                Woken::Time => next = self.look_up()?,
            }
        }
    }

    /// Returns the time to look up the next record: after it is due, with a random delay.
    fn first_look_up(&self) -> Instant {
        let time = self.renewal.look_up_in(SystemTime::now(), fastrand::f64());
        Instant::now() + time.unwrap_or(NEVER).min(NEVER)
    }

    /// Writes the next record to the files, if it exists. Returns the time of the next look-up.
    fn look_up(&mut self) -> io::Result<Instant> {
        match self.next_record()? {
            Ok(Some(opened)) => {
                self.renewal = opened.renewal;
                if let Some(signal) = self.renewal.signal.filter(|_| self.start.signals) {
                    self.owner.step_down(|| self.tasks.signal(signal))?;
                }
                return Ok(self.first_look_up());
            }
            // The token has not been renewed yet.
            Ok(None) => {}
            Err(why) => log(&format!("job {}: {why}: trying again", self.start.jobid)),
        }
        Ok(Instant::now() + self.renewal.look_up_again_in(SystemTime::now()))
    }

    /// Returns the next record once it is in the files, or an error for the operator.
    fn next_record(&self) -> io::Result<Result<Option<Opened>, String>> {
        let answer = self.owner.step_out(|| self.ask())?;
        Ok(answer.and_then(|answer| {
            let record = match answer {
                Answer::Record(record) => LocalRecord {
                    record,
                    jobid: self.start.jobid,
                    agent_uid: self.agent_uid,
                },
                Answer::Failed(why) | Answer::Unavailable(why) => return Err(why),
            };
            if !self.is_next(record.record.renewal()) {
                return Ok(None);
            }
            let opened = record.open(&self.munge).map_err(|e| e.to_string())?;
            // The generation outside of the credential is not authenticated.
            if !self.is_next(&opened.renewal) {
                return Ok(None);
            }
            let written = self.files.write(&opened.variables, &opened.renewal);
            written.map_err(|e| format!("the new token could not be written to its file: {e}"))?;
            Ok(Some(opened))
        }))
    }

    /// Requests the next record, unless another step on this node has cached it.
    fn ask(&self) -> Result<Answer, String> {
        let Start { jobid, uid, node, .. } = &self.start;
        let node = Node {
            site: &self.site,
            munge: &self.munge,
            agent_uid: self.agent_uid,
            name: node,
            jobid: *jobid,
            uid: *uid,
        };
        let is_next = |record: &seal::Record| self.is_next(record.renewal());
        slurm::cached(&self.site.slurm.cache, *jobid, *uid, is_next, || slurm::ask(&node))
    }

    fn is_next(&self, renewal: &Renewal) -> bool {
        renewal.generation > self.renewal.generation
    }
}
