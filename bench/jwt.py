# SPDX-License-Identifier: MIT OR Apache-2.0
"""Tokens, against bare jsonwebtoken: run by bench/run. BENCH_TOKEN_RATE is the program token-rate."""

import os
import subprocess

from lib import ROUNDS, bounded, section

section("Tokens", "Tokens a second on one core. The peer is bare jsonwebtoken with the same key, header and claims.")
run = (os.environ["BENCH_TOKEN_RATE"], str(ROUNDS))
for line in subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True, timeout=600).stdout.splitlines():
    what, ours, peer, ratio = line.split("\t")
    bounded(what.lower().replace(" ", "-"), what, ours, f"jsonwebtoken {peer}", float(ratio))
