# SPDX-License-Identifier: MIT OR Apache-2.0
"""service.py [FILE]: stands in for the service flux-coral2-dws: answers at once, as if Kubernetes took no time. The
variables that it gives to jobs are those in FILE, an object in JSON, where there is one."""

import json
import sys

import flux
from flux.constants import FLUX_MSGTYPE_REQUEST

# As long as those of Data Workflow Services, and as secret as a benchmark's may be.
VARIABLES = {"DW_JOB_scratch": "/mnt/nnf/" + "0" * 36, "DW_WORKFLOW_TOKEN": "e30." + "0" * 120 + "." + "0" * 43}


def create(handle, _watcher, message, _arg):
    handle.respond(message, {"success": True})
    payload = {"id": message.payload["jobid"], "resources": message.payload["resources"], "exclude": None}
    handle.rpc("job-manager.dws.resource-update", payload=payload)


def variables():
    if len(sys.argv) == 1:
        return VARIABLES
    with open(sys.argv[1]) as file:
        return json.load(file)


def setup(handle, _watcher, message, _arg):
    handle.respond(message, {"success": True})
    handle.rpc("job-manager.dws.prolog-remove", payload={"id": message.payload["jobid"], "variables": variables()})


def post_run(handle, _watcher, message, _arg):
    handle.respond(message, {"success": True})
    handle.rpc("job-manager.dws.epilog-remove", payload={"id": message.payload["jobid"]})


def main():
    handle = flux.Flux()
    handle.service_register("dws").get()
    watchers = [
        handle.msg_watcher_create(call, FLUX_MSGTYPE_REQUEST, f"dws.{name}")
        for name, call in (("create", create), ("setup", setup), ("post_run", post_run))
    ]
    for watcher in watchers:
        watcher.start()
    print("ready", flush=True)
    handle.reactor_run()


main()
