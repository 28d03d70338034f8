"""What dws-jobtap.so and dws_environment.so cost, against those of flux-coral2: run inside an instance by bench/run.

FLUX_CORAL2_PLUGINS is the directory that has the other's job-manager/plugins and shell/plugins.
"""

import json
import os
import subprocess
import statistics
import sys

from lib import JOBS, PLUGINS, ROUNDS, events, flux, jobs, ms, ratio, turns

DW = "--setattr=system.dw=#DW"
THEIRS = os.environ["FLUX_CORAL2_PLUGINS"] + "/job-manager/plugins"
# The initrc loads one shell plugin or the other by this.
OTHER = "--env=FLUX_BENCH_OTHER=1"


def run(mine, n):
    flux("jobtap", "load", f"{PLUGINS if mine else THEIRS}/dws-jobtap.so")
    ids, rate = jobs(n, DW, *([] if mine else [OTHER]))
    answer = json.loads(flux("jobtap", "query", "dws-jobtap.so")) if mine else None
    flux("jobtap", "remove", "dws-jobtap.so")
    return ids, rate, answer


def prolog(job):
    main = events(job)
    return main["prolog-finish dws-setup"] - main["prolog-start dws-setup"]


def start(job):
    shell = events(job, "-p", "exec")
    return shell["shell.start"] - shell["init"]


service = subprocess.Popen(["flux", "python", os.path.dirname(__file__) + "/service.py"], stdout=subprocess.PIPE, text=True)
assert service.stdout.readline() == "ready\n"
try:
    rates, prologs, starts, reactor = ({True: [], False: []} for _ in range(4))
    for mine in turns(ROUNDS):
        ids, rate, answer = run(mine, JOBS)
        rates[mine].append(rate)
        if mine:
            reactor[mine].append(answer["reactor-us"]["delivery-cpu-median"])
    for mine in turns(ROUNDS * 6):
        (job,), _, _ = run(mine, 1)
        prologs[mine].append(prolog(job))
        starts[mine].append(start(job))
finally:
    service.kill()

print("Rabbit jobs, against the plugins of flux-coral2, with a service that answers at once")
print(
    f"  jobs a second, {JOBS} at once: {statistics.median(rates[True]):.1f}, theirs {statistics.median(rates[False]):.1f}:"
    f" ratio {ratio(rates[True], rates[False]):.2f} (wanted: at least 1.0)"
)
more = statistics.median(prologs[True]) - statistics.median(prologs[False])
print(
    f"  prolog, one job at a time, median: {ms(prologs[True])}, theirs {ms(prologs[False])}: {ms([more])} more"
    " (wanted: at most 1 ms)"
)
print(
    f"  job shell, init to shell.start, median: {ms(starts[True])}, theirs {ms(starts[False])}: ratio"
    f" {statistics.median(starts[True]) / statistics.median(starts[False]):.2f} (wanted: at most 0.9)"
)
print(f"  reactor thread, processor time to deliver, median: {statistics.median(reactor[True])} µs (wanted: at most 50 µs)")
sys.stdout.flush()
