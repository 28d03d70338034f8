"""Makes doc/performance.md of what was measured: report.py ROWS."""

import json
import os
import platform
import re
import subprocess
import sys

HEAD = """# What it costs

Made by `make bench`, which anyone can run: each figure is measured against its peer in the same run, the two in turns, and
what is given are medians. Ratios above 1 are in favor of this product for rates; for times, the difference is given. Every
figure varies from run to run: on a machine of two cores by several percent.

"""


def output(*command):
    try:
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=60)
    except OSError:
        return ""
    return run.stdout.strip()


def machine():
    model = re.search(r"^model name\s*: (.*)$", open("/proc/cpuinfo").read(), re.M)
    memory = int(re.search(r"^MemTotal:\s*(\d+) kB", open("/proc/meminfo").read(), re.M)[1]) / 2**20
    yield "machine", f"{os.cpu_count()} cores, {model[1] if model else platform.machine()}, {memory:.0f} GiB"
    yield "kernel", platform.release()
    before, now = (list(map(int, stat.split()[1:9])) for stat in (os.environ["BENCH_STAT"], open("/proc/stat").readline()))
    spent = [b - a for a, b in zip(before, now)]
    # proc_stat(5): the eighth is steal.
    yield "processor time that the hypervisor gave to others meanwhile", f"{100 * spent[7] / max(1, sum(spent)):.1f} %"
    flux = re.search(r"libflux-core:\s*(\S+)", output("flux", "version"))
    yield "Flux", flux[1] if flux else "none was found: what needs one was not measured"
    munge = re.search(r"munge-(\S+)", output("munge", "--version"))
    yield "MUNGE", munge[1] if munge else "unknown"
    yield "rustc", output("rustc", "--version").removeprefix("rustc ")


def main(path):
    print(HEAD, end="")
    print("| | |\n|---|---|")
    for name, value in machine():
        print(f"| {name} | {value} |")
    for line in open(path):
        row = json.loads(line)
        if "section" in row:
            print(f"\n## {row['section']}\n")
            print("| figure | ours | peer | result | wanted | |\n|---|---|---|---|---|---|")
            continue
        verdict = {None: "", True: "met", False: "**not met**"}[row["met"]]
        print("|", " | ".join([row[k] for k in ("figure", "ours", "peer", "result", "wanted")] + [verdict]), "|")


main(sys.argv[1])
