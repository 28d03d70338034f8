#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""soak.py tokens|rabbits SECONDS SEED DIR: randomized fault injection for an instance, run by `flux python` in it.

Keeps jobs running. Each task writes digests of its token and of its secret for Cray PMI to a file
(`out/JOBID.RANK`). Meanwhile, faults occur at random: munged is killed, stopped and restarted; sources or the
service for rabbits fail, hang and send garbage; jobs are canceled; plugins are removed and loaded again; the
configuration changes. At the end everything works again, and each job must have had its own secrets, or one
exception.

The environment contains MUNGED (the command that starts munged in the foreground), MUNGE_SOCKET, PLUGINS (the
directory of the job manager plugins), CONFIG (the directory of the configuration), KUBE (the directory of
kube-apiserver.py, which has the Workflow `soak`), and for rabbits SERVICE (the command that starts dws-service.py,
whose directory is `dws` and whose variables are in `variables`). DIR contains the program `keep` of the tasks,
`mode`, which the command of a source reads, `file`, which is the file of another source, `variables`, and
`expected`, with the expected digest for each of `file`, `command`, `kubernetes` and `rabbit`.
"""

import collections
import hashlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time

import flux
import flux.constants
import flux.job

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)) + "/../scripts")
from server import Server

AT_ONCE = 32
# In seconds.
YOUNG = 10
MODES = ("fail", "hang", "slow", "garbage", "empty", "huge", "killed")
# The digest of nothing: the output of a task without this secret.
NONE = hashlib.sha256(b"").hexdigest()

# The requester at the API server, and its normal settings.
WHO = "flux-workflow-token"
WORKS = {"answer-after": 0, "down": [], "forbid": {}, "refuse": []}


class Soak:
    """A run of jobs with tokens. Other runs override the names in capitals."""

    # The plugins, and the options with which they are loaded.
    PLUGINS = {"workflow-token.so": ()}
    # The kinds of jobs: their attribute, their number of nodes with a task on each, and the token that they have.
    KINDS = {name: (name, 1, name) for name in ("file", "command", "kubernetes")}
    # The types of exceptions that are clear.
    TYPES = {"workflow-token", "exec"}

    def __init__(self, seed, where):
        self.random = random.Random(seed)
        self.where = where
        self.handle = flux.Flux()
        self.munged = None
        self.broken = {}
        self.jobs = {}
        self.submitted = {}
        self.loaded = {name: 0.0 for name in self.PLUGINS}
        self.canceled = set()
        self.chaos = collections.Counter()
        self.outcomes = collections.Counter()
        self.wrong = []
        self.expected = dict(line.split() for line in open(os.path.join(where, "expected")))

    def path(self, name):
        return os.path.join(self.where, name)

    def write(self, name, text):
        """Writes a file atomically, so that a reader finds all of it."""
        with open(self.path("new"), "w") as new:
            new.write(text)
        os.rename(self.path("new"), self.path(name))

    # Faults and their end

    def munged_starts(self):
        self.munged = Server(shlex.split(os.environ["MUNGED"]))

    def munged_is_killed(self):
        self.munged.kill()

    def munged_is_stopped(self):
        self.munged.process.send_signal(signal.SIGSTOP)

    def munged_goes_on(self):
        self.munged.process.send_signal(signal.SIGCONT)

    def source_misbehaves(self):
        self.write("mode", self.random.choice(MODES))

    def source_behaves(self):
        self.write("mode", "good")

    def file_is_away(self):
        os.rename(self.path("file"), self.path("away"))

    def file_is_back(self):
        os.rename(self.path("away"), self.path("file"))

    def api_server_fails(self):
        how = self.random.choice(sorted(WORKS))
        self.api_server(**{how: {"answer-after": 2, "forbid": {WHO: ["secrets"]}}.get(how, [WHO])})

    def api_server_works(self):
        self.api_server(**WORKS)

    def api_server(self, **settings):
        ask = (sys.executable, os.path.dirname(__file__) + "/kube-apiserver.py", "ask", os.environ["KUBE"])
        body = json.dumps(settings)
        subprocess.run(
            (*ask, "PATCH", "/control"), input=body, check=True, stdout=subprocess.DEVNULL, text=True, timeout=60
        )

    def plugin_is_removed(self, name=None):
        name = name or self.random.choice(sorted(self.PLUGINS))
        self.flux("jobtap", "remove", name)
        self.loaded[name] = None

    def plugins_are_loaded(self):
        for name, since in self.loaded.items():
            if since is None:
                self.flux("jobtap", "load", os.path.join(os.environ["PLUGINS"], name), *self.PLUGINS[name])
                self.loaded[name] = time.monotonic()

    def was_there_for(self, name, job):
        """Returns whether a plugin was loaded all the time since a job was submitted."""
        return self.loaded[name] is not None and self.loaded[name] < self.submitted[job]

    def configuration_changes(self):
        table = [f'munge-socket = "{os.environ["MUNGE_SOCKET"]}"', f'timeout = "{self.random.randint(4, 8)}s"']
        table.append(f"max-parallel = {self.random.randint(1, 64)}")
        for name, timeout, source in (
            ("file", "1s", f'path = "{self.path("file")}"'),
            ("command", "1s", f'command = ["{self.path("source")}"]'),
            ("kubernetes", "3s", f'object = "soak"\nkubeconfig = "{os.environ["KUBE"]}/{WHO}.kubeconfig"'),
        ):
            if name in self.KINDS:
                rule = f'attribute = "system.{name}"\ntimeout = "{timeout}"\nsource = "{name}"\n{source}'
                table.append("[[workflow-token.rule]]\n" + rule)
        with open(self.path("new"), "w") as new:
            new.write("[workflow-token]\n" + "\n".join(table) + "\n")
        os.rename(self.path("new"), os.environ["CONFIG"] + "/workflow-token.toml")
        self.flux("config", "reload")

    def jobs_are_canceled(self):
        # Not jobs that should have ended long ago: they may be stuck, which must stay visible.
        young = [job for job in self.jobs if time.monotonic() - self.submitted[job] < YOUNG]
        for job in [job for job in young if self.random.random() < 0.25]:
            self.canceled.add(job)
            try:
                flux.job.cancel(self.handle, job)
            except OSError:
                pass  # It has ended.

    def flux(self, *args):
        subprocess.run(("flux", *args), check=True, timeout=120)

    CHAOS = (
        ("munged", "munged was killed", munged_is_killed, munged_starts),
        ("munged", "munged was stopped", munged_is_stopped, munged_goes_on),
        ("mode", "the source misbehaved", source_misbehaves, source_behaves),
        ("mode", "the source misbehaved", source_misbehaves, source_behaves),
        ("file", "the file of a source was not there", file_is_away, file_is_back),
        ("api server", "the API server failed", api_server_fails, api_server_works),
        ("plugin", "a plugin was removed", plugin_is_removed, plugins_are_loaded),
        (None, "the configuration was changed", configuration_changes, None),
        (None, "jobs were canceled", jobs_are_canceled, None),
    )

    def break_something(self):
        kind, what, break_it, mend = self.random.choice(self.CHAOS)
        if kind in self.broken:
            return
        if break_it(self) is False:
            return
        self.chaos[what] += 1
        if mend:
            self.broken[kind] = (time.monotonic() + self.random.uniform(0.05, 1.5), mend)

    def mend(self, everything=False):
        for kind, (until, mend) in list(self.broken.items()):
            if everything or time.monotonic() > until:
                mend(self)
                del self.broken[kind]

    # Jobs

    def submit(self):
        while len(self.jobs) < AT_ONCE:
            kind = self.random.choice(sorted(self.KINDS))
            attribute, nodes, _ = self.KINDS[kind]
            spec = flux.job.JobspecV1.from_command([self.path("keep")], num_tasks=nodes, num_nodes=nodes)
            spec.cwd = self.where
            spec.environment = {"PATH": os.environ["PATH"]}
            if attribute:
                spec.setattr(f"system.{attribute}", "ok")
            spec.setattr_shell_option("cpu-affinity", "off")
            job = flux.job.submit(self.handle, spec)
            self.jobs[job], self.submitted[job] = kind, time.monotonic()

    def hear(self):
        """Accounts for the jobs that have ended. Returns whether there were any."""
        heard = False
        asked = [(job, kind, flux.job.job_list_id(self.handle, job, ["state"])) for job, kind in self.jobs.items()]
        for job, kind, rpc in asked:
            if rpc.get_jobinfo().state == "INACTIVE":
                heard = True
                del self.jobs[job]
                self.account(flux.job.JobID(job), kind)
        return heard

    def account(self, job, kind):
        # A job becomes inactive before its last events are in the KVS.
        flux.job.event_wait(self.handle, job, "clean", raiseJobException=False)
        log = flux.job.job_kvs_lookup(self.handle, job, keys=["eventlog"], decode=False)["eventlog"]
        events = [json.loads(line) for line in log.splitlines()]
        fatal = [e["context"] for e in events if e["name"] == "exception" and e["context"]["severity"] == 0]
        # Each job shell may raise the same exception.
        failed = list({(c["type"], c["note"]): c for c in fatal if c["type"] != "cancel"}.values())
        balance = collections.Counter()
        for event in events:
            which, _, what = event["name"].rpartition("-")
            if which in ("prolog", "epilog"):
                balance[which] += {"start": 1, "finish": -1}[what]
        _, tasks, token = self.KINDS[kind]
        found = [words for words in (self.found(job, rank) for rank in range(tasks)) if words]
        expected = self.expected[token] if token else NONE
        problem = None
        if any(digest != expected for digest, _ in found):
            problem = "it had something that is not its token"
        elif wrong := self.wrong_with(found, job, kind):
            problem = wrong
        elif len(failed) > self.most_exceptions(failed) or any(
            c["type"] not in self.TYPES or not c["note"] for c in failed
        ):
            problem = "it has more than one clear exception"
        elif fatal and not failed and int(job) not in self.canceled:
            problem = "it was canceled by nobody"
        elif not fatal and len(found) < tasks:
            problem = "it ended well, and without its token"
        elif any(balance.values()):
            problem = "its prologs or epilogs did not finish"
        if problem:
            self.wrong.append(f"{job}: {kind}: {problem}: {found} {log}")
        if failed:
            note = "".join(c for c in failed[0]["note"] if not c.isdigit())
            self.outcomes[f"{failed[0]['type']}: {note[-120:]}"] += 1
        else:
            self.outcomes["canceled" if fatal else "with its token"] += 1
        del self.submitted[int(job)]

    def found(self, job, rank):
        """Returns the digests that a task has written, if any."""
        try:
            words = open(self.path(f"out/{job.dec}.{rank}")).read().split()
        except OSError:
            return None
        return words if len(words) == 2 else None

    def wrong_with(self, found, job, kind):
        """Returns other errors in the output of a job's tasks."""
        return None

    def most_exceptions(self, failed):
        return 1

    def drain(self):
        since = time.monotonic()
        while self.jobs:
            if self.hear():
                since = time.monotonic()
            if time.monotonic() - since > 120:
                self.wrong += [f"{flux.job.JobID(job)}: it is stuck" for job in self.jobs]
                return
            time.sleep(0.05)

    def quiet(self):
        """Runs some jobs without faults."""
        before = self.outcomes["with its token"]
        self.submit()
        jobs = len(self.jobs)
        self.drain()
        if self.outcomes["with its token"] - before != jobs:
            self.wrong.append(f"jobs failed with nothing broken: {self.outcomes}")

    # The state of the broker

    def query(self):
        """Returns the query result of each loaded plugin."""
        there = [name for name, since in self.loaded.items() if since is not None]
        return {name: self.handle.rpc("job-manager.jobtap-query", {"name": name}).get() for name in there}

    def holdings(self):
        broker = int(self.handle.attr_get("broker.pid"))
        return {
            "threads": len(os.listdir(f"/proc/{broker}/task")),
            "descriptors": len(os.listdir(f"/proc/{broker}/fd")),
            "memory": sum(answer.get("memory", 0) for answer in self.query().values()),
        }

    def begin(self):
        """Records the state before the first job."""
        os.makedirs(self.path("out"))
        self.munged_starts()

    def end(self):
        """Checks the state after all jobs have ended, without faults."""


class Rabbits(Soak):
    """A run of rabbit jobs, and of jobs of several nodes with secrets for Cray PMI."""

    PLUGINS = {"cray-pmi-bootstrap.so": ("port-min=11000", "port-max=12000"), "dws-jobtap.so": ()}
    KINDS = {"rabbit": ("dw", 1, "rabbit"), "pmi": (None, 2, None), "both": ("dw", 2, "rabbit")}
    TYPES = {"cray-pmi-bootstrap", "dws", "dws-create", "dws-epilog", "dws-setup", "exception", "exec"}

    def __init__(self, seed, where):
        super().__init__(seed, where)
        self.service = None
        self.secrets = set()

    def service_starts(self):
        self.service = subprocess.Popen(shlex.split(os.environ["SERVICE"]))
        with open(self.path("dws/ready")) as ready:
            assert ready.read() == "ready\n"

    def service_ends(self):
        if "plugin" in self.broken:
            # It still has something to say, which nobody would say again.
            return False
        # When it has completed all requests: a killed service never answers its requests.
        self.handle.rpc("dws.retire").get()
        self.service.wait(60)
        return True

    def service_is_stopped(self):
        self.service.send_signal(signal.SIGSTOP)

    def service_goes_on(self):
        self.service.send_signal(signal.SIGCONT)

    def variables_are_unusable(self):
        os.rename(self.path("variables"), self.path("good"))
        self.write("variables", json.dumps({"DW_WORKFLOW_TOKEN": self.random.choice((1, None, "a\0b", ["a"]))}))

    def variables_are_usable(self):
        os.rename(self.path("good"), self.path("variables"))

    CHAOS = (
        ("munged", "munged was killed", Soak.munged_is_killed, Soak.munged_starts),
        ("munged", "munged was stopped", Soak.munged_is_stopped, Soak.munged_goes_on),
        ("service", "the service ended", service_ends, service_starts),
        ("service", "the service was stopped", service_is_stopped, service_goes_on),
        ("variables", "the service sent garbage", variables_are_unusable, variables_are_usable),
        ("plugin", "a plugin was removed", Soak.plugin_is_removed, Soak.plugins_are_loaded),
        ("plugin", "a plugin was removed", Soak.plugin_is_removed, Soak.plugins_are_loaded),
        (None, "the configuration was changed", Soak.configuration_changes, None),
        (None, "jobs were canceled", Soak.jobs_are_canceled, None),
    )

    def wrong_with(self, found, job, kind):
        secrets = {secret for _, secret in found}
        if len(secrets) > 1:
            return "its tasks had different secrets"
        for secret in secrets - {NONE}:
            if kind == "rabbit" or secret in self.secrets:
                return "it had a secret that is not its own"
            self.secrets.add(secret)
        if NONE in secrets and kind != "rabbit" and self.was_there_for("cray-pmi-bootstrap.so", int(job)):
            return "it had no secret"
        return None

    def most_exceptions(self, failed):
        # A failed interaction, and the failure to clean up after it.
        return 2 if any(context["type"] == "dws-epilog" for context in failed) else 1

    def begin(self):
        super().begin()
        os.makedirs(self.path("dws/workflows"))
        os.mkfifo(self.path("dws/ready"))
        self.service_starts()

    def end(self):
        if left := os.listdir(self.path("dws/workflows")):
            self.wrong.append(f"workflows were not torn down: {left}")
        answers = self.query()
        if answers["cray-pmi-bootstrap.so"]["ports-free"] != 1000:
            self.wrong.append(f"ports did not come back: {answers}")
        if any(answers["dws-jobtap.so"]["jobs"].values()):
            self.wrong.append(f"jobs are still known: {answers}")
        self.service_ends()


def main(which, seconds, seed, where):
    soak = {"tokens": Soak, "rabbits": Rabbits}[which](seed, where)
    soak.begin()
    for _ in range(2):
        soak.quiet()
    # Threads that were idle for ten seconds have ended.
    time.sleep(12)
    before = soak.holdings()
    end = time.monotonic() + seconds
    longest = busiest = 0
    due = 0
    while time.monotonic() < end:
        soak.submit()
        if time.monotonic() >= due:
            soak.break_something()
            due = time.monotonic() + soak.random.uniform(0.05, 0.4)
        for answer in soak.query().values():
            reactor = answer["reactor-us"]
            longest, busiest = max(longest, reactor["callback-max"]), max(busiest, reactor["callback-cpu-max"])
        soak.mend()
        if not soak.hear():
            time.sleep(0.02)
    soak.mend(everything=True)
    soak.drain()
    for what, times in sorted(soak.chaos.items()):
        print(f"# {times:6} times {what}")
    for outcome, jobs in sorted(soak.outcomes.items()):
        print(f"# {jobs:6} jobs {outcome}")
    print(f"# longest stay on the reactor thread: {longest} us by the clock, {busiest} us of the processor")
    for name in soak.PLUGINS:
        soak.plugin_is_removed(name)
    soak.configuration_changes()
    soak.plugins_are_loaded()
    for _ in range(2):
        soak.quiet()
    time.sleep(12)
    after = soak.holdings()
    print(f"# before: {before}, after: {after}")
    for what, slack in (("threads", 0), ("descriptors", 0), ("memory", 64 << 10)):
        if after[what] > before[what] + slack:
            soak.wrong.append(f"{what}: {before[what]} before, {after[what]} after")
    soak.end()
    if not soak.outcomes["with its token"]:
        soak.wrong.append("no job had its token")
    print("\n".join(soak.wrong), file=sys.stderr)
    sys.exit(bool(soak.wrong))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
