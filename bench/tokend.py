"""The token service, on one core: run by bench/run. The load generator and the agent have another core."""

import http.server
import json
import os
import re
import secrets
import shutil
import sqlite3
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request

from lib import ROUNDS, at_least, at_most, row, section, turns

BUILT = os.environ["CARGO_TARGET_DIR"] + "/release"
PORT = 18080
URL = f"http://127.0.0.1:{PORT}"
SECONDS = 5
# As many connections as a proxy in front of the service keeps.
CONNECTIONS = 32
# The peer: the path of a program oauth2-proxy.
PEER = os.environ.get("OAUTH2_PROXY")
PEER_PORT, ISSUER_PORT = 18081, 18082
SESSIONS, REVOCATIONS = 100_000, 1_000_000


def write(path, text, mode=0o600):
    with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, mode), "w") as file:
        file.write(text)


def set_up(directory):
    os.mkdir(f"{directory}/store", 0o700)
    subprocess.run((f"{BUILT}/flux-workflow-token", "keygen", f"{directory}/keys"), check=True, stdout=subprocess.DEVNULL)
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
    end = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{URL}/readyz", timeout=5).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise SystemExit(open(f"{directory}/log").read())
            time.sleep(0.1)


def load(directory, script, path, connections=CONNECTIONS, pause=None):
    """Requests a second, and the latency in ms that 99 % do not exceed. With a pause, each connection waits so many ms."""
    source = f"{directory}/{script}.lua"
    if pause is not None:
        with open(source) as file:
            text = file.read()
        source = f"{directory}/{script}-paced.lua"
        write(source, f"{text}\nfunction delay() return {pause} end\n")
    wrk = ("taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{SECONDS}s", "--latency", "-s", source, URL + path)
    out = subprocess.run(wrk, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout
    if "Non-2xx" in out:
        raise SystemExit(f"{script}: requests were refused\n{out}")
    latency = re.search(r"99%\s+([\d.]+)(us|ms|s)", out)
    scale = {"us": 1e-3, "ms": 1.0, "s": 1e3}[latency[2]]
    return float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1]), float(latency[1]) * scale


def remember(directory):
    """Sessions in the state, which nobody can open, and revocations of the agent. Both are read when the two start."""
    os.mkdir(f"{directory}/revocations", 0o700)
    until = time.time() + 86_400
    with open(os.open(f"{directory}/revocations/revocations", os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
        for _ in range(REVOCATIONS):
            subject = {"jti": secrets.token_urlsafe(16)}
            file.write(json.dumps({"subject": subject, "at": time.time(), "until": until}) + "\n")
    state = sqlite3.connect(f"{directory}/state.db")
    rows = ((secrets.token_bytes(32), secrets.token_bytes(32), int(until), secrets.token_bytes(400)) for _ in range(SESSIONS))
    with state:
        state.executemany("INSERT INTO records VALUES (1, ?, ?, 1, ?, ?)", rows)
    state.close()


def memory(directory):
    """The most memory of each, while it answers and knows all of that."""
    started = []
    try:
        for process in start(directory):
            started.append(process)
        for script, path in (("forward", "/auth/nginx?aud=bench"), ("introspect", "/introspect"), ("exchange", "/token")):
            load(directory, script, path)
        for what, process in zip(("agent", "service"), started):
            with open(f"/proc/{process.pid}/status") as status:
                peak = int(re.search(r"VmHWM:\s+(\d+) kB", status.read())[1]) / 1024
            at_most(f"memory of the {what}, with 100,000 sessions and 1,000,000 revocations", "", "", peak, 50, "MiB")
    finally:
        stop(started)


def stop(started):
    for process in started:
        process.terminate()
        process.wait()


def measure(directory):
    for what, script, path, bound in (
        ("forward authentication", "forward", "/auth/nginx?aud=bench", 10_000),
        ("introspection", "introspect", "/introspect", 10_000),
        ("minting by exchange", "exchange", "/token", 3_000),
    ):
        rates = [load(directory, script, path)[0] for _ in range(ROUNDS)]
        rate = statistics.median(rates)
        row(f"{what}, requests a second", f"{rate:.0f}", "", "", f"at least {bound}", rate >= bound)
        if script != "exchange":
            # At half of that, spread over the connections.
            pause = round(CONNECTIONS * 1e3 / (rate / 2))
            paced = [load(directory, script, path, pause=pause) for _ in range(ROUNDS)]
            figure = f"{what}, 99 % of the latency at {statistics.median(r for r, _ in paced):.0f} a second"
            at_most(figure, "", "", statistics.median(latency for _, latency in paced), 1, "ms")


def main():
    if not shutil.which("wrk") or (os.cpu_count() or 1) < 2:
        print("The token service was not measured: it needs wrk and two cores.")
        return
    section("The token service on one core, EdDSA, 32 connections; wrk and the agent on another one")
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        set_up(directory)
        started = []
        try:
            for process in start(directory):
                started.append(process)
            measure(directory)
        finally:
            stop(started)
        remember(directory)
        memory(directory)


main()
