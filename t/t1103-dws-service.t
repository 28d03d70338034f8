#!/usr/bin/env bash
test_description='Rabbit jobs with the service of flux-coral2 as it is, and a stand-in for its Kubernetes'

. "$(dirname "$0")/lib.sh"
need_flux
need_kube
need_dws_service

DWS_JOBTAP=$STAGE/lib/flux/job-manager/plugins/dws-jobtap.so
DWS_SHELL_PLUGIN=$STAGE/lib/flux/shell/plugins/dws_environment.so
DW='#DW jobdw type=xfs capacity=10GiB name=project1'

# Everything that is not to be searched is in here.
mkdir -m 0700 "$base/canaries"
canaries=$base/canaries
cleanup 'rm -rf "$canaries"'
token_file "$canaries/env" >/dev/null
openssl ecparam -name prime256v1 -genkey -noout -out "$canaries/key.pem"

mkdir -p config
cat >config/rabbit.toml <<-EOF
	[rabbit]
	kubeconfig = "$KUBE/flux-dws.kubeconfig"
EOF
table </dev/null
printf 'plugin.load { file = "%s", conf = { ["munge-socket"] = "%s" } }\n' "$DWS_SHELL_PLUGIN" "$MUNGE_SOCKET" >initrc.lua

# A task that keeps its environment where it is not searched, says its process id, and waits.
mkfifo go pids
program keep <<-EOF
	#!/bin/bash
	cat /proc/\$\$/environ >"$canaries/environ.\$1"
	echo \$\$ >"$PWD/pids"
	read -r line <"$PWD/go"
EOF

# rabbit …: submits a job with #DW directives. Prints its id.
rabbit() {
	flux submit --setattr=system.dw="$DW" "$@"
}

# story ID: what happened to a job, without when, and without what tells numbers and names.
story() {
	flux job eventlog --format=json "$1" | python3 -c '
import json, sys
for line in sys.stdin:
    event = json.loads(line)
    context = event.get("context") or {}
    what = [str(context[key]) for key in ("description", "type", "severity", "status") if key in context]
    if event["name"] == "memo":
        what += sorted(context)
    print(event["name"], *what)'
}

test_expect_success 'an instance takes the plugin, and the service is there' '
	munge_up &&
	kube_up rabbit0=node0,node1 &&
	python3 - "$canaries" <<-EOF >"$canaries/settings" &&
	import json, sys
	read = lambda name: open(f"{sys.argv[1]}/{name}").read()
	print(json.dumps({"env": {"DW_CANARY": read("env").strip()}, "key": read("key.pem"), "watch-for": 0.2}))
	EOF
	kube PATCH /control <"$canaries/settings" >/dev/null &&
	instance_up 2 -Slog-level=7 -Slog-stderr-level=7 -Slog-stderr-mode=local &&
	flux jobtap load "$DWS_JOBTAP" &&
	dws_up
'

test_expect_success 'a job comes through all states' '
	id=$(rabbit -n1 "$PWD/keep" all) &&
	read -r -t 60 tasks <>pids &&
	story "$id" &&
	workflow "$id" &&
	release go &&
	await clean "$id" &&
	story "$id" &&
	tr "\0" "\n" <"$canaries/environ.all" | grep DW_ &&
	eventually workflow_is_gone "$id"
'

test_done
