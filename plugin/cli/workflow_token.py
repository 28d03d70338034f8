# SPDX-License-Identifier: MIT OR Apache-2.0
"""Keeps the tokens of a job out of the jobspecs that the job submits.

flux-run(1), flux-submit(1), flux-bulksubmit(1), flux-batch(1) and flux-alloc(1) copy the caller's environment into the
jobspec, which Flux stores in clear text. This plugin of these commands removes the variables that contain tokens. In
the instance, it reports jobspecs of other programs that contain such variables.
"""

import os
import sys
import syslog

from flux import Flux
from flux.cli.plugin import CLIPlugin

# The job shell plugin sets this variable to the names of the variables that it sets, separated by spaces.
NAMES = "WORKFLOW_TOKEN_VARIABLES"
ALWAYS = {NAMES, "DW_WORKFLOW_TOKEN", "DW_WORKFLOW_TOKEN_FILE"}


class WorkflowTokenPlugin(CLIPlugin):
    """Removes the variables that contain workflow tokens from the environment of jobspecs."""

    def modify_jobspec(self, args, jobspec):
        if not jobspec.environment:
            return
        # A Python program may have passed os.environ, which must not change.
        environment = dict(jobspec.environment)
        rules = getattr(args, "env", None) or []
        for name in sorted(ALWAYS.union(os.environ.get(NAMES, "").split()) & environment.keys()):
            if is_inherited(name, environment[name], rules):
                del environment[name]
            elif name != NAMES:
                print(
                    f"flux {self.prog}: warning: {name} is stored in clear text with the job. "
                    "If it is a secret, do not set it with --env.",
                    file=sys.stderr,
                )
        jobspec.environment = environment

    def validate(self, jobspec):
        """Reports a jobspec that was built without modify_jobspec. job-ingest calls this before it is stored."""
        environment = jobspec.environment or {}
        if NAMES not in environment:
            return
        names = sorted(ALWAYS.union(environment[NAMES].split()) & environment.keys() - {NAMES})
        why = f"the jobspec contains {', '.join(names)} of the enclosing job in its environment, in clear text"
        flux = Flux()
        if flux.conf_get("workflow-token.inner-jobs", default="warn", update=True) == "reject":
            raise ValueError(f"{why}: remove {'it' if len(names) == 1 else 'them'} and {NAMES} from it")
        flux.log(syslog.LOG_WARNING, f"workflow-token: {why}; see INNER JOBS in flux-jobtap-workflow-token(7)")


def is_inherited(name, value, rules):
    """Returns whether a variable has the caller's value, and no rule NAME=VALUE of --env sets it."""
    # A rule with a template leaves the caller's value in place; the job shell replaces it.
    explicit = any(rule.startswith(name + "=") and "{{" not in rule for rule in rules)
    return value == os.environ.get(name) and not explicit
