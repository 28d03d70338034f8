// SPDX-License-Identifier: MIT OR Apache-2.0

//! The requests without a final reply. A new connection repeats them all.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ffi::JobId;
use protocol::{Configure, Deliver, Hello, JobEnd, RELEASE, Reply, Request, VERSION};
use zeroize::Zeroizing;

/// Requests without a final reply, and the messages that this connection has not sent.
#[derive(Default)]
pub(super) struct Requests {
    configurations: BTreeMap<u32, Request>,
    deliveries: BTreeMap<u64, Request>,
    look_ups: BTreeSet<(u32, u32)>,
    unsent: VecDeque<Unsent>,
}

/// A message that must be sent, unless its request was withdrawn.
#[derive(Debug, Clone, Copy)]
enum Unsent {
    Hello,
    Configure(u32),
    Retire(u32),
    Deliver(u64),
    Cancel(u64),
    LookUp(u32, u32),
    Job(u64, Option<JobEnd>),
    Ended(u64),
}

fn job_of(request: &Request) -> Option<JobId> {
    match request {
        Request::Deliver(deliver) => Some(JobId(deliver.jobid)),
        _ => None,
    }
}

impl Requests {
    /// Adds a configuration.
    pub fn configure(&mut self, configure: Configure) {
        let generation = configure.generation;
        self.configurations.insert(generation, Request::Configure(configure));
        self.unsent.push_back(Unsent::Configure(generation));
    }

    /// Retires the configurations that no delivery names, except the active one.
    pub fn retire_unused(&mut self, in_force: u32) {
        let mut used = BTreeSet::from([in_force]);
        used.extend(self.deliveries.values().filter_map(|request| match request {
            Request::Deliver(deliver) => Some(deliver.generation),
            _ => None,
        }));
        let unused = self
            .configurations
            .keys()
            .filter(|generation| !used.contains(generation));
        let unused: Vec<u32> = unused.copied().collect();
        for generation in unused {
            self.configurations.remove(&generation);
            self.unsent.push_back(Unsent::Retire(generation));
        }
        self.look_ups.retain(|(generation, _)| used.contains(generation));
    }

    /// Adds a delivery.
    pub fn deliver(&mut self, deliver: Deliver) {
        let number = deliver.number;
        self.deliveries.insert(number, Request::Deliver(deliver));
        self.unsent.push_back(Unsent::Deliver(number));
    }

    /// Cancels a delivery. Returns whether it had no final reply.
    pub fn cancel(&mut self, number: u64) -> bool {
        let is_pending = self.deliveries.remove(&number).is_some();
        if is_pending {
            self.unsent.push_back(Unsent::Cancel(number));
        }
        is_pending
    }

    /// Adds the look-up of a user. Returns false if one is pending.
    pub fn look_up(&mut self, generation: u32, uid: u32) -> bool {
        let is_new = self.look_ups.insert((generation, uid));
        if is_new {
            self.unsent.push_back(Unsent::LookUp(generation, uid));
        }
        is_new
    }

    /// Adds the answer to a question about a job. It is not repeated on a new connection.
    pub fn answer_job(&mut self, number: u64, end: Option<JobEnd>) {
        self.unsent.push_back(Unsent::Job(number, end));
    }

    /// Adds the end of a job. It is not repeated on a new connection.
    pub fn ended(&mut self, jobid: u64) {
        self.unsent.push_back(Unsent::Ended(jobid));
    }

    /// Removes the request of a final reply. Returns the job of the reply; none if it concerns no job, or the delivery
    /// was canceled.
    pub fn replied(&mut self, reply: &Reply) -> Option<JobId> {
        match reply {
            Reply::Delivered { number, .. } | Reply::NoRule { number } | Reply::Failed { number, .. } => {
                self.deliveries.remove(number).as_ref().and_then(job_of)
            }
            Reply::Log(line) => self.deliveries.get(&line.number?).and_then(job_of),
            Reply::Owner { generation, uid, .. } => {
                self.look_ups.remove(&(*generation, *uid));
                None
            }
            Reply::Welcome { .. } | Reply::Configured { .. } | Reply::AskJob { .. } | Reply::Answer(_) => None,
        }
    }

    /// Schedules all requests for a new connection.
    pub fn repeat(&mut self) {
        self.unsent.clear();
        self.unsent.push_back(Unsent::Hello);
        self.unsent.extend(
            self.configurations
                .keys()
                .map(|generation| Unsent::Configure(*generation)),
        );
        self.unsent.extend(
            self.look_ups
                .iter()
                .map(|(generation, uid)| Unsent::LookUp(*generation, *uid)),
        );
        self.unsent
            .extend(self.deliveries.keys().map(|number| Unsent::Deliver(*number)));
    }

    /// Returns the frame of the next request to send.
    pub fn next_frame(&mut self) -> Option<Result<Zeroizing<Vec<u8>>, protocol::Error>> {
        loop {
            let made;
            let request = match self.unsent.pop_front()? {
                Unsent::Hello => {
                    let release = RELEASE.to_owned();
                    made = Request::Hello(Hello {
                        version: VERSION,
                        release,
                    });
                    Some(&made)
                }
                Unsent::Configure(generation) => self.configurations.get(&generation),
                Unsent::Deliver(number) => self.deliveries.get(&number),
                Unsent::Retire(generation) => {
                    made = Request::Retire { generation };
                    Some(&made)
                }
                Unsent::Cancel(number) => {
                    made = Request::Cancel { number };
                    Some(&made)
                }
                Unsent::Job(number, end) => {
                    made = Request::Job { number, end };
                    Some(&made)
                }
                Unsent::Ended(jobid) => {
                    made = Request::Ended { jobid };
                    Some(&made)
                }
                Unsent::LookUp(generation, uid) => {
                    made = Request::LookUp { generation, uid };
                    Some(&made)
                }
            };
            // It may have been withdrawn meanwhile.
            if let Some(request) = request {
                return Some(protocol::encode(request));
            }
        }
    }
}
