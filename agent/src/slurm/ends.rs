//! The ends of jobs, as Slurm reports them. Questions about tokens delay no job that starts, and one job costs one question in half a
//! second, however many tokens it has.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use protocol::JobEnd;
use tokio::sync::{OnceCell, Semaphore};

use super::squeue;

/// The time for which an answer is used.
const FRESH: Duration = Duration::from_millis(500);

/// The number of questions that are asked at once.
const AT_ONCE: usize = 4;

/// The number of answers that are kept before old ones are dropped.
const MOST: usize = 4096;

/// The answers of the last moments.
pub struct Ends {
    known: Mutex<HashMap<u32, Entry>>,
    turns: Semaphore,
}

/// An answer, which the first who needs it asks for.
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
    /// For the operator: that is not known.
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
        // A question that nobody waits for any more has no answer.
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
