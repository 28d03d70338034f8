// SPDX-License-Identifier: MIT OR Apache-2.0

//! The Flux instance.

use super::finding::{Finding, skip};
use crate::flux;

/// The Flux instance to which this command belongs.
pub enum Instance {
    /// An instance, and the uid of its owner.
    Here { owner: u32 },
    /// No instance, and the error that shows it.
    None(flux::Error),
    /// An instance whose replies are malformed.
    Broken(flux::Error),
}

impl Instance {
    pub fn find() -> Self {
        match flux::run(&["getattr", "security.owner"]) {
            Ok(uid) => match uid.trim().parse() {
                Ok(owner) => Self::Here { owner },
                Err(_) => Self::Broken(flux::Error::Failed {
                    command: "flux getattr security.owner".to_owned(),
                    says: "the reply is not a uid".to_owned(),
                }),
            },
            Err(e) if e.is_no_instance() => Self::None(e),
            Err(e) => Self::Broken(e),
        }
    }

    /// Returns the finding that the instance cannot be queried, or `None` if it can.
    pub fn absence(&self, check: &'static str) -> Option<Finding> {
        match self {
            Self::Here { .. } => None,
            Self::None(flux::Error::NotFound(_)) => Some(skip(
                check,
                "flux is not on PATH",
                "add the directory that contains flux to PATH, and run this again",
            )),
            Self::None(_) => Some(skip(
                check,
                "this does not run in a Flux instance",
                "run it where `flux uptime` works, as the instance owner",
            )),
            Self::Broken(_) => Some(skip(check, "the instance does not answer", "see the finding above")),
        }
    }
}
