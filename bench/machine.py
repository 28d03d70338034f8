# SPDX-License-Identifier: MIT OR Apache-2.0
"""The machine and the programs that were measured, for the report: run by bench/run at its end.

BENCH_STAT is the first line of /proc/stat from its beginning.
"""

import os
import platform
import re
import subprocess

from lib import fact


def output(*command):
    try:
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=60)
    except OSError:
        return ""
    return run.stdout.strip()


def main():
    model = re.search(r"^model name\s*: (.*)$", open("/proc/cpuinfo").read(), re.M)
    memory = int(re.search(r"^MemTotal:\s*(\d+) kB", open("/proc/meminfo").read(), re.M)[1]) / 2**20
    fact("machine", f"{os.cpu_count()} cores, {model[1] if model else platform.machine()}, {memory:.0f} GiB")
    fact("kernel", platform.release())
    before, now = (
        list(map(int, stat.split()[1:9])) for stat in (os.environ["BENCH_STAT"], open("/proc/stat").readline())
    )
    spent = [b - a for a, b in zip(before, now)]
    # proc_stat(5): the eighth is steal.
    fact("processor time that the hypervisor gave to others meanwhile", f"{100 * spent[7] / max(1, sum(spent)):.1f} %")
    flux = re.search(r"libflux-core:\s*(\S+)", output("flux", "version"))
    fact("Flux", flux[1] if flux else "not found, so its costs were not measured")
    slurm = output("srun", "--version").split()
    fact("Slurm", slurm[-1] if slurm else "not found, so its costs were not measured")
    munge = re.search(r"munge-(\S+)", output("munge", "--version"))
    fact("MUNGE", munge[1] if munge else "unknown")
    fact("rustc", output("rustc", "--version").removeprefix("rustc "))


main()
