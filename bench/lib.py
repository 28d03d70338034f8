"""What the benchmarks on a real Flux share: jobs, their events, and medians."""

import json
import os
import statistics
import subprocess
import time

ROUNDS = int(os.environ.get("BENCH_ROUNDS", 5))
JOBS = int(os.environ.get("BENCH_JOBS", 200))
PLUGINS = os.environ["WORKFLOW_TOKEN_STAGE"] + "/lib/flux/job-manager/plugins"


def flux(*args):
    return subprocess.run(("flux", *args), check=True, stdout=subprocess.PIPE, text=True, timeout=600).stdout


def events(job, *which):
    """When the events of a job's eventlog happened, by name; of the prologs and epilogs, those with a description."""
    found = {}
    for line in flux("job", "eventlog", "--format=json", *which, job).splitlines():
        event = json.loads(line)
        description = (event.get("context") or {}).get("description")
        for name in (event["name"], f"{event['name']} {description}"):
            found.setdefault(name, event["timestamp"])
    return found


def jobs(n, *options):
    """Runs n jobs, and returns their ids and how many ended each second."""
    start = time.monotonic()
    out = flux("submit", "--wait", f"--cc=0-{n - 1}" if n > 1 else "--cc=0", *options, "true")
    return out.split(), n / (time.monotonic() - start)


def turns(rounds):
    """The two that are compared, in turns: the order changes each round, so that neither always finds the warmer machine."""
    for turn in range(rounds):
        yield from (True, False) if turn % 2 == 0 else (False, True)


def ratio(these, those):
    return statistics.median(a / b for a, b in zip(these, those))


def ms(seconds):
    return f"{statistics.median(seconds) * 1e3:.2f} ms"
