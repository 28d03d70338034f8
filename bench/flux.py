"""What the plugins cost on a real Flux: run inside an instance by bench/run."""

import json
import os
import signal
import statistics
import subprocess
import time

ROUNDS = int(os.environ.get("BENCH_ROUNDS", 5))
JOBS = int(os.environ.get("BENCH_JOBS", 100))
JOBTAP = os.environ["WORKFLOW_TOKEN_STAGE"] + "/lib/flux/job-manager/plugins/workflow-token.so"


def flux(*args):
    return subprocess.run(("flux", *args), check=True, stdout=subprocess.PIPE, text=True, timeout=600).stdout


def load():
    flux("jobtap", "load", JOBTAP)


def remove():
    flux("jobtap", "remove", "workflow-token.so")


def query():
    return json.loads(flux("jobtap", "query", "workflow-token.so"))


def events(job, *which):
    lines = flux("job", "eventlog", "--format=json", *which, job).splitlines()
    return {event["name"]: event["timestamp"] for event in map(json.loads, lines)}


def jobs(n, *options):
    """Runs n jobs, and returns their ids and how many ended each second."""
    start = time.monotonic()
    out = flux("submit", "--wait", f"--cc=0-{n - 1}" if n > 1 else "--cc=0", "--setattr=system.workflow=1", *options, "true")
    return out.split(), n / (time.monotonic() - start)


def ms(seconds):
    return f"{seconds * 1e3:.2f} ms"


with_rate, without_rate, prolog, with_shell, without_shell = [], [], [], [], []
for turn in range(ROUNDS):
    # The order of the two changes each round, so that neither always finds the warmer machine.
    for mine in (True, False) if turn % 2 == 0 else (False, True):
        if mine:
            load()
        # Without the plugins at all: neither the job manager's nor the shell's.
        ids, rate = jobs(JOBS, *([] if mine else ["--env=FLUX_BENCH_WITHOUT=1"]))
        (with_rate if mine else without_rate).append(rate)
        if mine:
            answer = query()
            remove()
        for job in ids[:: max(1, JOBS // 25)]:
            if mine:
                main = events(job)
                prolog.append(main["prolog-finish"] - main["prolog-start"])

# One job at a time: what a job waits for, with nothing else on the machine.
load()
quiet_prolog = []
for turn in range(ROUNDS * 10):
    for mine in (True, False) if turn % 2 == 0 else (False, True):
        (job,), _ = jobs(1, *([] if mine else ["--env=FLUX_BENCH_WITHOUT=1"]))
        shell = events(job, "-p", "exec")
        (with_shell if mine else without_shell).append(shell["shell.init"] - shell["init"])
        if mine:
            main = events(job)
            quiet_prolog.append(main["prolog-finish"] - main["prolog-start"])
quiet = query()
remove()

print("On Flux " + flux("version").split("libflux-core:")[1].split()[0])
ratio = statistics.median(a / b for a, b in zip(with_rate, without_rate))
print(
    f"  jobs a second, every job matching: {statistics.median(with_rate):.1f}, without the plugins"
    f" {statistics.median(without_rate):.1f}: ratio {ratio:.2f} (wanted: at least 0.95)"
)
print(
    f"  prolog, median: {ms(statistics.median(quiet_prolog))} for one job at a time,"
    f" {ms(statistics.median(prolog))} for {JOBS} at once (wanted: at most 2 ms)"
)
added = statistics.median(with_shell) - statistics.median(without_shell)
print(
    f"  job shell, init to shell.init, median: {ms(statistics.median(with_shell))}, without"
    f" {ms(statistics.median(without_shell))}: {ms(added)} more (wanted: at most 1 ms)"
)
print(
    f"  reactor thread: {quiet['reactor-us']['delivery-cpu-median']} µs of processor time for a delivery, median, one job at a time"
    f" ({answer['reactor-us']['delivery-cpu-median']} µs for {JOBS} at once; wanted: at most 50 µs)"
)

# munged is stopped: the reactor thread must not notice.
load()
munged = int(os.environ["BENCH_MUNGED"])
os.kill(munged, signal.SIGSTOP)
# One job: it holds its core while it waits, and the others need one.
stuck = flux("submit", "--setattr=system.workflow=1", "true").split()
start = time.monotonic()
flux("submit", "--quiet", "--wait", "--cc=1-20", "--env=FLUX_BENCH_WITHOUT=1", "true")
others = time.monotonic() - start
longest = query()["reactor-us"]["callback-max"]
os.kill(munged, signal.SIGCONT)
for job in stuck:
    flux("job", "wait-event", "-t", "120", job, "clean")
remove()
start = time.monotonic()
flux("submit", "--quiet", "--wait", "--cc=1-20", "true")
plain = time.monotonic() - start
print(
    f"  munged stopped: longest callback {longest} µs (wanted: at most 1000 µs);"
    f" 20 other jobs took {others:.2f} s, and {plain:.2f} s without the plugin"
)
