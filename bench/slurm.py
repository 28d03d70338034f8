# SPDX-License-Identifier: MIT OR Apache-2.0
"""What workflow tokens cost on Slurm: clusters on this machine with the product, without it,
and with the prologs alone that it needs, in turns."""

import json
import os
import statistics
import subprocess
import tempfile
import time

from lib import ROUNDS, bounded, ms, ratio, row, section, turns

HERE = os.path.dirname(os.path.abspath(__file__))
REQUESTS = os.environ["CARGO_TARGET_DIR"] + "/release/node-requests"
JOBS = int(os.environ.get("BENCH_SLURM_JOBS", 500))


class Cluster:
    def __init__(self, directory, which):
        argv = [HERE + "/slurm-cluster.sh", f"{directory}/{which}", which]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = json.loads(self.process.stdout.readline())
        self.env = {**os.environ, "SLURM_CONF": self.facts["conf"], "PATH": os.environ["PATH"] + ":/usr/sbin"}

    def run(self, *argv):
        run = subprocess.run(argv, env=self.env, cwd="/tmp", check=True, stdout=subprocess.PIPE, text=True, timeout=600)
        return run.stdout

    def srun(self):
        start = time.monotonic()
        self.run("srun", "true")
        return time.monotonic() - start

    def rate(self):
        """Jobs a second, from the first submission to the last end."""
        start = time.monotonic()
        for _ in range(JOBS):
            self.run("sbatch", "--output=/dev/null", "--wrap=true")
        while self.run("squeue", "--noheader"):
            time.sleep(0.05)
        return JOBS / (time.monotonic() - start)

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=120)


def rss(pid):
    return int(next(line for line in open(f"/proc/{pid}/status") if line.startswith("VmRSS:")).split()[1])


def main():
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o711)
        names = ("with", "without", "empty")
        clusters = {name: Cluster(directory, name) for name in names}
        ours = clusters["with"]
        try:
            section(
                f"Jobs on Slurm {ours.run('srun', '--version').split()[1]}",
                "Each job has one task and a token. A cluster of two nodes runs on this machine. The peers are the same cluster without the "
                "plugins, and one with a PrologSlurmctld and EpilogSlurmctld that do nothing.",
            )
            times = {name: [] for name in names}
            for turn in range(ROUNDS * 4):
                for name in names if turn % 2 else reversed(names):
                    times[name].append(clusters[name].srun())
            peers = {"bare": ("without", "without the plugins"), "empty": ("empty", "with prologs that do nothing")}
            for which, (peer, what) in peers.items():
                more = (statistics.median(times["with"]) - statistics.median(times[peer])) * 1e3
                bounded(
                    f"slurm-srun-{which}", "srun true", ms(times["with"]), f"{what} {ms(times[peer])}", more, "ms more"
                )
            rates = {name: [] for name in names}
            for turn in range(max(2, ROUNDS // 2)):
                for name in names if turn % 2 else reversed(names):
                    rates[name].append(clusters[name].rate())
            for which, (peer, what) in peers.items():
                shown, theirs = (f"{statistics.median(rates[name]):.1f} jobs/s" for name in ("with", peer))
                figure = f"throughput of {JOBS} batch jobs"
                bounded(f"slurm-rate-{which}", figure, shown, f"{what} {theirs}", ratio(rates["with"], rates[peer]))

            # A job that stays, and its node's requests.
            ours.run("sbatch", "--output=/dev/null", "--wrap=sleep 600")
            while not (line := ours.run("squeue", "--noheader", "--states=RUNNING", "--format=%A %N").split()):
                time.sleep(0.1)
            facts = ours.facts
            common = (facts["munge"], str(facts["port"]), str(facts["agent_uid"]), facts["cluster"], *line)
            before = rss(facts["agent"])
            measured = {True: [], False: []}
            for mine in turns(ROUNDS):
                what = "ask" if mine else "pairs"
                measured[mine].append(
                    float(subprocess.run([REQUESTS, what, *common], check=True, stdout=subprocess.PIPE).stdout)
                )
            ask, pairs = (statistics.median(measured[mine]) for mine in (True, False))
            bounded(
                "slurm-requests",
                "requests of nodes that the agent answers, on the same cores as the nodes",
                f"{ask:.0f}/s",
                f"munge_encode and munge_decode alone {pairs:.0f}/s",
                ask,
                result=f"ratio {ask / pairs:.2f}",
            )
            row(
                "memory of the agent after these requests",
                f"{rss(facts['agent']) - before} KiB more",
                key="slurm-memory",
            )
        finally:
            for cluster in clusters.values():
                cluster.close()


main()
