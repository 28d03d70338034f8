// SPDX-License-Identifier: MIT OR Apache-2.0

//! `job.event.exception`: an exception ends the prolog. In the epilog, it makes the service tear down the workflow.

use std::rc::Rc;

use ffi::{Args, PluginError};

use crate::rabbit_jobs::{EPILOG_TIMEOUT, RabbitJobs};

impl RabbitJobs {
    pub fn exception(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        let context = ["entry", "context"];
        let Some(job) = args.job() else { return Ok(()) };
        if args.integer(&[context[0], context[1], "severity"]) != Some(0) {
            return Ok(());
        }
        if self.end_prolog(job) {
            return Ok(());
        }
        if !self.in_epilog(job) {
            return Ok(());
        }
        let kind = args.string(&[context[0], context[1], "type"]);
        // Flux records the instance owner as the sender of the exceptions of plugins.
        let is_from_owner =
            args.integer(&[context[0], context[1], "userid"]) == Some(nix::unistd::geteuid().as_raw().into());
        if is_from_owner && kind.as_deref().map(str::as_bytes) == Some(EPILOG_TIMEOUT.to_bytes()) {
            self.notify(job, c"dws.abort");
            self.finish_epilog(job, 1).map_err(PluginError)
        } else {
            // Before `dws.post_run`, the service does not know that the job has ended. It gets that request later.
            if self.life(job).epilog.is_sent() {
                self.notify(job, c"dws.teardown");
            }
            Ok(())
        }
    }
}
