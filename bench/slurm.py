"""What workflow tokens cost on Slurm: two clusters on this machine, one with the product and one without, in turns."""

import json
import os
import statistics
import subprocess
import tempfile
import time

from lib import ROUNDS, at_least, at_most, ms, ratio, row, section, turns

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
        ours, peer = Cluster(directory, "with"), Cluster(directory, "without")
        try:
            section(f"Jobs of one task on a real Slurm {ours.run('srun', '--version').split()[1]}, each with a token")
            times = {True: [], False: []}
            for mine in turns(ROUNDS * 4):
                times[mine].append((ours if mine else peer).srun())
            more = (statistics.median(times[True]) - statistics.median(times[False])) * 1e3
            at_most("srun true, more than with no plugin", ms(times[True]), ms(times[False]), more, 10, "ms")
            rates = {True: [], False: []}
            for mine in turns(max(2, ROUNDS // 2)):
                rates[mine].append((ours if mine else peer).rate())
            shown = [f"{statistics.median(rates[mine]):.1f} jobs/s" for mine in (True, False)]
            at_least(f"throughput of {JOBS} batch jobs", *shown, ratio(rates[True], rates[False]), 0.97)

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
                measured[mine].append(float(subprocess.run([REQUESTS, what, *common], check=True, stdout=subprocess.PIPE).stdout))
            ask, pairs = (statistics.median(measured[mine]) for mine in (True, False))
            wanted = "at least 5000/s with two cores for the agent alone"
            row("requests of nodes a second, the agent and the nodes on the same cores", f"{ask:.0f}/s",
                f"{pairs:.0f}/s munge_encode and munge_decode alone", f"ratio {ask / pairs:.2f}", wanted, ask >= 5000)
            row("memory of the agent after them", f"{rss(facts['agent']) - before} KiB more", "", "")
        finally:
            ours.close()
            peer.close()


main()
