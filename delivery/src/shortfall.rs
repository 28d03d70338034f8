// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reports tokens that are not renewed and expire before their jobs end. Their lifetime is known only after the fetch.

use std::time::{Duration, SystemTime};

use config::{OnShortfall, Outlook, Rule, round_for_users};
use protocol::{Code, Failure};
use seal::Variables;
use token::NumericDate;

use crate::{renewal::expiry, task::Task};

/// The time by which a token may expire before the end of its job: times in tokens are often rounded to seconds.
const TOLERANCE: Duration = Duration::from_secs(2);

/// Returns the line for the user about a token that expires before its job ends. `stated` is the expiry that its source
/// states.
///
/// # Errors
/// The token expires before the job ends, and its rule rejects such jobs.
pub(crate) fn check(
    rule: &Rule,
    task: &Task,
    variables: &Variables,
    stated: Option<SystemTime>,
) -> Result<Option<String>, Failure> {
    if task.generation > 0 || rule.renewal.after.is_some() || rule.on_shortfall == OnShortfall::Ignore {
        return Ok(None);
    }
    let now = SystemTime::now();
    let Some(expires) = expiry(rule, variables, stated, now) else {
        return Ok(None);
    };
    let seconds = expires - NumericDate::from(now).seconds();
    let lifetime = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    if task.limit.is_some_and(|limit| limit <= lifetime + TOLERANCE) {
        return Ok(None);
    }
    let line = rule.shortfall(&Outlook {
        limit: task.limit,
        lifetime: Some(round_for_users(lifetime)),
        ..Outlook::default()
    });
    match line {
        Some(line) if rule.on_shortfall == OnShortfall::Reject => {
            Err(Failure::new(Code::TokenShortfall, line.clone(), line))
        }
        line => Ok(line),
    }
}
