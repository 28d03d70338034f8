// SPDX-License-Identifier: MIT OR Apache-2.0

//! Queries Slurm for the ends of jobs. The queries are limited, so that questions about tokens do not delay jobs that
//! start. A job causes at most one query in half a second, however many tokens it has.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use protocol::JobEnd;
use tokio::sync::{OnceCell, Semaphore};

use super::squeue;

/// The time for which an answer is valid.
const FRESH: Duration = Duration::from_millis(500);

/// The most concurrent queries.
const AT_ONCE: usize = 4;

/// The number of entries at which old ones are dropped.
const MOST: usize = 4096;

/// The recent answers.
pub struct Ends {
    known: Mutex<HashMap<u32, Entry>>,
    turns: Semaphore,
}

/// An answer. The first caller that needs it runs the query.
#[derive(Clone)]
struct Entry {
    asked: Instant,
    end: Arc<OnceCell<Result<Option<JobEnd>, String>>>,
}

impl Default for Ends {
    fn default() -> Self {
        Self {
            known: Mutex::default(),
            turns: Semaphore::new(AT_ONCE),
        }
    }
}

impl Ends {
    /// Returns the end of a job; none if it is active.
    ///
    /// # Errors
    /// For the operator: the query failed.
    pub async fn of(&self, jobid: u32) -> Result<Option<JobEnd>, String> {
        let end = self.entry(jobid).end;
        let ask = || async {
            let _turn = self.turns.acquire().await.map_err(|e| e.to_string())?;
            squeue::end_of(jobid).await
        };
        end.get_or_init(ask).await.clone()
    }

    fn entry(&self, jobid: u32) -> Entry {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // An abandoned query is not initialized, and no caller holds it.
        let is_awaited = |entry: &Entry| !entry.end.initialized() && Arc::strong_count(&entry.end) > 1;
        let is_fresh = |entry: &Entry| entry.asked.elapsed() < FRESH || is_awaited(entry);
        if known.len() >= MOST {
            known.retain(|_, entry| is_fresh(entry));
        }
        if let Some(entry) = known.get(&jobid).filter(|entry| is_fresh(entry)) {
            return entry.clone();
        }
        let entry = Entry {
            asked: Instant::now(),
            end: Arc::default(),
        };
        known.insert(jobid, entry.clone());
        entry
    }
}
