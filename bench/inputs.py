# SPDX-License-Identifier: MIT OR Apache-2.0
"""Checks what `make bench` is given before it measures: inputs.py [settings]. Prints one line for each error, and ends with status 1 if
there is one. With `settings`, only the environment variables are checked, which needs no build."""

import os
import shutil
import subprocess
import sys

# By name: files that must be there, below the path in the variable. An empty name is the path itself.
PATHS = {
    "FLUX_CORAL2_PLUGINS": ["job-manager/plugins/dws-jobtap.so", "shell/plugins/dws_environment.so"],
    "FLUX_CORAL2_SERVICE": [""],
    "FLUX_PREFIX": ["bin/flux"],
}
PROGRAMS = {"OAUTH2_PROXY": "oauth2-proxy"}
COUNTS = ["BENCH_ROUNDS", "BENCH_JOBS", "BENCH_CORES", "BENCH_KUBE_JOBS", "BENCH_SLURM_JOBS"]
BUILT = [
    "seal-rate",
    "token-rate",
    "node-requests",
    "flux-sim",
    "workflow-token-agent",
    "workflow-tokend",
    "flux-workflow-token",
]
PLUGINS = [
    "job-manager/plugins/workflow-token.so",
    "job-manager/plugins/dws-jobtap.so",
    "shell/plugins/workflow-token.so",
]
# Tools, and the package of Debian that has them.
TOOLS = {"munged": "munge", "munge": "munge", "remunge": "munge", "openssl": "openssl", "taskset": "util-linux"}
# Without these, a part is not measured.
OPTIONAL = {"wrk": "the token service", "slurmctld": "Slurm", "flux": "Flux"}


def settings():
    """Errors in environment variables."""
    for name, files in PATHS.items():
        path = os.environ.get(name)
        for file in files if path else []:
            full = os.path.join(path, file) if file else path
            if not os.path.isfile(full):
                yield f"{name} is {path}, but {full} does not exist"
            elif not os.access(full, os.R_OK):
                yield f"{name} is {path}, but {full} cannot be read"
    for name, what in PROGRAMS.items():
        path = os.environ.get(name)
        if path and not (os.path.isfile(path) and os.access(path, os.X_OK)):
            yield f"{name} is {path}, which is not a program: set it to the path of {what}"
    for name in COUNTS:
        if not os.environ.get(name, "1").isdigit() or int(os.environ.get(name, "1")) < 1:
            yield f"{name} is {os.environ[name]}, which is not a positive integer"
    if not all(size.isdigit() and int(size) for size in os.environ.get("BENCH_NODES", "1").split()):
        yield f"BENCH_NODES is {os.environ['BENCH_NODES']}, which is not a list of positive integers"
    report = os.path.dirname(os.environ.get("BENCH_REPORT", "")) or "."
    if not os.access(report, os.W_OK):
        yield f"BENCH_REPORT is in {report}, to which this user cannot write"


def found(tool):
    return shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin")


def machine():
    """Errors in what is installed and built."""
    if sys.version_info < (3, 11):
        yield "Python is older than 3.11"
    for tool, package in TOOLS.items():
        if not found(tool):
            yield f"{tool} was not found: install the package {package}"
    release = os.environ.get("CARGO_TARGET_DIR", "target") + "/release/"
    plugins = os.environ.get("WORKFLOW_TOKEN_STAGE", "target/stage") + "/lib/flux/"
    for path in [*(release + name for name in BUILT), *(plugins + name for name in PLUGINS)]:
        if not os.path.exists(path):
            yield f"{path} does not exist: run make bench, which builds it"
    if os.environ.get("FLUX_CORAL2_PLUGINS") and found("flux"):
        if subprocess.run(("flux", "python", "-c", "import flux"), capture_output=True).returncode != 0:
            yield "flux python cannot import flux, which the stand-in for the service of flux-coral2 needs"


def main():
    only_settings = sys.argv[1:] == ["settings"]
    errors = [*settings(), *([] if only_settings else machine())]
    for error in errors:
        print(f"bench: {error}", file=sys.stderr)
    if errors:
        sys.exit(1)
    if not only_settings:
        for tool, part in OPTIONAL.items():
            if not found(tool):
                print(f"bench: {tool} was not found: {part} is not measured")
        if found("flux") and not os.environ.get("FLUX_CORAL2_PLUGINS"):
            print("bench: FLUX_CORAL2_PLUGINS is not set: rabbit jobs are not measured")
        if found("wrk") and not os.environ.get("OAUTH2_PROXY"):
            print("bench: OAUTH2_PROXY is not set: the token service is not compared with oauth2-proxy")


main()
