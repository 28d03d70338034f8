# SPDX-License-Identifier: MIT OR Apache-2.0
"""What workflow-token.so costs on a real Flux: run inside an instance by bench/run."""

import json
import os
import signal
import statistics
import time

from lib import ELSEWHERE, JOBS, PLUGINS, ROUNDS, bounded, events, flux, jobs, ms, ratio, row, section, turns

SOCKET, TOKEN = os.environ["BENCH_SOCKET"], os.environ["BENCH_TOKEN"]
# A file about as long as a sealed record of that token.
RECORD = TOKEN + ".record"

MATCH = "--setattr=system.workflow=1"
# Without the plugins at all: neither the job manager's nor the shell's.
WITHOUT = "--env=FLUX_BENCH_WITHOUT=1"

OURS = f"{PLUGINS}/workflow-token.so"


def load():
    flux("jobtap", "load", OURS)


def remove_one(plugin):
    flux("jobtap", "remove", os.path.basename(plugin.split()[0]))


def remove():
    remove_one(OURS)


def query():
    return json.loads(flux("jobtap", "query", "workflow-token.so"))


def prolog(job):
    main = events(job)
    return main["prolog-finish"] - main["prolog-start"]


# Other ways. They have no reader in the job shell, so that ours is left out as well.
INLINE = os.environ["CARGO_TARGET_DIR"] + "/release/libjobtap_bench_inline.so"
with open(RECORD, "w") as out:
    out.write("x" * (4 * (os.stat(TOKEN).st_size + 300) // 3 + 150))
PEERS = {
    "a job-manager prolog that calls munge and flux kvs put": "perilog.so",
    "munge_encode(3) in the callback": f"{INLINE} socket={SOCKET} path={TOKEN}",
    # What a commit for each job takes, which no plugin can be below that keeps something for each.
    "a plugin that commits as many bytes, and seals nothing": f"{INLINE} path={RECORD}",
}
COMMITS = PEERS["a plugin that commits as many bytes, and seals nothing"]
# One job at a time: what a job waits for, with nothing else on the machine. It comes first, since to the KVS a commit is the
# more work the more jobs there were in the instance.
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

alone = {peer: {True: [], False: []} for peer in PEERS}
for peer, plugin in PEERS.items():
    for mine in turns(ROUNDS):
        flux("jobtap", "load", *(OURS if mine else plugin).split())
        alone[peer][mine] += [prolog(jobs(1, MATCH, WITHOUT)[0][0]) for _ in range(10)]
        remove_one(OURS if mine else plugin)

with_rate, without_rate, bare_rate, prologs, reactor = [], [], [], [], []
# More than of others: what one costs is less than what two runs of the same differ by.
for mine in turns(ROUNDS * 3):
    if mine:
        load()
        ids, rate = jobs(JOBS, MATCH)
        with_rate.append(rate)
        reactor.append(query()["reactor-us"])
        remove()
        prologs += [prolog(job) for job in ids[:: max(1, JOBS // 25)]]
    else:
        without_rate.append(jobs(JOBS, MATCH, WITHOUT)[1])
    if len(with_rate) != len(without_rate):
        # Between the two.
        flux("jobtap", "load", *COMMITS.split())
        bare_rate.append(jobs(JOBS, MATCH, WITHOUT)[1])
        remove_one(COMMITS)

# The same where the job shells are on other nodes. There are more of them, as they take less.
FAR = JOBS * 2
elsewhere = {True: [], False: []}
for mine in turns(ROUNDS):
    if mine:
        load()
    elsewhere[mine].append(jobs(FAR, MATCH, ELSEWHERE)[1])
    if mine:
        remove()


def rates_text(rates):
    return f"{statistics.median(rates):.1f}"


section(
    "Jobs on Flux",
    "Each job has one task and a token. The figures without the plugins are from the same instance with neither plugin.",
)
bounded(
    "flux-rate",
    f"jobs a second, {JOBS} at once",
    rates_text(with_rate),
    f"without the plugins {rates_text(without_rate)}",
    ratio(with_rate, without_rate),
)
row(
    "the same with a plugin that commits as many bytes, seals nothing, and has job shells open nothing",
    rates_text(bare_rate),
    f"without the plugins {rates_text(without_rate)}",
    f"ratio {ratio(bare_rate, without_rate):.2f}",
)
row(
    f"jobs a second, {FAR} at once, job shells on other nodes",
    rates_text(elsewhere[True]),
    f"without the plugins {rates_text(elsewhere[False])}",
    f"ratio {ratio(elsewhere[True], elsewhere[False]):.2f}",
    key="flux-rate-elsewhere",
)
median = statistics.median
bounded("flux-prolog", "prolog, median, one job at a time", "", "", median(quiet_prologs) * 1e3, "ms")
row(f"prolog, median, {JOBS} at once", ms(prologs), key="flux-prolog-many")
bounded(
    "flux-shell",
    "job shell, init to shell.init, median",
    ms(with_shell),
    f"without the plugins {ms(without_shell)}",
    (median(with_shell) - median(without_shell)) * 1e3,
    "ms more",
)
for which, key in (("median", "median"), ("99 %", "p99")):
    value = median(times[f"delivery-cpu-{key}"] for times in reactor)
    figure = f"the job manager's thread for a delivery, processor time, {which}, {JOBS} at once"
    bounded(f"flux-reactor-{key}", figure, "", "", value, "µs")
longest = max(times["callback-cpu-max"] for times in reactor)
bounded(
    "flux-callback", "the longest callback on the job manager's thread, processor time", "", "", longest / 1e3, "ms"
)
row(
    "the job manager's thread for a delivery, processor time, median, one job at a time",
    f"{quiet} µs",
    key="flux-reactor-quiet",
)

for peer, plugin in PEERS.items():
    rates, far_rates = ({True: [], False: []} for _ in range(2))
    for mine in turns(ROUNDS):
        flux("jobtap", "load", *(OURS if mine else plugin).split())
        rates[mine].append(jobs(JOBS, MATCH, WITHOUT)[1])
        far_rates[mine].append(jobs(FAR, MATCH, ELSEWHERE)[1])
        remove_one(OURS if mine else plugin)
    for count, where, measured in ((JOBS, "", rates), (FAR, ", job shells on other nodes", far_rates)):
        figure = f"jobs a second, {count} at once{where}"
        texts = rates_text(measured[True]), f"{peer}: {rates_text(measured[False])}"
        value = ratio(measured[True], measured[False])
        # Where the job shells are here, they take most of the time whoever delivers.
        if plugin == "perilog.so" and where:
            bounded("flux-rate-prolog", figure, *texts, value)
        elif plugin == COMMITS and not where:
            bounded("flux-rate-commit", figure, *texts, value)
        else:
            row(figure, *texts, f"ratio {value:.2f}")
    ours, theirs = alone[peer][True], alone[peer][False]
    more = (median(ours) - median(theirs)) * 1e3
    texts = "prolog, median, one job at a time", ms(ours), f"{peer}: {ms(theirs)}"
    if plugin == COMMITS:
        bounded("flux-prolog-commit", *texts, more, "ms more")
    else:
        row(*texts, f"{abs(more):.2f} ms {'more' if more >= 0 else 'less'}")

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
bounded(
    "munged-stopped", "munged stopped for a while: the longest callback, wall-clock time", "", "", longest / 1e3, "ms"
)
row("munged stopped: 20 other jobs", f"{others:.2f} s", f"without the plugin {plain:.2f} s", key="munged-stopped-jobs")

# The same of who calls munged on the thread of the job manager: it stands still until munged goes on.
flux("jobtap", "load", INLINE, f"socket={SOCKET}", f"path={TOKEN}")
os.kill(munged, signal.SIGSTOP)
stuck = flux("submit", MATCH, WITHOUT, "true").split()
time.sleep(1)
os.kill(munged, signal.SIGCONT)
for job in stuck:
    flux("job", "wait-event", "-t", "120", job, "clean")
blocked = json.loads(flux("jobtap", "query", os.path.basename(INLINE)))["callback-max"]
flux("jobtap", "remove", os.path.basename(INLINE))
row(
    "munged stopped for 1 s: the longest callback of a plugin that calls munge_encode(3)", "", f"{blocked / 1e3:.0f} ms"
)
