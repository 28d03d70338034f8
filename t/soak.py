#!/usr/bin/env python3
"""soak.py SECONDS SEED DIR: a bad day for an instance, run by `flux python` in it.

Keeps jobs running, each of which writes a digest of its token to a file of its own, while it breaks things at random: munged
is killed, stopped and restarted, sources fail, hang and send garbage, jobs are canceled, the plugin is removed and loaded
again, the configuration changes. In the end everything works again, and each job must have had its own token, or one
exception. The environment says where things are: MUNGED (the command that starts munged in the foreground), MUNGE_SOCKET,
JOBTAP, CONFIG (the directory of the configuration); DIR has `mode`, which the command of the source reads, `file`, which is the
file of the other source, and `expected`, with a digest for each of `file` and `command`.
"""

import collections
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

AT_ONCE = 32
MODES = ("fail", "hang", "slow", "garbage", "empty", "huge", "killed")


class Soak:
    def __init__(self, seed, where):
        self.random = random.Random(seed)
        self.where = where
        self.handle = flux.Flux()
        self.munged = None
        self.broken = {}
        self.jobs = {}
        self.canceled = set()
        self.chaos = collections.Counter()
        self.outcomes = collections.Counter()
        self.wrong = []
        self.expected = dict(line.split() for line in open(os.path.join(where, "expected")))

    def path(self, name):
        return os.path.join(self.where, name)

    def write(self, name, text):
        """In one step: whoever reads it finds all of it."""
        with open(self.path("new"), "w") as new:
            new.write(text)
        os.rename(self.path("new"), self.path(name))

    # What is broken, and mended

    def munged_starts(self):
        self.munged = subprocess.Popen(shlex.split(os.environ["MUNGED"]), stderr=subprocess.DEVNULL)

    def munged_is_killed(self):
        self.munged.kill()
        self.munged.wait()

    def munged_is_stopped(self):
        self.munged.send_signal(signal.SIGSTOP)

    def munged_goes_on(self):
        self.munged.send_signal(signal.SIGCONT)

    def source_misbehaves(self):
        self.write("mode", self.random.choice(MODES))

    def source_behaves(self):
        self.write("mode", "good")

    def file_is_away(self):
        os.rename(self.path("file"), self.path("away"))

    def file_is_back(self):
        os.rename(self.path("away"), self.path("file"))

    def plugin_is_removed(self):
        self.flux("jobtap", "remove", "workflow-token.so")

    def plugin_is_loaded(self):
        self.flux("jobtap", "load", os.environ["JOBTAP"])

    def configuration_changes(self):
        table = [f'munge-socket = "{os.environ["MUNGE_SOCKET"]}"', f'timeout = "{self.random.randint(4, 8)}s"']
        table.append(f"max-parallel = {self.random.randint(1, 64)}")
        for name, source in (
            ("file", f'source = "file"\npath = "{self.path("file")}"'),
            ("command", f'source = "command"\ncommand = ["{self.path("source")}"]'),
        ):
            table.append(f'[[workflow-token.rule]]\nattribute = "system.{name}"\ntimeout = "1s"\n{source}')
        with open(self.path("new"), "w") as new:
            new.write("[workflow-token]\n" + "\n".join(table) + "\n")
        os.rename(self.path("new"), os.environ["CONFIG"] + "/workflow-token.toml")
        self.flux("config", "reload")

    def jobs_are_canceled(self):
        for job in [job for job in self.jobs if self.random.random() < 0.25]:
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
        ("plugin", "the plugin was removed", plugin_is_removed, plugin_is_loaded),
        (None, "the configuration was changed", configuration_changes, None),
        (None, "jobs were canceled", jobs_are_canceled, None),
    )

    def break_something(self):
        kind, what, break_it, mend = self.random.choice(self.CHAOS)
        if kind in self.broken:
            return
        break_it(self)
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
            name = self.random.choice(("file", "command"))
            spec = flux.job.JobspecV1.from_command([self.path("keep")])
            spec.cwd = self.where
            spec.environment = {"PATH": os.environ["PATH"]}
            spec.setattr(f"system.{name}", 1)
            spec.setattr_shell_option("cpu-affinity", "off")
            self.jobs[flux.job.submit(self.handle, spec)] = name

    def hear(self):
        """Accounts for the jobs that have ended. Returns whether there were any."""
        heard = False
        asked = [(job, name, flux.job.job_list_id(self.handle, job, ["state"])) for job, name in self.jobs.items()]
        for job, name, rpc in asked:
            if rpc.get_jobinfo().state == "INACTIVE":
                heard = True
                del self.jobs[job]
                self.account(flux.job.JobID(job), name)
        return heard

    def account(self, job, name):
        # That a job is inactive is known before its last events are in the KVS.
        flux.job.event_wait(self.handle, job, "clean", raiseJobException=False)
        log = flux.job.job_kvs_lookup(self.handle, job, keys=["eventlog"], decode=False)["eventlog"]
        events = [json.loads(line) for line in log.splitlines()]
        fatal = [e["context"] for e in events if e["name"] == "exception" and e["context"]["severity"] == 0]
        failed = [context for context in fatal if context["type"] != "cancel"]
        outstanding = sum({"prolog-start": 1, "prolog-finish": -1}.get(e["name"], 0) for e in events)
        try:
            digest = open(self.path(f"out/{job.dec}")).read().split()[0]
        except (OSError, IndexError):
            digest = None
        problem = None
        if digest not in (None, self.expected[name]):
            problem = "it had something that is not its token"
        elif len(failed) > 1 or any(c["type"] not in ("workflow-token", "exec") or not c["note"] for c in failed):
            problem = "it has more than one clear exception"
        elif fatal and not failed and int(job) not in self.canceled:
            problem = "it was canceled by nobody"
        elif not fatal and digest is None:
            problem = "it ended well, and without its token"
        elif outstanding:
            problem = "its prologs did not finish"
        if problem:
            self.wrong.append(f"{job}: {problem}: {digest} {log}")
        if failed:
            note = "".join(c for c in failed[0]["note"] if not c.isdigit())
            self.outcomes[f"{failed[0]['type']}: {note[-120:]}"] += 1
        else:
            self.outcomes["canceled" if fatal else "with its token"] += 1

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
        """Some jobs with nothing broken."""
        before = self.outcomes["with its token"]
        self.submit()
        jobs = len(self.jobs)
        self.drain()
        if self.outcomes["with its token"] - before != jobs:
            self.wrong.append(f"jobs failed with nothing broken: {self.outcomes}")

    # What the broker has

    def query(self):
        rpc = self.handle.rpc("job-manager.jobtap-query", {"name": "workflow-token.so"})
        return rpc.get()

    def holdings(self):
        broker = int(self.handle.attr_get("broker.pid"))
        return {
            "threads": len(os.listdir(f"/proc/{broker}/task")),
            "descriptors": len(os.listdir(f"/proc/{broker}/fd")),
            "memory": self.query()["memory"],
        }


def main(seconds, seed, where):
    soak = Soak(seed, where)
    os.makedirs(soak.path("out"))
    soak.munged_starts()
    for _ in range(2):
        soak.quiet()
    # Threads that had nothing to do for ten seconds have ended.
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
        if "plugin" not in soak.broken:
            reactor = soak.query()["reactor-us"]
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
    soak.plugin_is_removed()
    soak.configuration_changes()
    soak.plugin_is_loaded()
    for _ in range(2):
        soak.quiet()
    time.sleep(12)
    after = soak.holdings()
    print(f"# before: {before}, after: {after}")
    for what, slack in (("threads", 0), ("descriptors", 0), ("memory", 64 << 10)):
        if after[what] > before[what] + slack:
            soak.wrong.append(f"{what}: {before[what]} before, {after[what]} after")
    if not soak.outcomes["with its token"]:
        soak.wrong.append("no job had its token")
    print("\n".join(soak.wrong), file=sys.stderr)
    sys.exit(bool(soak.wrong))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
