# SPDX-License-Identifier: MIT OR Apache-2.0
"""What source = "kubernetes" costs when many jobs are allocated at once: run inside an instance by bench/run.

BENCH_KUBE is where t/kube-apiserver.py, which takes 5 ms for each answer, puts its kubeconfig files.
"""

import json
import os
import subprocess
import sys

from lib import PLUGINS, Server, bounded, events, flux, row, section

JOBS = int(os.environ.get("BENCH_KUBE_JOBS", 1000))
ANSWER = 0.005
KUBE = os.environ["BENCH_KUBE"]
STAND_IN = os.path.dirname(__file__) + "/../t/kube-apiserver.py"


def stand_in(*args, body=None):
    run = (sys.executable, STAND_IN, *args)
    return subprocess.run(run, input=body, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout


def settings(**changed):
    return json.loads(stand_in("ask", KUBE, "PATCH", "/control", body=json.dumps(changed)))


server = Server((sys.executable, STAND_IN, "serve", KUBE, "rabbit0=node0"), lines=True, name="kube-apiserver.py")
try:
    server.line("did not get ready")
    key = subprocess.run(
        "openssl ecparam -name prime256v1 -genkey -noout".split(), check=True, capture_output=True, text=True
    )
    settings(key=key.stdout)
    # All jobs have the same Workflow, which takes nothing off what is asked for each.
    directive = "#DW jobdw type=xfs capacity=1TiB name=scratch requires=copy-offload"
    stand_in("workflow", KUBE, "bench", str(os.getuid()), "PreRun", directive)
    before = settings(**{"answer-after": ANSWER})["connections"]["total"]
    flux("jobtap", "load", f"{PLUGINS}/workflow-token.so")
    flux("queue", "stop", "--all", "--quiet")
    # No job shell is started for them: they would take the time that is measured.
    mock = "--setattr=system.exec.test.run_duration=0.001s"
    ids = flux("submit", f"--cc=1-{JOBS}", "--setattr=system.kubernetes=1", mock, "true").split()
    flux("queue", "start", "--all", "--quiet")
    flux("queue", "idle", "--quiet")
    answer = json.loads(flux("jobtap", "query", "workflow-token.so"))
    flux("jobtap", "remove", "workflow-token.so")
    counted = settings(**{"answer-after": 0})
finally:
    server.kill()

some = [events(job) for job in ids[:: max(1, JOBS // 50)] + ids[-1:]]
took = max(event["prolog-finish"] for event in some) - min(event["prolog-start"] for event in some)
assert answer["delivered"] == JOBS and answer["failed"] == 0, answer
requests = sum(count for what, count in counted["requests"].items() if what.startswith("flux-workflow-token "))
section(
    "Jobs with tokens from Kubernetes",
    f"{JOBS:,} jobs get resources at once. The API server, on the same machine, takes {ANSWER * 1e3:.0f} ms for each answer.",
)
row("until all jobs have their token", f"{took:.2f} s", "", f"{requests} requests", key="kubernetes-all")
bounded("kubernetes-requests", "requests at once", "", "", counted["requests-at-once"])
# A request that finds none free begins a new one, and may yet go over another that is given back first.
bounded("kubernetes-connections", "connections at once", "", "", counted["connections"]["most"])
# Those of who asks it for this are not meant.
row("connections", str(counted["connections"]["total"] - before - 1))
reactor = answer["reactor-us"]
figure = "the job manager's thread for a delivery, processor time, median"
bounded("kubernetes-reactor", figure, "", "", reactor["delivery-cpu-median"], "µs")
row("the longest callback, wall-clock time, with the API server on the same cores", f"{reactor['callback-max']} µs")
