# SPDX-License-Identifier: MIT OR Apache-2.0
"""The token service, on one core: run by bench/run. The load generator and the agent have another core."""

import json
import os
import re
import secrets
import shutil
import sqlite3
import statistics
import subprocess
import tempfile
import time
import urllib.request

from lib import ROUNDS, bounded, ratio, section, turns

BUILT = os.environ["CARGO_TARGET_DIR"] + "/release"
PORT = 18080
URL = f"http://127.0.0.1:{PORT}"
SECONDS = 5
# As many connections as a proxy in front of the service keeps.
CONNECTIONS = 32
# Requests a second, of which the latency is measured: half of the bound of the rate.
HALF_LOAD = 5_000
# The peer: the path of a program oauth2-proxy.
PEER = os.environ.get("OAUTH2_PROXY")
PEER_PORT = 18081
PEER_URL = f"http://127.0.0.1:{PEER_PORT}"
SESSIONS, REVOCATIONS = 100_000, 1_000_000


def write(path, text, mode=0o600):
    with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, mode), "w") as file:
        file.write(text)


def set_up(directory):
    os.mkdir(f"{directory}/store", 0o700)
    subprocess.run(
        (f"{BUILT}/flux-workflow-token", "keygen", f"{directory}/keys"), check=True, stdout=subprocess.DEVNULL
    )
    write(
        f"{directory}/site.toml",
        f"""
[workflow-token.slurm]
cluster = "bench"
servers = "127.0.0.1:16822"
listen = "127.0.0.1:16822"
socket = "{directory}/agent"
user = "root"
store = "{directory}/store"

[workflow-token]
revocations = "{directory}/revocations"

[workflow-token.service]
socket = "{directory}/service"
user = {os.geteuid()}

[workflow-token.issuer]
keys = "{directory}/keys"
name = "{URL}"
audience = "bench"

[[workflow-token.rule]]
source = "issuer"
workspace = "bench"
""",
    )
    secret = secrets.token_hex(32)
    write(f"{directory}/secret", secret)
    write(f"{directory}/state.key", secrets.token_hex(32) + "\n")
    write(
        f"{directory}/tokend.toml",
        f"""
issuer = "{URL}"
agent = "{directory}/service"

[[listen]]
address = "127.0.0.1:{PORT}"

[[client]]
id = "bench"
secret-file = "{directory}/secret"
audience = ["bench"]
may = ["introspect"]

[state]
database = "sqlite://{directory}/state.db"
key-file = "{directory}/state.key"

[audit]
file = "/dev/null"
""",
    )
    issue = ("issue", "--keys", f"{directory}/keys", "--issuer", URL, "--audience", "bench", "--sub", "alice")
    issued = subprocess.run(
        (f"{BUILT}/flux-workflow-token", *issue, "--scope", "cluster", "--lifetime", "1h"),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    token = issued.stdout.strip()
    form = 'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/x-www-form-urlencoded"\nwrk.body = '
    client = f"client_id=bench&client_secret={secret}"
    exchange = "grant_type=urn:ietf:params:oauth:grant-type:token-exchange"
    exchange += f"&subject_token_type=urn:ietf:params:oauth:token-type:access_token&subject_token={token}"
    write(f"{directory}/forward.lua", f'wrk.headers["Authorization"] = "Bearer {token}"\n')
    write(f"{directory}/introspect.lua", f'{form}"{client}&token={token}"\n')
    write(f"{directory}/exchange.lua", f'{form}"{exchange}"\n')


def start(directory):
    logs = open(f"{directory}/log", "w")
    agent = ("taskset", "-c", "1", f"{BUILT}/workflow-token-agent", "slurm", "--config", f"{directory}/site.toml")
    yield subprocess.Popen(agent, stderr=logs)
    service = ("taskset", "-c", "0", f"{BUILT}/workflow-tokend", "--config", f"{directory}/tokend.toml")
    yield subprocess.Popen(service, stderr=logs)
    wait_for(f"{URL}/readyz", f"{directory}/log")


def start_peer(directory):
    """oauth2-proxy, which accepts the same tokens: our service publishes the keys."""
    logs = open(f"{directory}/peer.log", "w")
    # Not logging is cheaper.
    quiet = [f"--{what}-logging=false" for what in ("request", "auth", "standard")]
    client = (
        "--client-id=bench",
        "--client-secret=unused",
        f"--cookie-secret={secrets.token_hex(16)}",
        "--cookie-secure=false",
    )
    peer = (
        PEER,
        f"--http-address=127.0.0.1:{PEER_PORT}",
        "--provider=oidc",
        f"--oidc-issuer-url={URL}",
        *client,
        *quiet,
    )
    more = (
        "--email-domain=*",
        "--skip-jwt-bearer-tokens=true",
        f"--redirect-url={PEER_URL}/oauth2/callback",
        "--upstream=static://202",
    )
    started = subprocess.Popen(("taskset", "-c", "0", *peer, *more), stderr=logs, env={**os.environ, "GOMAXPROCS": "1"})
    wait_for(f"{PEER_URL}/ping", f"{directory}/peer.log")
    return started


def wait_for(url, log):
    end = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise SystemExit(open(log).read()) from None
            time.sleep(0.1)


def load(directory, script, path, base=URL, pause=None):
    """Requests a second, and the latency in ms that 99 % do not exceed. With a pause, each connection waits so many ms on average, at
    random: otherwise all of them would send at the same time."""
    source = f"{directory}/{script}.lua"
    if pause is not None:
        with open(source) as file:
            text = file.read()
        source = f"{directory}/{script}-paced.lua"
        write(source, f"{text}\nfunction delay() return math.random(0, {2 * pause}) end\n")
    wrk = (
        "taskset",
        "-c",
        "1",
        "wrk",
        "-t1",
        f"-c{CONNECTIONS}",
        f"-d{SECONDS}s",
        "--latency",
        "-s",
        source,
        base + path,
    )
    out = subprocess.run(wrk, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout
    if "Non-2xx" in out:
        raise SystemExit(f"{script}: requests were refused\n{out}")
    latency = re.search(r"99%\s+([\d.]+)(us|ms|s)", out)
    scale = {"us": 1e-3, "ms": 1.0, "s": 1e3}[latency[2]]
    return float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1]), float(latency[1]) * scale


def remember(directory):
    """Sessions in the state, which nobody can open, and revocations of the agent. Both are read when the two start."""
    os.makedirs(f"{directory}/revocations", 0o700, exist_ok=True)
    until = time.time() + 86_400
    with open(os.open(f"{directory}/revocations/revocations", os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
        for _ in range(REVOCATIONS):
            subject = {"jti": secrets.token_urlsafe(16)}
            file.write(json.dumps({"subject": subject, "at": time.time(), "until": until}) + "\n")
    state = sqlite3.connect(f"{directory}/state.db")
    rows = (
        (secrets.token_bytes(32), secrets.token_bytes(32), int(until), secrets.token_bytes(400))
        for _ in range(SESSIONS)
    )
    with state:
        state.executemany("INSERT INTO records VALUES (1, ?, ?, 1, ?, ?)", rows)
    state.close()


def memory(directory):
    """The most memory of each, while it answers and knows all of that."""
    started = []
    try:
        for process in start(directory):
            started.append(process)
        for script, path in (
            ("forward", "/auth/nginx?aud=bench"),
            ("introspect", "/introspect"),
            ("exchange", "/token"),
        ):
            load(directory, script, path)
        for what, process in zip(("agent", "service"), started):
            with open(f"/proc/{process.pid}/status") as status:
                peak = int(re.search(r"VmHWM:\s+(\d+) kB", status.read())[1]) / 1024
            bounded(
                f"tokend-memory-{what}",
                f"memory of the {what}, with 100,000 sessions and 1,000,000 revocations",
                "",
                "",
                peak,
                "MiB",
            )
    finally:
        stop(started)


def stop(started):
    for process in started:
        process.terminate()
        process.wait()


def measure(directory):
    for what, script, path in (
        ("forward authentication", "forward", "/auth/nginx?aud=bench"),
        ("introspection", "introspect", "/introspect"),
        ("minting by exchange", "exchange", "/token"),
    ):
        rate = statistics.median(load(directory, script, path)[0] for _ in range(ROUNDS))
        bounded(f"tokend-{script}", f"{what}, requests a second", f"{rate:.0f}", "", rate, result="")
        if script != "exchange":
            # Spread over the connections.
            pause = round(CONNECTIONS * 1e3 / HALF_LOAD)
            paced = [load(directory, script, path, pause=pause) for _ in range(ROUNDS)]
            # What the load generator and the machine take: a request that needs no decision.
            floor = statistics.median(load(directory, "forward", "/livez", pause=pause)[1] for _ in range(ROUNDS))
            figure = f"{what}, 99 % of the latency at {statistics.median(r for r, _ in paced):.0f} a second"
            latency = statistics.median(latency for _, latency in paced)
            bounded(f"tokend-{script}-latency", figure, f"{latency:.2f} ms", f"/livez {floor:.2f} ms", latency, "ms")


def compare(directory):
    """Forward authentication of ours and of the peer, in turns."""
    if not PEER:
        return
    peer = start_peer(directory)
    try:
        of = {True: [], False: []}
        for is_ours in turns(ROUNDS):
            base, path = (URL, "/auth/nginx?aud=bench") if is_ours else (PEER_URL, "/oauth2/auth")
            of[is_ours].append(load(directory, "forward", path, base)[0])
        ours, theirs = (f"{statistics.median(of[which]):.0f}" for which in (True, False))
        what = "forward authentication, requests a second"
        bounded("tokend-peer", what, ours, f"oauth2-proxy {theirs}", ratio(of[True], of[False]))
    finally:
        stop([peer])


def main():
    if not shutil.which("wrk") or (os.cpu_count() or 1) < 2:
        print("The token service was not measured: it needs wrk and two cores.")
        return
    section(
        "The token service",
        "On one core, with EdDSA and 32 connections that are kept; wrk and the agent run on another core. All requests have one "
        "token. The service verifies it once in ten seconds, and asks the agent four times a second whether it is still valid. "
        "oauth2-proxy verifies it each time, and asks nobody.",
    )
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        set_up(directory)
        started = []
        try:
            for process in start(directory):
                started.append(process)
            measure(directory)
            compare(directory)
        finally:
            stop(started)
        remember(directory)
        memory(directory)


main()
