# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a job of many nodes costs rank 0, and what that comes to on a large machine: run by bench/run, outside an instance.

Every job shell asks once for its record, from the broker of its own node, which has the directories of the job and the
record from its parent in the tree, once. So rank 0 answers its own children, and nobody else.
"""

import json
import os
import statistics
import subprocess
import sys

from lib import PLUGINS, flux, jobs, row, section

SIZES = [int(size) for size in os.environ.get("BENCH_NODES", "1 2 4 8 16").split()]
ROUNDS = int(os.environ.get("BENCH_ROUNDS", 5))
FEW = 4  # jobs a round
WITHOUT = "--env=FLUX_BENCH_WITHOUT=1"
MATCH = "--setattr=system.workflow=1"


def rank0_cpu():
    """Processor time of the broker of rank 0 with all its modules, in seconds: proc_pid_schedstat."""
    tasks = f"/proc/{flux('getattr', 'broker.pid').strip()}/task"
    return sum(int(open(f"{tasks}/{task}/schedstat").read().split()[0]) for task in os.listdir(tasks)) / 1e9


def of_all_ranks(name, *path):
    """A number out of the statistics of a module, of each rank."""
    numbers = []
    for rank in range(int(flux("getattr", "size"))):
        stats = json.loads(flux("exec", "-r", str(rank), "flux", "module", "stats", name))
        for step in path:
            stats = stats[step]
        numbers.append(stats)
    return numbers


def run(size, mine):
    if mine:
        flux("jobtap", "load", f"{PLUGINS}/workflow-token.so")
    asked, kept, began = of_all_ranks("kvs", "cache", "#faults"), of_all_ranks("content", "size"), rank0_cpu()
    jobs(FEW, f"-N{size}", f"-n{size}", MATCH, *([] if mine else [WITHOUT]))
    took = rank0_cpu() - began
    asked = [(b - a) / FEW for a, b in zip(asked, of_all_ranks("kvs", "cache", "#faults"))]
    kept = [(b - a) / FEW for a, b in zip(kept, of_all_ranks("content", "size"))]
    if mine:
        flux("jobtap", "remove", "workflow-token.so")
    return {"cpu": took / FEW, "loads": asked[-1], "bytes": kept[-1]}


def measure(size):
    """Inside an instance."""
    run(size, False)
    found = {True: [], False: []}
    for turn in range(ROUNDS):
        for mine in (True, False) if turn % 2 == 0 else (False, True):
            found[mine].append(run(size, mine))
    median = {
        str(mine): {what: statistics.median(one[what] for one in runs) for what in runs[0]}
        for mine, runs in found.items()
    }
    print(json.dumps(median))


def instance(size):
    config = os.path.join(os.environ["BENCH_DIR"], f"nodes-{size}")
    os.mkdir(config)
    with open(f"{config}/flux.toml", "w") as out:
        out.write(open(os.environ["BENCH_DIR"] + "/config/flux.toml").read().split("[resource]")[0])
        out.write("[resource]\nnoverify = true\nnorestrict = true\n[[resource.config]]\n")
        out.write(f'hosts = "node[0-{size - 1}]"\ncores = "0-7"\n')
    start = ("flux", "start", f"--test-size={size}", f"--test-hosts=node[0-{size - 1}]", f"--config-path={config}")
    shell = os.environ["WORKFLOW_TOKEN_STAGE"] + "/lib/flux/shell/plugins"
    options = (f"-Sconf.shell_pluginpath={shell}", f"-Sconf.shell_initrc={os.environ['BENCH_DIR']}/initrc.lua")
    inside = (sys.executable, os.path.abspath(__file__), str(size))
    # Brokers on one node say much on standard error that means nothing here.
    done = subprocess.run((*start, *options, *inside), capture_output=True, text=True, timeout=1200)
    if done.returncode:
        sys.exit(f"an instance of {size} brokers: {done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def model(loads, size, nodes, fanout):
    """What the tree carries for one job on so many nodes: for each level its brokers, loads and bytes."""
    level, left, width = 0, nodes, 1
    while left > 0:
        width = min(width, left)
        yield level, width, 0 if level == 0 else width * loads, 0 if level == 0 else width * size
        left -= width
        level, width = level + 1, width * fanout


def main():
    section(
        "Jobs of many nodes", "The processor time that one job costs rank 0, with a task and a job shell on each node."
    )
    more = {}
    for size in SIZES:
        found = instance(size)
        ours, none = found["True"], found["False"]
        more[size] = {what: ours[what] - none[what] for what in ours}
        row(
            f"{size} node{'s' if size > 1 else ''}: processor time of rank 0 for a job",
            f"{ours['cpu'] * 1e3:.1f} ms",
            f"without the plugins {none['cpu'] * 1e3:.1f} ms",
            f"{more[size]['cpu'] * 1e3:.1f} ms more",
            key=f"nodes-{size}",
        )
        if size > 1:
            row(
                f"{size} nodes: blobs that a broker gets from its parent for a job",
                f"{ours['loads']:.1f}, {ours['bytes']:.0f} bytes",
                f"without {none['loads']:.1f}, {none['bytes']:.0f} bytes",
                f"{more[size]['loads']:.1f} more, {more[size]['bytes']:.0f} bytes",
            )
    below = [more[size] for size in SIZES if size > 1]
    if not below:
        return
    loads = max(0.0, statistics.median(one["loads"] for one in below))
    size = max(0.0, statistics.median(one["bytes"] for one in below))
    section(
        "Model of 10,000 nodes",
        f"Computed from the costs above: {loads:.1f} blobs and {size:.0f} bytes more for each broker of a job, at each level of the tree of "
        "brokers. The second column is the number of blobs, the third their size.",
    )
    for fanout in (32, 256, 10000):
        for level, width, asked, sent in model(loads, size, 10000, fanout):
            if level:
                row(
                    f"fanout {fanout}, from level {level - 1} to level {level}, {width} brokers",
                    f"{asked:.0f} blobs",
                    f"{sent / 1024:.0f} KiB",
                    "all from rank 0" if level == 1 else f"{asked / max(1, width / fanout):.0f} from each parent",
                )


if len(sys.argv) > 1:
    measure(int(sys.argv[1]))
else:
    main()
