"""Tokens, against bare jsonwebtoken: run by bench/run. BENCH_TOKEN_RATE is the program token-rate."""

import os
import subprocess

from lib import ROUNDS, at_least, section

section("Tokens a second on one core; the peer is bare jsonwebtoken with the same key, header and claims")
run = (os.environ["BENCH_TOKEN_RATE"], str(ROUNDS))
for line in subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True, timeout=600).stdout.splitlines():
    what, ours, peer, ratio = line.split("\t")
    # Both check an EdDSA signature with the same function, which takes nearly all of the time.
    at_least(what, ours, f"jsonwebtoken {peer}", float(ratio), 0.95 if what == "EdDSA verify" else 1.0)
