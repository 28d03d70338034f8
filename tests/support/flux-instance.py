#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""flux-instance.py --statedir DIRECTORY [OPTION…]: runs an instance of Flux as `flux-sim instance` runs a simulated
one.

It accepts the same options, and on standard input the same commands, see tests/flux-sim/src/control.rs. Commands
that inject faults, and commands for other users, fail. The option --nodes, which the simulator lacks, sets the
number of nodes. The command `processes` writes all data to disk, and returns the processes that a crash would end.
"""

import sys

# A token.py near this script would hide the one in Python's library.
del sys.path[0]

import argparse
import base64
import errno
import json
import os
import shutil
import time
import tomllib

FOLLOW = 2  # FLUX_RPC_STREAMING
READDIR = 1  # FLUX_KVS_READDIR
SYNC = 4  # FLUX_KVS_SYNC


def table(path):
    """Returns a configuration file as an object."""
    with open(path, "rb") as file:
        return tomllib.load(file)


def lua(value):
    """Returns the Lua expression of a JSON object, whose values are not nested."""
    fields = (f"[{json.dumps(name)}] = {json.dumps(field)}" for name, field in value.items())
    return "{ " + ", ".join(fields) + " }"


def launch(args):
    """Writes the files that Flux reads, and executes `flux start`, whose initial program is the control."""
    run = os.path.join(os.path.dirname(os.path.abspath(args.statedir)), "run")
    shutil.rmtree(run, ignore_errors=True)
    os.makedirs(run)
    os.makedirs(args.statedir, mode=0o700, exist_ok=True)
    last = args.nodes - 1
    hosts = f"node[0-{last}]" if last else "node0"
    resource = {"noverify": True, "norestrict": True, "config": [{"hosts": hosts, "cores": "0-255"}]}
    config = os.path.join(run, "config.json")
    with open(config, "w") as file:
        base = {"resource": resource}
        json.dump(base | {"base": base, "load": args.jobtap} | (table(args.config) if args.config else {}), file)
    conf = lua(json.loads(args.shell_conf))
    initrc = os.path.join(run, "initrc.lua")
    with open(initrc, "w") as file:
        for plugin in args.shell_plugin:
            file.write(f"plugin.load {{ file = {json.dumps(os.path.abspath(plugin))}, conf = {conf} }}\n")
    for name in [name for name in os.environ if name.startswith("FLUX_")]:
        del os.environ[name]
    # Jobs outlive the instance, as in a system instance, and their ids are printed as F58.
    os.environ |= {"FLUX_DISABLE_JOB_CLEANUP": "t", "LC_ALL": "C.UTF-8"}
    attributes = {
        "statedir": args.statedir,
        "log-ring-size": "100000",
        "broker.cleanup-timeout": "10s",
        "conf.shell_initrc": initrc,
    }
    options = [f"-S{name}={value}" for name, value in attributes.items()]
    options += [f"--test-size={args.nodes}", f"--test-hosts={hosts}", f"--test-rundir={run}", f"--config-path={config}"]
    control = ["flux", "python", os.path.abspath(__file__), "--control"]
    os.execvp("flux", ["flux", "start", "--test-exit-timeout=30s", *options, *control])


class Jobs:
    """The eventlogs of all jobs, from the journal of the job manager."""

    STATES = {"validate": "DEPEND", "depend": "PRIORITY", "priority": "SCHED", "alloc": "RUN", "finish": "CLEANUP"}

    def __init__(self, handle, changed):
        self.eventlogs = {}
        journal = handle.rpc("job-manager.events-journal", {"full": True}, flags=FOLLOW)

        def more(future):
            job, events = future.get()["id"], future.get()["events"]
            # Annotations are in no eventlog.
            events = [event for event in events if event["name"] != "annotations"]
            self.eventlogs.setdefault(job, []).extend(events)
            future.reset()
            return job

        # Earlier events come first. An entry without a job ends them.
        while more(journal) != -1:
            pass
        journal.then(lambda future: (more(future), changed()))

    def state(self, job):
        """Returns the state of a job, computed from its events."""
        state, dependencies, perilogs = "NEW", [], 0
        for event in self.eventlogs[job]:
            name, context = event["name"], event.get("context", {})
            if name == "clean":
                state = "INACTIVE"
            elif name == "exception" and context["severity"] == 0:
                state = "CLEANUP"
            elif state != "CLEANUP":
                state = self.STATES.get(name, state)
            if name == "dependency-add":
                dependencies.append(context["description"])
            elif name == "dependency-remove":
                dependencies.remove(context["description"])
            perilogs += name in ("prolog-start", "epilog-start")
            perilogs -= name in ("prolog-finish", "epilog-finish")
        return {"state": state, "dependencies": dependencies, "perilog_active": perilogs}


class Service:
    """The services that a test plays. The last `service` command for a topic sets its response."""

    def __init__(self, handle, changed):
        self.handle = handle
        self.changed = changed
        self.answers = {}
        self.requests = {}
        self.held = []
        self.watchers = {}

    def play(self, topic, answer):
        from flux.constants import FLUX_MSGTYPE_REQUEST

        self.answers[topic] = answer
        name = topic.split(".")[0]
        if name not in self.watchers:
            self.handle.service_register(name).get()
            watcher = self.handle.msg_watcher_create(self.requested, FLUX_MSGTYPE_REQUEST, f"{name}.*")
            self.watchers[name] = watcher
            watcher.start()

    def requested(self, _handle, _type, message, _args):
        self.requests.setdefault(message.topic, []).append(message.payload)
        answer = self.answers.get(message.topic, {})
        if answer.get("hold"):
            self.held.append(message)
        else:
            self.respond(message, answer)
        self.changed()

    def respond(self, message, answer):
        if "payload" in answer:
            self.handle.respond(message, answer["payload"])
        else:
            code = answer.get("errnum", errno.ENOSYS)
            text = answer.get("errstr", os.strerror(code))
            self.handle.respond_error(message.handle, code, text.encode())


class Control:
    """Reads commands and answers them. Each command is a method, which returns the members of the response."""

    def __init__(self):
        import flux
        from flux.job import JobID

        self.job_id = lambda text: int(JobID(text))
        self.f58 = lambda number: JobID(number).f58
        self.flux = flux.Flux()
        config = self.call("config.get")
        self.base = config.get("base", {})
        for path in config.get("load", []):
            self.load({"path": path})
        if "queues" in config:
            self.call("job-manager.queue-start", {"start": True, "all": True, "nocheckpoint": False})
        # The conditions of waiting commands: once such a function returns a response, it is sent.
        self.waiting = []
        self.input = b""
        self.lines = []
        self.jobs = Jobs(self.flux, self.check)
        self.services = Service(self.flux, self.check)
        log = self.flux.rpc("log.dmesg", {"follow": True, "nobacklog": False}, flags=FOLLOW)
        log.then(self.logged)

    def call(self, topic, payload=None, **more):
        return self.flux.rpc(topic, payload, **more).get()

    def run(self):
        from flux.constants import FLUX_POLLIN

        self.flux.fd_watcher_create(0, self.read, FLUX_POLLIN).start()
        self.flux.reactor_run()

    def read(self, handle, _watcher, fd, _revents, _args):
        data = os.read(fd, 1 << 16)
        *lines, self.input = (self.input + data).split(b"\n")
        for line in lines:
            request = json.loads(line)
            try:
                if "userid" in request and request["userid"] != os.getuid():
                    raise OSError(errno.EPERM, "there is one user only")
                method = getattr(self, {"raise": "cancel"}.get(request["cmd"], request["cmd"]).replace("-", "_"))
                self.reply(request, method(request))
            except (OSError, KeyError, AttributeError) as error:
                self.reply(request, error)
        if not data:
            handle.reactor_stop()

    def reply(self, request, answer):
        if callable(answer):
            self.waiting.append((request, answer))
            return self.check()
        if isinstance(answer, OSError):
            answer = {"error": answer.strerror or str(answer), "errnum": answer.errno}
        elif isinstance(answer, Exception):
            answer = {"error": repr(answer)}
        answer = {"id": request["id"], "ok": "error" not in answer} | (answer or {})
        print(json.dumps(answer), flush=True)

    def check(self):
        """Answers the waiting commands whose conditions hold."""
        waiting, self.waiting = self.waiting, []
        for request, condition in waiting:
            try:
                answer = condition()
            except OSError as error:
                answer = error
            if answer is None:
                self.waiting.append((request, condition))
            else:
                self.reply(request, answer)

    def reply_later(self, request, future, result):
        """Answers a command when a future is fulfilled."""

        def done(future):
            try:
                answer = result(future)
            except OSError as error:
                answer = error
            self.reply(request, answer)

        future.then(done)
        return lambda: None

    # Plugins

    def load(self, request):
        self.call("job-manager.jobtap", {"load": request["path"], "conf": request.get("conf") or {}})
        return {"name": os.path.basename(request["path"])}

    def remove(self, request):
        self.call("job-manager.jobtap", {"remove": request["name"]})
        return {}

    def list(self, _request):
        plugins = self.call("job-manager.jobtap", {"query_only": True})["plugins"]
        return {"plugins": [name for name in plugins if not name.startswith(".")]}

    def query(self, request):
        return {"result": self.call("job-manager.jobtap-query", {"name": request["name"]})}

    def config_reload(self, request):
        config = table(request["path"]) if "path" in request else request["config"]
        self.call("config.load", self.base | {"base": self.base} | config)
        return {}

    # Jobs

    def submit(self, request):
        import flux.job

        attributes = dict(request.get("attributes") or {})
        # As if submitted from a login, and on cores that this machine need not have.
        system = {"duration": 0, "environment": request.get("env", {"PATH": os.environ["PATH"]})}
        system |= attributes.get("system", {})
        shell = system.setdefault("shell", {})
        shell["options"] = {"cpu-affinity": "off"} | shell.get("options", {})
        slot = {"type": "slot", "count": 1, "label": "task", "with": [{"type": "core", "count": 1}]}
        jobspec = {
            "version": 1,
            "resources": [{"type": "node", "count": request.get("nodes", 1), "with": [slot]}],
            "tasks": [{"command": request.get("command"), "slot": "task", "count": {"per_slot": 1}}],
            "attributes": attributes | {"system": system},
        }
        jobspec = json.dumps(request.get("jobspec", jobspec))
        job = flux.job.submit(self.flux, jobspec, urgency=request.get("urgency", 16))
        return {"jobid": self.f58(job), "jobid_dec": int(job)}

    def cancel(self, request):
        exception = {name: request.get(name, default) for name, default in (("type", "cancel"), ("severity", 0))}
        note = {"note": request["note"]} if "note" in request else {}
        self.call("job-manager.raise", {"id": self.job_id(request["jobid"])} | exception | note)
        return {}

    def update(self, request):
        self.call("job-manager.update", {"id": self.job_id(request["jobid"]), "updates": request["updates"]})
        return {}

    def post(self, request):
        event = {name: request[name] for name in ("name", "context") if name in request}
        self.call("job-manager.post-event.post", {"id": self.job_id(request["jobid"])} | event)
        return {}

    def wait(self, request):
        job, name, count = self.job_id(request["jobid"]), request["event"], request.get("count", 1)

        def has_come():
            events = self.jobs.eventlogs.get(job, [])
            found = [event for event in events if event["name"] == name]
            if len(found) >= count:
                return {"event": found[count - 1]}
            if events and events[-1]["name"] == "clean":
                raise OSError(errno.ENOENT, f"{request['jobid']}: the job has ended without the event {name}")

        return has_come

    def state(self, request):
        return self.jobs.state(self.job_id(request["jobid"]))

    def eventlog(self, request):
        return {"events": self.jobs.eventlogs[self.job_id(request["jobid"])]}

    def output(self, request):
        text = {"stdout": "", "stderr": ""}
        try:
            lines = self.lookup(request | {"key": "guest.output"})["value"].splitlines()
        except FileNotFoundError:
            lines = []
        for event in map(json.loads, lines):
            context = event["context"]
            if event["name"] == "data":
                data = context.get("data", "")
                if context.get("encoding") == "base64":
                    data = base64.b64decode(data).decode(errors="replace")
                text[context["stream"]] += data
            elif event["name"] == "log":
                text["stderr"] += context["message"] + "\n"
        return text

    def lookup(self, request):
        payload = {"id": self.job_id(request["jobid"]), "keys": [request["key"]], "flags": 0}
        return {"value": self.call("job-info.lookup", payload)[request["key"]]}

    def committed(self, job):
        payload = {"id": job, "keys": ["eventlog"], "flags": 0}
        return self.call("job-info.lookup", payload)["eventlog"].splitlines()

    # The KVS

    def object(self, key, flags=0):
        return self.call("kvs.lookup", {"key": key, "namespace": "primary", "flags": flags})["val"]

    def kvs_get(self, request):
        return {"value": base64.b64decode(self.object(request["key"])["data"]).decode(errors="replace")}

    def kvs_put(self, request):
        import flux.kvs

        if request["value"] is None:
            flux.kvs.put_unlink(self.flux, request["key"])
        else:
            flux.kvs.put(self.flux, request["key"], request["value"], raw=True)
        flux.kvs.commit(self.flux)
        return {}

    def kvs_list(self, _request):
        return {"keys": list(self.keys("."))}

    def keys(self, directory):
        try:
            entries = self.object(directory, READDIR)["data"]
        except OSError:
            # Its job has ended meanwhile.
            return
        for name, entry in entries.items():
            key = name if directory == "." else f"{directory}.{name}"
            # The directory of a running job is a link.
            if entry["type"] in ("dir", "dirref", "symlink"):
                yield from self.keys(key)
            else:
                yield key

    # Services

    def rpc(self, request):
        future = self.flux.rpc(request["topic"], request.get("payload"))
        return self.reply_later(request, future, lambda future: {"payload": future.get()})

    def service(self, request):
        self.services.play(request["topic"], request)
        return {}

    def requests(self, _request):
        return {"requests": self.services.requests}

    def wait_request(self, request):
        topic, count = request["topic"], request.get("count", 1)

        def has_come():
            requests = self.services.requests.get(topic, [])
            return {"payload": requests[count - 1]} if len(requests) >= count else None

        return has_come

    def respond(self, request):
        message = next(message for message in self.services.held if message.topic == request["topic"])
        self.services.held.remove(message)
        self.services.respond(message, request)
        return {"payload": message.payload}

    # The log

    def logged(self, future):
        self.lines.append(future.get_str())
        future.reset()
        self.check()

    def dmesg(self, _request):
        lines = []
        log = self.flux.rpc("log.dmesg", {"follow": False, "nobacklog": False}, flags=FOLLOW)
        try:
            while True:
                lines.append(log.get_str())
                log.reset()
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
        return {"lines": lines}

    def wait_log(self, request):
        def has_come():
            found = [line for line in self.lines if request["text"] in line]
            return {"line": found[0]} if found else None

        return has_come

    # The instance

    def processes(self, _request):
        import flux.kvs

        # The job manager commits events some time after it has sent them.
        for job, events in self.jobs.eventlogs.items():
            while job != -1 and len(self.committed(job)) < len(events):
                time.sleep(0.01)
        flux.kvs.put(self.flux, "checkpoint", True)
        flux.kvs.commit(self.flux, flags=SYNC)
        size = int(self.flux.attr_get("size"))
        brokers = [self.call("attr.get", {"name": "broker.pid"}, nodeid=rank)["value"] for rank in range(size)]
        return {"processes": [*map(int, brokers), os.getpid()]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--statedir")
    parser.add_argument("--config")
    parser.add_argument("--jobtap", action="append", default=[])
    parser.add_argument("--shell-plugin", action="append", default=[])
    parser.add_argument("--shell-conf", default="{}")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--control", action="store_true")
    args = parser.parse_args()
    if args.control:
        Control().run()
    else:
        launch(args)


main()
