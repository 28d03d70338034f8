# SPDX-License-Identifier: MIT OR Apache-2.0
"""What dws-jobtap.so and dws_environment.so cost, against those of flux-coral2: run inside an instance by bench/run.

FLUX_CORAL2_PLUGINS is the directory that has the other's job-manager/plugins and shell/plugins.
"""

import json
import os
import statistics

from lib import JOBS, PLUGINS, ROUNDS, Server, bounded, events, flux, jobs, ms, ratio, row, section, timed, turns

DW = "--setattr=system.dw=#DW"
THEIRS = os.environ["FLUX_CORAL2_PLUGINS"] + "/job-manager/plugins"
# The initrc loads one shell plugin or the other by this.
OTHER = "--env=FLUX_BENCH_OTHER=1"
NEITHER = "--env=FLUX_BENCH_WITHOUT=1"


def run(mine, n, *options):
    flux("jobtap", "load", f"{PLUGINS if mine else THEIRS}/dws-jobtap.so")
    ids, rate = jobs(n, DW, *([] if mine else [OTHER]), *options)
    answer = json.loads(flux("jobtap", "query", "dws-jobtap.so")) if mine else None
    flux("jobtap", "remove", "dws-jobtap.so")
    return ids, rate, answer


def prolog(job):
    main = events(job)
    return main["prolog-finish dws-setup"] - main["prolog-start dws-setup"]


def start(job):
    shell = events(job, "-p", "exec")
    return shell["shell.start"] - shell["init"]


service = Server(("flux", "python", os.path.dirname(__file__) + "/service.py"), lines=True, name="service.py")
service.line("did not get ready")
try:
    rates, prologs, starts, reactor = ({True: [], False: [], None: []} for _ in range(4))
    # As in tokens.py, one at a time first.
    for mine in turns(ROUNDS * 6):
        (job,), _, _ = run(mine, 1)
        prologs[mine].append(prolog(job))
        starts[mine].append(start(job))
        # What no plugin of the job shell can be below, with all else as it is.
        (job,), _, _ = run(mine, 1, NEITHER)
        starts[None].append(start(job))
    # What the shell spends on the plugin, whatever else goes on at that time.
    base = os.environ["BENCH_TOKEN"]
    conf = f'conf = {{ ["munge-socket"] = "{os.environ["BENCH_SOCKET"]}" }}'
    theirs = os.environ["FLUX_CORAL2_PLUGINS"] + "/shell/plugins/dws_environment.so"
    loads = {
        True: f'plugin.load {{ file = "dws_environment.so", {conf} }}',
        False: f'plugin.load {{ file = "{theirs}" }}',
    }
    times = {mine: timed(f"{base}.{mine}.lua", load) for mine, load in loads.items()}
    for mine in turns(ROUNDS * 4):
        run(mine, 1, "-o", f"initrc={base}.{mine}.lua")
    for mine in turns(ROUNDS * 3):
        _, rate, answer = run(mine, JOBS)
        rates[mine].append(rate)
        if mine:
            reactor[mine].append(answer["reactor-us"]["delivery-cpu-median"])
finally:
    service.kill()

section("Rabbit jobs", "The peers are the plugins of flux-coral2, which seal nothing. The service answers at once.")
bounded(
    "rabbit-rate",
    f"jobs a second, {JOBS} at once",
    f"{statistics.median(rates[True]):.1f}",
    f"theirs {statistics.median(rates[False]):.1f}",
    ratio(rates[True], rates[False]),
)
more = statistics.median(prologs[True]) - statistics.median(prologs[False])
bounded(
    "rabbit-prolog",
    "prolog, median, one job at a time",
    ms(prologs[True]),
    f"theirs {ms(prologs[False])}",
    more * 1e3,
    "ms more",
)
medians = {whose: statistics.median(starts[whose]) for whose in starts}
bounded(
    "rabbit-shell",
    "job shell, init to shell.start, median",
    ms(starts[True]),
    f"theirs {ms(starts[False])}, none {ms(starts[None])}",
    medians[True] / medians[False],
    "of theirs",
)
row("the same for a shell without a plugin", ms(starts[None]), "", f"{medians[None] / medians[False]:.2f} of theirs")
own = {mine: statistics.median(read()) / 1e3 for mine, read in times.items()}
row(
    "job shell, in the plugin: its load and its shell.init, median",
    f"{own[True]:.2f} ms",
    f"theirs {own[False]:.2f} ms",
    f"{own[True] / own[False]:.2f} of theirs",
)
figure = "the job manager's thread for a delivery, processor time, median"
bounded("rabbit-reactor", figure, "", "", statistics.median(reactor[True]), "µs")
