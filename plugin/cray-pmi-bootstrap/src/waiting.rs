// SPDX-License-Identifier: MIT OR Apache-2.0

//! Jobs in their prologs that wait until the free ports are known.

use std::time::{Duration, Instant};

use ffi::JobId;

/// The waiting jobs, in the order of their arrival.
#[derive(Default)]
pub struct WaitingJobs(Vec<WaitingJob>);

#[derive(Clone, Copy)]
pub struct WaitingJob {
    pub job: JobId,
    pub uid: u32,
    since: Instant,
}

impl WaitingJobs {
    pub fn push(&mut self, job: JobId, uid: u32) {
        let since = Instant::now();
        self.0.push(WaitingJob { job, uid, since });
    }

    /// Removes a job. Returns false if it is not waiting.
    pub fn remove(&mut self, job: JobId) -> bool {
        let at = self.0.iter().position(|waiting| waiting.job == job);
        at.map(|at| self.0.remove(at)).is_some()
    }

    /// Returns how long the first job has waited.
    pub fn longest(&self) -> Option<Duration> {
        self.0.iter().map(|waiting| waiting.since.elapsed()).max()
    }

    /// Returns the jobs that have waited for at least the timeout.
    pub fn late(&self, timeout: Duration) -> Vec<JobId> {
        let late = self.0.iter().filter(|waiting| waiting.since.elapsed() >= timeout);
        late.map(|waiting| waiting.job).collect()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl IntoIterator for WaitingJobs {
    type Item = WaitingJob;
    type IntoIter = std::vec::IntoIter<WaitingJob>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
