#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""kube-apiserver.py: stands in for a Kubernetes API server with Data Workflow Services (DWS), as far as the service
of flux-coral2 and the plugins use them.

kube-apiserver.py serve DIR RABBIT=HOST,… …   serves until it is ended, and prints "ready" when it does
kube-apiserver.py ask DIR METHOD PATH         sends a request with all permissions, with the body from standard input
kube-apiserver.py workflow DIR NAME UID STATE DIRECTIVE …
                                              makes a Workflow and moves it to a state, as a workload manager would

It creates DIR, with a kubeconfig file for each user (`USER.kubeconfig`): `admin`, `flux-dws` for the service, and
`flux-workflow-token` for the plugins, with the permissions in doc/kubernetes-rbac.yaml. Certificates and bearer
tokens are new each time.

A new Workflow passes its states as in DWS: the desired state is taken over, then completed. With
`requires=copy-offload` in a directive, it receives a token, in a Secret.

PATCH on `/control` (a merge patch) changes this behavior, and GET returns the settings and counters:

    answer-after  seconds that each response takes
    watch-for     maximum duration of a watch, in seconds
    env           variables that a Workflow has from PreRun on
    key           the key that signs tokens, as PEM
    hold          states that Workflows do not complete
    fail          states in which they fail, with the message
    versions      the served versions of the API group, the preferred one first
    refuse        users whose credential is rejected: 401
    forbid        for a user, the resources that are withheld: 403
    down          users whose requests all fail with 503
"""

import asyncio
import base64
import copy
import hashlib
import hmac
import http.client
import itertools
import json
import os
import ssl
import subprocess
import sys
import time
import urllib.parse

DWS = "dataworkflowservices.github.io"
NNF = "nnf.cray.hpe.com"
STATES = ["Proposal", "Setup", "DataIn", "PreRun", "PostRun", "DataOut", "Teardown"]
LABELS = f"{DWS}/workflow.name", f"{DWS}/workflow.namespace"

# The kinds of resources, by group and plural name.
KINDS = {
    DWS: {
        "clientmounts": "ClientMount",
        "computes": "Computes",
        "directivebreakdowns": "DirectiveBreakdown",
        "servers": "Servers",
        "storages": "Storage",
        "systemconfigurations": "SystemConfiguration",
        "systemstatuses": "SystemStatus",
        "workflows": "Workflow",
    },
    NNF: {"nnfdatamovements": "NnfDataMovement"},
    "": {"secrets": "Secret", "pods": "Pod"},
}
# Resources whose status changes only through its own path.
WITH_STATUS = {"clientmounts", "directivebreakdowns", "servers", "storages", "systemconfigurations"}

# The maximum number of events kept for watches that start from an older
# version.
HISTORY = 5000


class Refused(Exception):
    """An error response to a request."""

    def __init__(self, code, reason, message):
        super().__init__(message)
        self.code, self.reason = code, reason

    def status(self):
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": self.reason,
            "code": self.code,
        }


def denied(why):
    return Refused(403, "Forbidden", f'admission webhook "vworkflow.kb.io" denied the request: {why}')


def merge(old, patch):
    """Applies a merge patch, RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    new = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            new.pop(key, None)
        else:
            new[key] = merge(new.get(key), value)
    return new


def now():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def segment(content):
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def sign(key, subject):
    """Returns a unique token."""
    claims = {"sub": subject, "iat": int(time.time()), "jti": os.urandom(16).hex()}
    text = ".".join(segment(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims))
    return text + "." + segment(hmac.digest(key, text.encode(), hashlib.sha256))


def content(pem):
    """Returns the content of a PEM block: the copy-offload server of nnf-dm uses all of it as its key."""
    return base64.b64decode("".join(pem.split("-----")[2].split()))


class Store:
    """The objects and their history."""

    def __init__(self):
        self.objects = {}
        self.version = 1000
        self.events = []
        # The version before the oldest event kept.
        self.forgotten = self.version
        self.changed = asyncio.Condition()

    def get(self, group, plural, namespace, name):
        try:
            return self.objects[group, plural][namespace, name]
        except KeyError:
            resource = f"{plural}.{group}" if group else plural
            raise Refused(404, "NotFound", f'{resource} "{name}" not found') from None

    def list(self, group, plural, namespace, labels):
        for (where, _), item in sorted(self.objects.get((group, plural), {}).items()):
            has = item["metadata"].get("labels", {})
            if namespace in (None, where) and all(has.get(key) == value for key, value in labels.items()):
                yield item

    def create(self, group, plural, item):
        metadata = item["metadata"]
        place = metadata["namespace"], metadata["name"]
        if place in self.objects.setdefault((group, plural), {}):
            raise Refused(409, "AlreadyExists", f'{plural}.{group} "{place[1]}" already exists')
        metadata.update(uid=os.urandom(8).hex(), creationTimestamp=now(), generation=1)
        return self.put("ADDED", group, plural, item)

    def update(self, group, plural, item):
        """Replaces an object, or removes it if it is being deleted and has no finalizers."""
        metadata = item["metadata"]
        if "deletionTimestamp" in metadata and not metadata.get("finalizers"):
            return self.remove(group, plural, item)
        return self.put("MODIFIED", group, plural, item)

    def delete(self, group, plural, item):
        if item["metadata"].get("finalizers"):
            item = copy.deepcopy(item)
            item["metadata"].setdefault("deletionTimestamp", now())
            return self.put("MODIFIED", group, plural, item)
        return self.remove(group, plural, item)

    def remove(self, group, plural, item):
        metadata = item["metadata"]
        del self.objects[group, plural][metadata["namespace"], metadata["name"]]
        if plural == "workflows":
            labels = dict(zip(LABELS, (metadata["name"], metadata["namespace"])))
            for kind in list(self.objects):
                for owned in list(self.list(*kind, None, labels)):
                    self.remove(*kind, owned)
        item = copy.deepcopy(item)
        return self.tell("DELETED", group, plural, item)

    def put(self, what, group, plural, item):
        metadata = item["metadata"]
        self.objects[group, plural][metadata["namespace"], metadata["name"]] = item
        return self.tell(what, group, plural, item)

    def tell(self, what, group, plural, item):
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        self.events.append((self.version, what, group, plural, item))
        if len(self.events) > HISTORY:
            self.forgotten = self.events[0][0]
            del self.events[0]
        asyncio.get_running_loop().create_task(self.notify())
        return item

    async def notify(self):
        async with self.changed:
            self.changed.notify_all()


class Dws:
    """The handling of Workflows by DWS and its storage drivers."""

    def __init__(self, store, settings, rabbits):
        self.store, self.settings = store, settings
        storage_nodes, hosts = [], {}
        for rabbit, computes in rabbits.items():
            names = [{"name": name} for name in computes]
            storage_nodes.append({"name": rabbit, "type": "Rabbit", "computesAccess": names})
            access = {"protocol": "PCIe", "computes": [dict(name, status="Ready") for name in names]}
            status = {"capacity": 1 << 45, "status": "Ready", "type": "NVMe", "access": access}
            self.make("storages", rabbit, spec={"state": "Enabled"}, status=status)
            hosts.update((name, "Enabled") for name in computes)
        self.make("systemconfigurations", "default", spec={"storageNodes": storage_nodes}, status={"ready": True})
        self.make("systemstatuses", "default", data={"nodes": hosts})

    def make(self, plural, name, labels=None, namespace="default", **content):
        group = "" if plural == "secrets" else DWS
        metadata = {"name": name, "namespace": namespace}
        if labels:
            metadata["labels"] = dict(labels)
        item = {"kind": KINDS[group][plural], "metadata": metadata, **content}
        return self.store.create(group, plural, item)

    def admit(self, old, new):
        """The webhook for Workflows that are created (`old` is None) or changed."""
        spec = new["spec"]
        if old is None:
            if spec["desiredState"] != "Proposal":
                raise denied("desired state must start in Proposal")
            for directive in spec["dwDirectives"]:
                self.check_directive(directive)
            metadata = new["metadata"]
            env = {"DW_WORKFLOW_NAME": metadata["name"], "DW_WORKFLOW_NAMESPACE": metadata["namespace"]}
            new["status"] = {"ready": False, "env": env}
            return
        for key in ("wlmID", "jobID", "userID", "groupID", "dwDirectives"):
            if spec.get(key) != old["spec"].get(key):
                raise denied(f"Spec.{key}: field is immutable")
        at, to = old["status"].get("state"), spec["desiredState"]
        if to not in STATES:
            raise Refused(422, "Invalid", f'Workflow is invalid: spec.desiredState: Unsupported value: "{to}"')
        if to in ("Teardown", at) or at is None and to == "Proposal":
            return
        if STATES.index(to) != STATES.index(at or "Proposal") + 1:
            raise denied("states cannot be skipped, and DesiredState cannot progress backwards")
        if not old["status"]["ready"]:
            raise denied("current desired state not yet achieved")

    def check_directive(self, directive):
        words = directive.split()
        keys = dict(word.split("=", 1) for word in words[2:] if "=" in word)
        if words[:2] != ["#DW", "jobdw"]:
            raise denied(f"unsupported command in directive: '{directive}'")
        missing = {"type", "capacity", "name"} - keys.keys()
        if missing:
            raise denied(f"missing argument '{min(missing)}' in directive: '{directive}'")
        return keys

    def settle(self, key):
        """Moves a Workflow one step towards its desired state, and schedules the next step."""
        item = self.store.objects.get((DWS, "workflows"), {}).get(key)
        if item is None:
            return
        item = copy.deepcopy(item)
        spec, status = item["spec"], item["status"]
        to = spec["desiredState"]
        if status.get("state") != to:
            since = now()
            status.update(state=to, ready=False, status="DriverWait", desiredStateChange=since, message="")
        elif status["ready"] or status["status"] == "Error" or to in self.settings["hold"]:
            return
        elif to in self.settings["fail"]:
            status.update(status="Error", message=self.settings["fail"][to])
        else:
            wrong = self.do(to, item)
            if wrong:
                status.update(status="Error", message=wrong)
            else:
                status.update(ready=True, status="Completed", readyChange=now(), elapsedTimeLastState="5ms")
        self.store.update(DWS, "workflows", item)
        asyncio.get_running_loop().call_soon(self.settle, key)

    def settle_all(self):
        for key in self.store.objects.get((DWS, "workflows"), {}):
            self.settle(key)

    def do(self, state, item):
        """Performs the work of a state. Returns the error, if any."""
        name, namespace = item["metadata"]["name"], item["metadata"]["namespace"]
        spec, status = item["spec"], item["status"]
        labels = dict(zip(LABELS, (name, namespace)))

        def mine(plural):
            return self.store.list(DWS, plural, None, labels)

        directives = list(map(self.check_directive, spec["dwDirectives"]))
        if state == "Proposal":
            self.make("computes", name, labels, data=[])
            status["computes"] = {"kind": "Computes", "name": name, "namespace": namespace}
            status["directiveBreakdowns"] = []
            for number, keys in enumerate(directives):
                self.break_down(f"{name}-{number}", labels, spec, keys)
                reference = {"kind": "DirectiveBreakdown", "name": f"{name}-{number}", "namespace": namespace}
                status["directiveBreakdowns"].append(reference)
            status["requires"] = sorted(
                {word for keys in directives for word in keys.get("requires", "").split(",")} - {""}
            )
        elif state == "Setup":
            for servers in mine("servers"):
                sets = servers["spec"].get("allocationSets")
                if not sets or not all(one["storage"] for one in sets):
                    return f"Servers {servers['metadata']['name']} have no allocations"
                made = [
                    {
                        "label": one["label"],
                        "storage": {
                            where["name"]: {"allocationSize": one["allocationSize"], "ready": True}
                            for where in one["storage"]
                        },
                    }
                    for one in sets
                ]
                self.store.update(DWS, "servers", dict(servers, status={"ready": True, "allocationSets": made}))
            if "copy-offload" in status["requires"]:
                token = base64.b64encode(sign(content(self.settings["key"]), "user-container").encode()).decode()
                where = self.settings["secret-namespace"]
                self.make("secrets", f"{name}-token", labels, where, type="Opaque", data={"token": token})
                status["workflowToken"] = {"secretName": f"{name}-token", "secretNamespace": where}
        elif state == "PreRun":
            for compute in itertools.chain.from_iterable(computes["data"] for computes in mine("computes")):
                mounts = [{"mountPath": f"/mnt/nnf/{keys['name']}"} for keys in directives]
                self.make(
                    "clientmounts",
                    f"{name}-computes",
                    labels,
                    compute["name"],
                    spec={"node": compute["name"], "desiredState": "mounted", "mounts": mounts},
                    status={"allReady": True, "mounts": [{"state": "mounted", "ready": True} for _ in mounts]},
                )
            if not any(mine("clientmounts")):
                return "Computes have no data"
            status["env"].update(
                (f"DW_JOB_{keys['name'].replace('-', '_')}", f"/mnt/nnf/{keys['name']}") for keys in directives
            )
            status["env"].update(self.settings["env"])
        elif state == "PostRun":
            for mount in list(mine("clientmounts")):
                mounts = [{"state": "unmounted", "ready": True} for _ in mount["spec"]["mounts"]]
                self.store.update(DWS, "clientmounts", dict(mount, status={"allReady": True, "mounts": mounts}))
        return None

    def break_down(self, name, labels, spec, keys):
        namespace = labels[LABELS[1]]
        self.make("servers", name, labels, spec={"allocationSets": []}, status={"ready": False})
        allocation = {
            "allocationStrategy": "AllocatePerCompute",
            "label": keys["type"],
            "minimumCapacity": 10 << 30,
            "constraints": {},
        }
        status = {
            "ready": True,
            "storage": {
                "lifetime": "job",
                "reference": {"kind": "Servers", "name": name, "namespace": namespace},
                "allocationSets": [allocation],
            },
        }
        self.make("directivebreakdowns", name, labels, spec={"userID": spec["userID"]}, status=status)


class Request:
    def __init__(self, method, target, headers, body):
        parts = urllib.parse.urlsplit(target)
        self.method, self.path, self.headers = method, urllib.parse.unquote(parts.path), headers
        self.query = dict(urllib.parse.parse_qsl(parts.query))
        self.body = json.loads(body) if body else None
        self.user = None

    def flag(self, name):
        return self.query.get(name, "").lower() in ("1", "true")


class Server:
    def __init__(self, directory, rabbits):
        self.directory = directory
        self.settings = {
            "answer-after": 0,
            "watch-for": 300,
            "env": {},
            "key": "",
            "secret-namespace": "default",
            "hold": [],
            "fail": {},
            "versions": ["v1alpha7", "v1alpha6"],
            "refuse": [],
            "forbid": {},
            "down": [],
        }
        self.store = Store()
        self.dws = Dws(self.store, self.settings, rabbits)
        key = os.urandom(32)
        self.tokens = {sign(key, user): user for user in ("admin", "flux-dws", "flux-workflow-token")}
        self.connections = {"now": 0, "most": 0, "total": 0}
        self.requests = {}
        self.at_once = {"now": 0, "most": 0}

    # HTTP

    async def serve(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(f"{self.directory}/server.pem", f"{self.directory}/server.key")
        server = await asyncio.start_server(self.connection, "127.0.0.1", 0, ssl=context, backlog=1024)
        port = server.sockets[0].getsockname()[1]
        for token, user in self.tokens.items():
            kubeconfig(self.directory, user, f"https://127.0.0.1:{port}", token)
        print("ready", flush=True)
        async with server:
            await server.serve_forever()

    async def connection(self, reader, writer):
        counts = self.connections
        counts["total"] += 1
        counts["now"] += 1
        counts["most"] = max(counts["most"], counts["now"])
        try:
            while await self.exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            counts["now"] -= 1
            writer.close()

    async def exchange(self, reader, writer):
        """Handles one request. Returns whether another one may follow."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.at_once["now"] += 1
        self.at_once["most"] = max(self.at_once["most"], self.at_once["now"])
        try:
            if self.settings["answer-after"]:
                await asyncio.sleep(self.settings["answer-after"])
            request = Request(method, target, headers, body)
            answer = self.answer(request)
            code = 201 if method == "POST" else 200
        except Refused as refused:
            answer, code = refused.status(), refused.code
        except (KeyError, TypeError, ValueError) as error:
            answer, code = Refused(400, "BadRequest", repr(error)).status(), 400
        finally:
            self.at_once["now"] -= 1
        if not isinstance(answer, dict):
            # Many watches run at once for a long time, so they are not limited.
            await self.watch(writer, *answer)
            return True
        content = json.dumps(answer).encode()
        writer.write(
            f"HTTP/1.1 {code} -\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        await writer.drain()
        return headers.get("connection", "").lower() != "close"

    # Permissions

    def authenticate(self, request):
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        user = self.tokens.get(token) if kind == "Bearer" else None
        if user is None or user in self.settings["refuse"]:
            raise Refused(401, "Unauthorized", "Unauthorized")
        return user

    def may(self, user, verb, group, plural, namespace):
        if plural in self.settings["forbid"].get(user, []):
            return False
        if user == "admin":
            return True
        if user == "flux-dws":
            return group in (DWS, NNF) or (verb, plural) in (("get", "secrets"), ("list", "pods"))
        return verb == "get" and namespace == "default" and (group, plural) in ((DWS, "workflows"), ("", "secrets"))

    def authorize(self, user, verb, group, plural, namespace, name):
        count = f"{user} {verb} {plural}"
        self.requests[count] = self.requests.get(count, 0) + 1
        if not self.may(user, verb, group, plural, namespace):
            resource = f"{plural}.{group}" if group else plural
            named = f' "{name}"' if name else ""
            where = f' in the namespace "{namespace}"' if namespace else " at the cluster scope"
            why = f'User "{user}" cannot {verb} resource "{plural}" in API group "{group}"{where}'
            raise Refused(403, "Forbidden", f"{resource}{named} is forbidden: {why}")

    # Requests

    def answer(self, request):
        user = request.user = self.authenticate(request)
        path = request.path.strip("/").split("/")
        if path == ["control"] and user == "admin":
            return self.control(request)
        if user in self.settings["down"]:
            raise Refused(503, "ServiceUnavailable", "the server is currently unable to handle the request")
        match path:
            case ["api"]:
                return {"kind": "APIVersions", "versions": ["v1"]}
            case ["apis"]:
                return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [self.group(DWS), self.group(NNF)]}
            case ["apis", group]:
                return self.group(group)
            case ["apis", "authorization.k8s.io", "v1", "selfsubjectaccessreviews"]:
                what = request.body["spec"]["resourceAttributes"]
                what = [what.get(key, "") for key in ("verb", "group", "resource", "namespace")]
                return dict(request.body, status={"allowed": self.may(user, *what)})
            case ["api", "v1", *rest]:
                return self.resource(request, "", "v1", rest)
            case ["apis", group, version, *rest] if version in self.versions(group):
                return self.resource(request, group, version, rest)
        raise Refused(404, "NotFound", "the server could not find the requested resource")

    def versions(self, group):
        return {DWS: self.settings["versions"], NNF: ["v1alpha11"]}.get(group, [])

    def group(self, group):
        versions = [{"groupVersion": f"{group}/{version}", "version": version} for version in self.versions(group)]
        if not versions:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        return {
            "kind": "APIGroup",
            "apiVersion": "v1",
            "name": group,
            "versions": versions,
            "preferredVersion": versions[0],
        }

    def resource(self, request, group, version, path):
        namespace = name = sub = None
        match path:
            case []:
                resources = [
                    {"name": plural, "kind": kind, "namespaced": True, "verbs": ["get", "list", "watch"]}
                    for plural, kind in KINDS[group].items()
                ]
                name = f"{group}/{version}" if group else version
                return {"kind": "APIResourceList", "groupVersion": name, "resources": resources}
            case ["namespaces", namespace, plural]:
                pass
            case ["namespaces", namespace, plural, name]:
                pass
            case ["namespaces", namespace, plural, name, "status" as sub]:
                pass
            case [plural]:
                pass
            case _:
                plural = None
        if plural not in KINDS[group]:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        verb = {
            "GET": "get" if name else "watch" if request.flag("watch") else "list",
            "POST": "create",
            "PATCH": "patch",
            "DELETE": "delete",
        }[request.method]
        self.authorize(request.user, verb, group, plural, namespace, name)
        api = f"{group}/{version}" if group else version
        if verb in ("list", "watch"):
            labels = request.query.get("labelSelector")
            labels = dict(label.split("=", 1) for label in labels.split(",")) if labels else {}
            if verb == "watch":
                limit = min(float(request.query.get("timeoutSeconds", 300)), self.settings["watch-for"])
                return group, plural, namespace, labels, api, request.query.get("resourceVersion"), limit
            items = [dict(item, apiVersion=api) for item in self.store.list(group, plural, namespace, labels)]
            metadata = {"resourceVersion": str(self.store.version)}
            return {"kind": KINDS[group][plural] + "List", "apiVersion": api, "metadata": metadata, "items": items}
        if verb == "create":
            item = self.create(group, plural, namespace, request.body)
        else:
            item = self.store.get(group, plural, namespace, name)
            if verb == "delete":
                item = self.store.delete(group, plural, item)
            elif verb == "patch":
                if request.headers.get("content-type") != "application/merge-patch+json":
                    raise Refused(415, "UnsupportedMediaType", "only merge patches are taken here")
                item = self.patch(group, plural, item, request.body, sub)
        return dict(item, apiVersion=api)

    def create(self, group, plural, namespace, body):
        item = {**body, "kind": KINDS[group][plural]}
        item["metadata"] = {**body["metadata"], "namespace": namespace}
        if plural == "workflows":
            self.dws.admit(None, item)
        item = self.store.create(group, plural, item)
        self.look_after(plural, item)
        return item

    def patch(self, group, plural, old, patch, sub):
        if sub == "status":
            patch = {"status": patch.get("status")}
        elif plural in WITH_STATUS:
            patch = {key: value for key, value in patch.items() if key != "status"}
        new = copy.deepcopy(merge(old, patch))
        was, metadata = old["metadata"], new["metadata"]
        if metadata["resourceVersion"] != was["resourceVersion"]:
            raise Refused(409, "Conflict", "the object has been modified: apply your changes to the latest version")
        added = set(metadata.get("finalizers", ())) - set(was.get("finalizers", ()))
        if "deletionTimestamp" in was and added:
            raise Refused(422, "Invalid", "metadata.finalizers: Forbidden: no new finalizers can be added")
        if plural == "workflows":
            self.dws.admit(old, new)
        new = self.store.update(group, plural, new)
        self.look_after(plural, new)
        return new

    def look_after(self, plural, item):
        """Schedules the follow-up work of a change, which another component does."""
        if plural == "workflows":
            key = item["metadata"]["namespace"], item["metadata"]["name"]
            asyncio.get_running_loop().call_soon(self.dws.settle, key)

    async def watch(self, writer, group, plural, namespace, labels, api, since, limit):
        """Writes the events after a version. Without a version, or from 0, existing objects come first."""
        end = asyncio.get_running_loop().time() + limit
        writer.write(b"HTTP/1.1 200 -\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")

        async def tell(what, item):
            line = json.dumps({"type": what, "object": item}).encode() + b"\n"
            writer.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            await writer.drain()

        since = int(since or 0)
        if since == 0:
            since = self.store.version
            for item in list(self.store.list(group, plural, namespace, labels)):
                await tell("ADDED", dict(item, apiVersion=api))
        while True:
            if since < self.store.forgotten:
                gone = Refused(410, "Expired", f"too old resource version: {since} ({self.store.forgotten})")
                await tell("ERROR", gone.status())
                break
            for version, what, *kind, item in [event for event in self.store.events if event[0] > since]:
                since = version
                where, has = item["metadata"]["namespace"], item["metadata"].get("labels", {})
                if kind == [group, plural] and namespace in (None, where) and labels.items() <= has.items():
                    await tell(what, dict(item, apiVersion=api))
            left = end - asyncio.get_running_loop().time()
            if left <= 0:
                break
            try:
                async with asyncio.timeout(left), self.store.changed:
                    await self.store.changed.wait_for(lambda since=since: self.store.version > since)
            except TimeoutError:
                break
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    def control(self, request):
        if request.method == "PATCH":
            unknown = request.body.keys() - self.settings.keys()
            if unknown:
                raise Refused(422, "Invalid", f"there is no setting {min(unknown)}")
            # Others know where the settings are read.
            for key, value in request.body.items():
                self.settings[key] = value
            asyncio.get_running_loop().call_soon(self.dws.settle_all)
        shown = {key: value for key, value in self.settings.items() if key != "key"}
        return {
            "settings": shown,
            "connections": self.connections,
            "requests": self.requests,
            "requests-at-once": self.at_once["most"],
        }


def certificates(directory):
    """Creates a certificate authority, and the certificate of the server."""
    new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2".split()

    def openssl(*args):
        subprocess.run(new + list(args), cwd=directory, check=True, capture_output=True, text=True)

    openssl("-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem")
    who = (
        "-subj",
        "/CN=kube-apiserver",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-keyout",
        "server.key",
        "-out",
        "server.pem",
    )
    openssl(
        *who, "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"
    )


def kubeconfig(directory, user, server, token):
    path = f"{directory}/{user}.kubeconfig"
    with open(path + ".new", "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(f"""apiVersion: v1
kind: Config
current-context: test
clusters:
- name: test
  cluster:
    server: {server}
    certificate-authority: {directory}/ca.pem
contexts:
- name: test
  context:
    cluster: test
    user: {user}
users:
- name: {user}
  user:
    token: "{token}"
""")
    os.rename(path + ".new", path)


class Client:
    """A client with the role of kubectl."""

    def __init__(self, directory):
        with open(f"{directory}/admin.kubeconfig") as file:
            words = file.read().split()
        self.server = urllib.parse.urlsplit(words[words.index("server:") + 1])
        self.token = words[words.index("token:") + 1].strip('"')
        self.context = ssl.create_default_context(cafile=f"{directory}/ca.pem")

    def request(self, method, path, body=None):
        connection = http.client.HTTPSConnection(
            self.server.hostname, self.server.port, context=self.context, timeout=60
        )
        headers = {"Authorization": f"Bearer {self.token}"}
        if body is not None:
            headers["Content-Type"] = "application/merge-patch+json" if method == "PATCH" else "application/json"
        connection.request(method, path, body, headers)
        return connection.getresponse()

    def workflow(self, name, uid, state, directives):
        """Creates a Workflow and moves it to a state. Returns once it is in that state, complete or not."""
        apis = f"/apis/{DWS}/v1alpha7/namespaces/default"
        path = f"{apis}/workflows"
        spec = {"desiredState": "Proposal", "dwDirectives": directives, "userID": uid, "groupID": 0}
        spec.update(jobID=name.removeprefix("fluxjob-"), wlmID="flux")
        self.must("POST", path, {"metadata": {"name": name}, "spec": spec})
        for before, now in itertools.pairwise(STATES[: STATES.index(state) + 1]):
            self.wait(path, name, lambda status, before=before: status.get("state") == before and status["ready"])
            if before == "Proposal":
                storage = [{"name": "rabbit0", "allocationCount": 1}]
                allocation = {"label": "xfs", "allocationSize": 10 << 30, "storage": storage}
                for number in range(len(directives)):
                    self.must("PATCH", f"{apis}/servers/{name}-{number}", {"spec": {"allocationSets": [allocation]}})
                self.must("PATCH", f"{apis}/computes/{name}", {"data": [{"name": "node0"}]})
            self.must("PATCH", f"{path}/{name}", {"spec": {"desiredState": now}})
        self.wait(path, name, lambda status: status.get("state") == state)

    def must(self, method, path, body):
        answer = self.request(method, path, json.dumps(body))
        if answer.status >= 300:
            raise SystemExit(f"{method} {path}: {answer.read().decode()}")

    def wait(self, path, name, condition):
        for line in self.request("GET", f"{path}?watch=1&timeoutSeconds=60"):
            item = json.loads(line)["object"]
            if item["metadata"]["name"] != name:
                continue
            if condition(item["status"]):
                return
            if item["status"].get("status") == "Error":
                raise SystemExit(f"{name} has failed: {item['status']['message']}")
        raise SystemExit(f"{name} does not get there")


def ask(directory, method, path):
    body = sys.stdin.buffer.read() if method in ("PATCH", "POST") else None
    answer = Client(directory).request(method, path, body)
    print(answer.read().decode())
    return 0 if answer.status < 300 else 1


async def serve(directory, rabbits):
    await Server(directory, rabbits).serve()


def main():
    match sys.argv[1:]:
        case ["serve", directory, *rabbits]:
            directory = os.path.abspath(directory)
            os.makedirs(directory, mode=0o700, exist_ok=True)
            certificates(directory)
            pairs = (rabbit.split("=") for rabbit in rabbits)
            asyncio.run(serve(directory, {rabbit: hosts.split(",") for rabbit, hosts in pairs}))
        case ["ask", directory, method, path]:
            return ask(directory, method, path)
        case ["workflow", directory, name, uid, state, *directives]:
            Client(directory).workflow(name, int(uid), state, directives)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
