#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""dws-service.py serve DIRECTORY VARIABLES [again]: stands in for the service that communicates with Data Workflow
Services.

It handles the requests, responses and messages that the plugin dws-jobtap sees. VARIABLES is a file with the
variables of jobs, a JSON object, read for each job. DIRECTORY contains

    log         a line for each request, TOPIC JOBID PAYLOAD, and for each response to a request of its own
    workflows/  a file for each existing workflow: the state that outlives the service
    ready       a fifo; the service writes a line when it is ready

The words WHAT=HOW in a job's attribute system.dw change the handling of its requests: create=fail, errmsg,
malformed, none (no response), held (resources are not updated); exclude=NAME; setup=fail, none, held (the prolog is
not removed); post_run=fail, none, held (nor is the epilog); teardown=held.

With `again`, requests that it sends while no plugin is loaded are repeated, as if the service were restarted.

dws-service.py rpc TOPIC [PAYLOAD]: sends one request, and prints the response, or the error to standard error.
"""

import sys

# A token.py in the directory of this script would hide the one in Python's library.
del sys.path[0]

import errno
import json
import os

import flux
from flux.constants import FLUX_MSGTYPE_REQUEST


class Service:
    def __init__(self, directory, variables, again):
        self.directory = directory
        self.variables = variables
        self.again = again
        self.timers = {}
        self.flux = flux.Flux()

    def path(self, *parts):
        return os.path.join(self.directory, *map(str, parts))

    def log(self, *words):
        with open(self.path("log"), "a") as log:
            print(*words, file=log)

    def how(self, job, what):
        """Returns an instruction from a job's attribute, as submitted."""
        try:
            with open(self.path("workflows", job)) as file:
                words = file.read().split()
        except FileNotFoundError:
            return None
        return dict(word.split("=", 1) for word in words if "=" in word).get(what)

    def ask(self, method, job, payload):
        def done(future):
            try:
                future.get()
                self.log(method, job, "ok")
            except OSError as e:
                self.log(method, job, "error", e)
                if self.again and e.errno == errno.ENOSYS:
                    self.later(method, job, payload)

        self.flux.rpc(f"job-manager.dws.{method}", payload).then(done)

    def later(self, method, job, payload):
        def due(_handle, _watcher, _revents, _arg):
            del self.timers[method, job]
            self.ask(method, job, payload)

        self.timers[method, job] = self.flux.timer_watcher_create(0.1, due)
        self.timers[method, job].start()

    def create(self, job, payload):
        words = payload["dw_directives"]
        words = words if isinstance(words, str) else " ".join(words)
        if os.path.exists(self.path("workflows", job)):
            raise ValueError(f'workflows "fluxjob-{job}" already exists')
        tolerance = payload["failure_tolerance"]
        if not isinstance(tolerance, int) or tolerance < 0:
            raise ValueError("dw_failure_tolerance must be a positive integer")
        with open(self.path("workflows", job), "w") as file:
            file.write(words)
        if self.how(job, "create") == "fail":
            raise ValueError("create failed as it was told to")
        # Like the real service, it names the Workflow once that exists.
        memo = {"rabbit_workflow": f"fluxjob-{job}"}
        self.flux.rpc("job-manager.memo", {"id": job, "memo": memo}).then(lambda future: None)
        if self.how(job, "create") in (None, "errmsg"):
            self.update(job, payload["resources"])
        elif self.how(job, "create") == "malformed":
            self.ask("resource-update", job, {"id": job})

    def update(self, job, resources):
        exclude = self.how(job, "exclude")
        update = {"id": job, "resources": resources}
        update["exclude"] = exclude and {"not": [{"properties": [exclude]}]}
        if self.how(job, "create") == "errmsg":
            update["errmsg"] = "no such file system"
        self.ask("resource-update", job, update)

    def setup(self, job, payload):
        # As the real service requires.
        assert payload["R"]["execution"]["nodelist"]
        if self.how(job, "setup") == "fail":
            raise ValueError("setup failed as it was told to")
        if self.how(job, "setup") is None:
            self.remove_prolog(job)

    def remove_prolog(self, job):
        with open(self.variables) as file:
            self.ask("prolog-remove", job, {"id": job, "variables": json.load(file)})

    def post_run(self, job, payload):
        assert isinstance(payload["run_started"], bool)
        if self.how(job, "post_run") == "fail":
            raise ValueError("post_run failed as it was told to")
        if self.how(job, "post_run") is None:
            self.remove_epilog(job)

    def remove_epilog(self, job):
        if os.path.exists(self.path("workflows", job)):
            os.remove(self.path("workflows", job))
        self.ask("epilog-remove", job, {"id": job})

    def teardown(self, job, payload):
        if self.how(job, "teardown") is None:
            self.remove_epilog(job)

    def abort(self, job, payload):
        pass

    def serve(self):
        registered = self.flux.service_register("dws")
        watchers = []
        for method in (self.create, self.setup, self.post_run, self.teardown, self.abort):
            watcher = self.flux.msg_watcher_create(
                self.requested, FLUX_MSGTYPE_REQUEST, f"dws.{method.__name__}", args=method
            )
            watcher.start()
            watchers.append(watcher)
        retire = self.flux.msg_watcher_create(self.retire, FLUX_MSGTYPE_REQUEST, "dws.retire")
        retire.start()
        registered.get()
        with open(self.path("ready"), "w") as ready:
            print("ready", file=ready)
        self.flux.reactor_run()

    def retire(self, _handle, _type, message, _arg):
        """Ends after completing all earlier requests."""
        self.flux.service_unregister("dws").get()
        self.flux.respond(message, {})
        self.end()

    def end(self):
        def done(_future):
            if self.timers:
                self.end()
            else:
                self.flux.reactor_stop()

        # The reply to its own request arrives after all earlier requests.
        self.flux.rpc("broker.ping", {"seq": 0}).then(done)

    def requested(self, _handle, _type, message, method):
        name, payload = method.__name__, message.payload
        job = payload["jobid"]
        self.log(name, job, json.dumps(payload))
        answer = {"success": True}
        try:
            method(job, payload)
        except Exception as e:
            answer = {"success": False, "errstr": str(e)}
        if self.how(job, name) != "none":
            self.flux.respond(message, answer)


def main():
    if sys.argv[1] == "serve":
        Service(sys.argv[2], sys.argv[3], sys.argv[4:] == ["again"]).serve()
    elif sys.argv[1] == "rpc":
        payload = json.loads(sys.argv[3]) if len(sys.argv) > 3 else None
        try:
            print(json.dumps(flux.Flux().rpc(sys.argv[2], payload).get()))
        except OSError as e:
            sys.exit(f"{sys.argv[2]}: {e}")


main()
