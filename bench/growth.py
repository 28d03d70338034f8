# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a delivery costs with many others in flight, on the Flux simulator: run by bench/run.

BENCH_FLUX_SIM is the simulator, BENCH_SOCKET the socket of munged, BENCH_TOKEN the file whose content the jobs get. No job is
started: one whose prologs are over waits in RUN until it is canceled, so that what is measured is the plugin and not a
hundred thousand processes.
"""

import json
import os
import statistics
import subprocess
import tempfile
import threading
import time

from lib import PLUGINS, bounded, row, section

FLUX_SIM, SOCKET, TOKEN = (os.environ["BENCH_" + name] for name in ("FLUX_SIM", "SOCKET", "TOKEN"))
PLUGIN = f"{PLUGINS}/workflow-token.so"
PATIENCE = 600  # No measure of time: it ends a run that would hang.

# So many in flight at once, and how often. With fewer, each pays for more of a commit: those are no peer.
FEWER, FEW, MANY = {1: 200, 10: 20}, 100, {1_000: 3, 10_000: 3, 100_000: 1}
ROUNDS_OF_FEW = 10
WARM, BURST, QUEUES = 20, 10_000, (1_000, 100_000)

CONFIG = f"""[workflow-token]
timeout = "1h"
munge-socket = "{SOCKET}"
[[workflow-token.rule]]
attribute = "system.workflow"
source = "file"
path = "{TOKEN}"
"""


class Simulator:
    """An instance of the simulator, which is driven by lines of JSON. It starts no jobs."""

    def __init__(self, *options):
        self.dir = tempfile.TemporaryDirectory()
        config = os.path.join(self.dir.name, "flux.toml")
        with open(config, "w") as out:
            out.write(CONFIG)
        start = (FLUX_SIM, "instance", "--config", config, "--statedir", os.path.join(self.dir.name, "state"), *options)
        self.process = subprocess.Popen(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.sent, self.responses, self.news = 0, {}, threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()
        self.ok("fault", what="hold-starts")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        if self.process.wait(PATIENCE) != 0:
            raise RuntimeError("the simulator did not end well")
        self.dir.cleanup()

    def _read(self):
        for line in self.process.stdout:
            response = json.loads(line)
            with self.news:
                self.responses[response["id"]] = response
                self.news.notify()

    def all(self, cmd, requests):
        """Sends many requests at once, and returns the responses."""
        first = self.sent + 1
        for request in requests:
            self.sent += 1
            self.process.stdin.write(json.dumps({"cmd": cmd, "id": self.sent, **request}) + "\n")
        self.process.stdin.flush()
        with self.news:
            if not self.news.wait_for(lambda: len(self.responses) > self.sent - first, PATIENCE):
                raise RuntimeError(f"{cmd}: the simulator does not answer")
            responses = [self.responses.pop(id) for id in range(first, self.sent + 1)]
        for response in responses:
            if not response["ok"]:
                raise RuntimeError(f"{cmd}: {response}")
        return responses

    def ok(self, cmd, **fields):
        return self.all(cmd, [fields])[0]

    def submit(self, count, **more):
        job = {"command": ["true"], "attributes": {"system": {"workflow": 1}}, **more}
        return [response["jobid"] for response in self.all("submit", [job] * count)]

    def cancel(self, jobs):
        self.all("cancel", [{"jobid": job} for job in jobs])

    def query(self):
        return self.ok("query", name="workflow-token.so")["result"]

    def until(self, counter, value):
        """Waits until a counter of the plugin has a value."""
        pause, end = 0.001, time.monotonic() + PATIENCE
        while self.query()[counter] != value:
            if time.monotonic() > end:
                raise RuntimeError(f"{counter} does not become {value}: {self.query()}")
            time.sleep(pause)
            pause = min(2 * pause, 0.05)

    def settle(self):
        """Waits until the process needs no more memory, since then all records are made."""
        most, same = 0, 0
        while same < 15:
            time.sleep(0.1)
            status = open(f"/proc/{self.process.pid}/status", encoding="utf-8").read()
            now = int(status.split("RssAnon:")[1].split()[0])
            same = same + 1 if now - most < 4 else 0
            most = max(most, now)

    def cpu(self):
        """Processor time of the reactor thread, which is the first one, in seconds: proc_pid_schedstat."""
        pid = self.process.pid
        return int(open(f"/proc/{pid}/task/{pid}/schedstat").read().split()[0]) / 1e9


def fly(count, rounds=1):
    """Has so many deliveries in flight at once, and then ended, so often. Times are in microseconds."""
    with Simulator("--jobtap", PLUGIN) as simulator:
        # Its threads are there, and all that is made once.
        warm = simulator.submit(WARM)
        simulator.until("delivered", WARM)
        simulator.cancel(warm)
        simulator.until("unlinked", WARM)
        # The counters of times begin anew with the plugin.
        simulator.ok("remove", name="workflow-token.so")
        simulator.ok("load", path=PLUGIN)
        cpu = 0.0
        for _ in range(rounds):
            simulator.ok("fault", what="hold-commits")
            began = simulator.cpu()
            jobs = simulator.submit(count)
            simulator.until("in-flight", count)
            cpu += simulator.cpu() - began
            if count > FEW:
                simulator.settle()
            began = simulator.cpu()
            simulator.ok("fault", what="release-commits")
            simulator.until("in-flight", 0)
            cpu += simulator.cpu() - began
            simulator.cancel(jobs)
        simulator.until("unlinked", count * rounds)
        counters = simulator.query()
    if counters["delivered"] != count * rounds:
        raise RuntimeError(f"not all were delivered: {counters}")
    found = {what: counters["reactor-us"][f"delivery-cpu-{what}"] for what in ("median", "mean", "p99", "max")}
    return {**found, "thread": cpu / count / rounds * 1e6}


def middle(runs):
    return {what: statistics.median(run[what] for run in runs) for what in runs[0]}


def times(run):
    return f"{run['median']:.1f} µs, mean {run['mean']:.1f}, 99 % {run['p99']:.1f}, longest {run['max']:.0f}"


def in_flight():
    """Many, each time between two times few: the machine may not be as fast all the time."""
    fewer = {count: fly(count, rounds) for count, rounds in FEWER.items()}
    few, many, ratios = [fly(FEW, ROUNDS_OF_FEW)], {}, {}
    for count, turns in MANY.items():
        many[count], ratios[count] = [], []
        for _ in range(turns):
            many[count].append(fly(count))
            few.append(fly(FEW, ROUNDS_OF_FEW))
            ratios[count].append({what: 2 * many[count][-1][what] / (few[-2][what] + few[-1][what]) for what in few[0]})
    section(
        "Many deliveries at once",
        "On the Flux simulator. The KVS holds the records back, so all deliveries are in flight at the same time. The figures are processor "
        "time of the reactor thread, which is the thread of the job manager. Ratios are to 100 in flight.",
    )
    figure = "a delivery"
    for count, run in {**fewer, FEW: middle(few)}.items():
        row(f"{figure}, median, {count} in flight", times(run), key=f"in-flight-{count}")
    of_few = f"of that with {FEW}"
    for count, runs in many.items():
        name, median = f"{figure}, median, {count:,} in flight", middle(ratios[count])["median"]
        bounded("in-flight-median", name, times(middle(runs)), "", median, of_few, key=f"in-flight-{count}")
    for count in many:
        name, mean = f"{figure}, mean, {count:,} in flight", middle(ratios[count])["mean"]
        bounded("in-flight-mean", name, "", "", mean, of_few, key=f"in-flight-mean-{count}")
    for count, runs in many.items():
        texts = f"{middle(runs)['thread']:.0f} µs a job", f"with {FEW} {middle(few)['thread']:.0f} µs"
        name, thread = (
            f"all work of the thread, with that of the simulator, {count:,} in flight",
            middle(ratios[count])["thread"],
        )
        bounded("in-flight-thread", name, *texts, thread, of_few, key=f"in-flight-thread-{count}")


def burst():
    """All wait for resources, and get them at once."""
    with Simulator("--jobtap", PLUGIN) as simulator:
        simulator.ok("fault", what="hold-allocs")
        jobs = simulator.submit(BURST)
        began = time.monotonic()
        simulator.ok("fault", what="release-allocs")
        simulator.until("started", BURST)
        entered = time.monotonic() - began
        simulator.until("in-flight", 0)
        took = time.monotonic() - began
        counters = simulator.query()
        simulator.cancel(jobs)
        simulator.until("unlinked", BURST)
    section(f"A burst of {BURST:,} jobs", "All jobs enter RUN at once, on the Flux simulator.")
    bounded("burst-entered", "until all have entered RUN", "", "", entered, "s")
    bounded(
        "burst-delivered",
        "jobs that got their token",
        f"{counters['delivered']:,}, the last one after {took:.2f} s",
        "",
        counters["delivered"] - counters["failed"],
        result=f"{BURST / took:.0f} a second",
    )
    reactor = counters["reactor-us"]
    for what in ("median", "max"):
        row(
            f"a callback of the plugin on the reactor thread, {what}, wall-clock time",
            f"{reactor['callback-' + what]:.1f} µs",
        )
    bounded("burst-callback", "the longest callback, processor time", "", "", reactor["callback-cpu-max"] / 1e3, "ms")


def load(count):
    """Microseconds that the plugin takes to be loaded with so many jobs in the queue, and how many of them for the jobs."""
    with Simulator() as simulator:
        simulator.submit(count, urgency=0)
        simulator.ok("stats", reset=True)
        simulator.ok("load", path=PLUGIN)
        topics = {name: topic["total_us"] for name, topic in simulator.ok("stats")["topics"].items()}
    return sum(topics.values()), topics["job.new"]


def queue():
    section("Loading the plugin with a long queue", "The jobs in the queue wait for resources, on the Flux simulator.")
    for count in QUEUES:
        whole, jobs = load(count)
        row(f"time of the reactor thread, {count:,} jobs", f"{whole / 1e3:.1f} ms", key=f"queue-{count}")
        bounded(
            "queue-per-job",
            f"the same for each job, {count:,} jobs",
            "",
            "",
            jobs / count,
            "µs",
            key=f"queue-per-job-{count}",
        )


in_flight()
burst()
queue()
