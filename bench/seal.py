# SPDX-License-Identifier: MIT OR Apache-2.0
"""Sealing and opening, against munge's own benchmark program: run by bench/run.

BENCH_SOCKET is the socket of the munged that both use, BENCH_RATE the program seal-rate.
"""

import os
import re
import statistics
import subprocess

from lib import ROUNDS, bounded, ratio, section, turns

SOCKET, RATE = os.environ["BENCH_SOCKET"], os.environ["BENCH_RATE"]
LENGTH = "600"


def output(*command):
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    return run.stdout


def ours(what, threads):
    return float(output(RATE, what, SOCKET, threads, "1", LENGTH))


def remunge(what, threads):
    """Credentials a second. It is restricted as ours is, or, to be opened, for who opens it."""
    mode, uid = ("-e", "1000") if what == "seal" else ("-d", str(os.getuid()))
    options = ("-q", "-S", SOCKET, "-T", threads, "-D", "1", "-l", LENGTH, "-c", "aes256", "-m", "sha256", "-z", "none")
    return float(re.findall(r"[\d.]+", output("remunge", mode, *options, "-u", uid))[-1])


section(
    "Sealing and opening",
    "Records a second. The peer is remunge(1) with the same cipher, MAC, restriction, length and threads. Ours also builds the record "
    "around the credential, and to open it, checks the record.",
)
for what in ("seal", "open"):
    for threads in ("1", "4"):
        rates = {True: [], False: []}
        # A second each: the machine does not change much between the two.
        for mine in turns(ROUNDS * 3):
            rates[mine].append((ours if mine else remunge)(what, threads))
        median = {mine: f"{statistics.median(rates[mine]):.0f}" for mine in rates}
        name = f"{threads} thread{'s' if threads != '1' else ''}"
        bounded(
            f"{what}-{name.replace(' ', '-')}",
            f"{what}, {name}",
            median[True],
            f"remunge {median[False]}",
            ratio(rates[True], rates[False]),
        )
