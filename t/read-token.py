#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""A task that reads its token from the file every 10 ms until the file `stop` of the DIRECTORY exists. Prints the
results.

Usage: read-token.py DIRECTORY
"""

import base64
import json
import os
import signal
import sys
import time

signals = 0


def received(*_):
    global signals
    signals += 1


def expiry(token):
    """Returns the time when a token expires. Fails if the token is incomplete."""
    header, claims, signature = (base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in token.split("."))
    assert json.loads(header) and len(signature) == 32
    return json.loads(claims)["exp"]


def name_of(job, task):
    """Returns a name for this task, from the variables of the scheduler."""
    return job in os.environ and f"{os.environ[job]}.{os.environ[task]}"


def main():
    directory, name = sys.argv[1], name_of("FLUX_JOB_ID", "FLUX_TASK_RANK") or name_of("SLURM_JOB_ID", "SLURM_PROCID")
    path = os.environ["DW_WORKFLOW_TOKEN_FILE"]
    signal.signal(signal.SIGUSR1, received)
    reads, incomplete, expired, tokens = 0, 0, 0, []

    def read():
        nonlocal reads, incomplete, expired
        with open(path) as file:
            token = file.read()
        try:
            expired += expiry(token) <= time.time()
        except (ValueError, AssertionError):
            incomplete += 1
        if token not in tokens:
            tokens.append(token)
        reads += 1

    open(f"{directory}/started.{name}", "w").close()
    while not os.path.exists(directory + "/stop"):
        read()
        time.sleep(0.01)
    # The last read. A signal from now on is for a token that is not read, unless that of the last token is still to come.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    read()
    pending = len(tokens) - 1 > signals and signal.sigtimedwait({signal.SIGUSR1}, 10) is not None
    first = tokens[0] == os.environ["DW_WORKFLOW_TOKEN"]
    print(
        json.dumps(
            {
                "reads": reads,
                "incomplete": incomplete,
                "expired": expired,
                "first": first,
                "tokens": len(tokens),
                "signals": signals + pending,
            }
        )
    )


main()
