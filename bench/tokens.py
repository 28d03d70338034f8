"""What workflow-token.so costs on a real Flux: run inside an instance by bench/run."""

import json
import os
import signal
import statistics
import time

from lib import JOBS, PLUGINS, ROUNDS, events, flux, jobs, ms, ratio, turns

MATCH = "--setattr=system.workflow=1"
# Without the plugins at all: neither the job manager's nor the shell's.
WITHOUT = "--env=FLUX_BENCH_WITHOUT=1"


def load():
    flux("jobtap", "load", f"{PLUGINS}/workflow-token.so")


def remove():
    flux("jobtap", "remove", "workflow-token.so")


def query():
    return json.loads(flux("jobtap", "query", "workflow-token.so"))


def prolog(job):
    main = events(job)
    return main["prolog-finish"] - main["prolog-start"]


with_rate, without_rate, prologs, reactor = [], [], [], []
for mine in turns(ROUNDS):
    if not mine:
        without_rate.append(jobs(JOBS, MATCH, WITHOUT)[1])
        continue
    load()
    ids, rate = jobs(JOBS, MATCH)
    with_rate.append(rate)
    reactor.append(query()["reactor-us"]["delivery-cpu-median"])
    remove()
    prologs += [prolog(job) for job in ids[:: max(1, JOBS // 25)]]

# One job at a time: what a job waits for, with nothing else on the machine.
load()
quiet_prologs, with_shell, without_shell = [], [], []
for mine in turns(ROUNDS * 10):
    (job,), _ = jobs(1, MATCH, *([] if mine else [WITHOUT]))
    shell = events(job, "-p", "exec")
    (with_shell if mine else without_shell).append(shell["shell.init"] - shell["init"])
    if mine:
        quiet_prologs.append(prolog(job))
quiet = query()["reactor-us"]["delivery-cpu-median"]
remove()

print("On Flux " + flux("version").split("libflux-core:")[1].split()[0])
print(
    f"  jobs a second, {JOBS} at once, every job matching: {statistics.median(with_rate):.1f}, without the plugins"
    f" {statistics.median(without_rate):.1f}: ratio {ratio(with_rate, without_rate):.2f} (wanted: at least 0.95)"
)
print(
    f"  prolog, median: {ms(quiet_prologs)} for one job at a time, {ms(prologs)} for {JOBS} at once (wanted: at most 2 ms)"
)
added = statistics.median(with_shell) - statistics.median(without_shell)
print(
    f"  job shell, init to shell.init, median: {ms(with_shell)}, without {ms(without_shell)}: {ms([added])} more"
    " (wanted: at most 1 ms)"
)
print(
    f"  reactor thread, processor time for a delivery, median: {statistics.median(reactor)} µs for {JOBS} at once,"
    f" {quiet} µs for one job at a time (wanted: at most 50 µs)"
)

# munged is stopped: the reactor thread must not notice.
load()
munged = int(os.environ["BENCH_MUNGED"])
os.kill(munged, signal.SIGSTOP)
stuck = flux("submit", MATCH, "true").split()
start = time.monotonic()
flux("submit", "--quiet", "--wait", "--cc=1-20", WITHOUT, "true")
others = time.monotonic() - start
longest = query()["reactor-us"]["callback-max"]
os.kill(munged, signal.SIGCONT)
for job in stuck:
    flux("job", "wait-event", "-t", "120", job, "clean")
remove()
start = time.monotonic()
flux("submit", "--quiet", "--wait", "--cc=1-20", WITHOUT, "true")
plain = time.monotonic() - start
print(
    f"  munged stopped: longest callback {longest} µs (wanted: at most 1000 µs);"
    f" 20 other jobs took {others:.2f} s, and {plain:.2f} s without the plugin"
)
