# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the benchmarks on a real Flux share: jobs, their events, and medians."""

import json
import os
import statistics
import subprocess
import sys
import time

import bounds

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)) + "/../scripts")
from server import Server  # noqa: E402, F401 (other benchmarks import it from here)

ROUNDS = int(os.environ.get("BENCH_ROUNDS", 5))
JOBS = int(os.environ.get("BENCH_JOBS", 200))
BOUNDS = bounds.load()
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


# Jobs whose job shells run on other nodes, as far as rank 0 can tell: job-exec(5) only says that it has started them.
ELSEWHERE = "--setattr=system.exec.test.run_duration=10ms"


def jobs(n, *options):
    """Runs n jobs, and returns their ids and how many ended each second."""
    start = time.monotonic()
    out = flux("submit", "--wait", f"--cc=0-{n - 1}" if n > 1 else "--cc=0", *options, "true")
    return out.split(), n / (time.monotonic() - start)


def timed(path, load):
    """Writes an initrc that loads a plugin with this line of Lua, and keeps how many microseconds the shell spends on it:
    while it is loaded, and in shell.init. Returns a function that reads what was kept."""
    kept = path + ".times"
    with open(path, "w") as out:
        out.write(
            f"""
local clock = require "posix.time"
local function now ()
    local t = clock.clock_gettime (clock.CLOCK_MONOTONIC)
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3
end
local function at_init (name, fn)
    plugin.register {{ name = name, handlers = {{ {{ topic = "shell.init", fn = fn }} }} }}
end
local began, took
at_init ("before", function () began = now () end)
local loading = now ()
{load}
took = now () - loading
at_init ("after", function ()
    local file = io.open ("{kept}", "a")
    file:write (took + now () - began, "\\n")
    file:close ()
end)
"""
        )

    def read():
        with open(kept) as times:
            return [float(line) for line in times]

    return read


def turns(rounds):
    """The two that are compared, in turns: the order changes each round, so that neither always finds the warmer machine."""
    for turn in range(rounds):
        yield from (True, False) if turn % 2 == 0 else (False, True)


def ratio(these, those):
    return statistics.median(a / b for a, b in zip(these, those))


def ms(seconds):
    return f"{statistics.median(seconds) * 1e3:.2f} ms"


def section(title, about=""):
    """Begins a part of the report, with what a reader must know about its figures."""
    _keep({"section": title, "about": about})
    print(title, flush=True)


def fact(name, value):
    """A property of the machine, for the report."""
    _keep({"fact": name, "value": value})


def row(figure, ours, peer="", result="", wanted="", met=None, key=None, value=None):
    """One figure: ours, that of the peer, and their ratio or difference. The summary of the report selects figures by their key."""
    _keep({"key": key, "figure": figure, "ours": ours, "peer": peer, "result": result, "value": value})
    verdict = "" if met is None else ", met" if met else ", NOT MET"
    measured = ", ".join(filter(None, (ours, peer)))
    wanted = f" (wanted: {wanted}{verdict})" if wanted else ""
    print("  " + ": ".join(filter(None, (figure, measured, result))) + wanted, flush=True)


def bounded(bound, figure, ours, peer, value, unit="", result=None, key=None):
    """A figure that bounds.toml bounds. Several figures may share a bound; then each has a key of its own."""
    if result is None:
        shown = str(value) if isinstance(value, int) else f"{value:.2f}"
        result = f"{shown} {unit}".strip() if "at-most" in BOUNDS[bound] else f"ratio {shown}"
    wanted = bounds.text(BOUNDS[bound])
    met = bounds.is_met(BOUNDS[bound], value)
    row(figure, ours, peer, result, f"{wanted} {unit}".strip(), met, key=key or bound, value=[bound, value])


def _keep(what):
    with open(os.environ["BENCH_ROWS"], "a") as rows:
        rows.write(json.dumps(what) + "\n")
