#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='Randomized fault injection: munged, sources, the configuration and the plugin itself fail, and each job is accounted for

WORKFLOW_TOKEN_SOAK is the duration in seconds (30). WORKFLOW_TOKEN_SEED is the seed of an earlier run.'

. "$(dirname "$0")/lib.sh"
need_flux
need_kube
need_canaries

soak_of tokens
for name in file command; do
	token_file "$canaries/$name" >/dev/null
	soak_expects $name
done
cp "$canaries/file" "$day/file"
echo good >"$day/mode"
program source <<-EOF
	#!/bin/sh
	case \$(cat "$day/mode") in
	fail) echo nothing to be had >&2; exit 3 ;;
	hang) sleep 600 ;;
	slow) sleep 0.3 ;;
	garbage) head -c 300 /dev/urandom; exit 0 ;;
	empty) exit 0 ;;
	huge) head -c 3000000 /dev/zero | tr '\0' x; exit 0 ;;
	killed) kill -9 \$\$ ;;
	esac
	cat "$canaries/command"
EOF
mv source "$day/source"
table <<-EOF
	[[workflow-token.rule]]
	attribute = "system.file"
	source = "file"
	path = "$day/file"

	[[workflow-token.rule]]
	attribute = "system.command"
	source = "command"
	command = ["$day/source"]

	[[workflow-token.rule]]
	attribute = "system.kubernetes"
	source = "kubernetes"
	kubeconfig = "$KUBE/flux-workflow-token.kubeconfig"
	object = "soak"
EOF
# Without its record, a job does not start, whether or not the plugin was loaded when it was
# allocated.
initrc initrc.lua "config=$CONFIG" "munge-socket=$MUNGE_SOCKET"

test_expect_success 'an API server has a Workflow with a token' '
	kube_up &&
	openssl ecparam -name prime256v1 -genkey -noout -out "$canaries/key.pem" &&
	kube_key "$canaries/key.pem" &&
	timeout 60 python3 "$TESTS/kube-apiserver.py" workflow "$KUBE" soak "$(id -u)" PreRun "$DW requires=copy-offload" &&
	secret=$(kube GET "$WORKFLOWS/soak" | member status.workflowToken.secretName) &&
	kube GET "/api/v1/namespaces/default/secrets/$secret" | member data.token | base64 -d >"$canaries/kubernetes" &&
	soak_expects kubernetes
'

test_expect_success 'an instance loads the plugin' '
	munge_up &&
	instance_up 1 &&
	load &&
	munge_kill
'

test_expect_success 'each job had its token or one clear exception, none is stuck, and nothing has leaked' '
	soak
'
soak_report

test_expect_success 'no secret is anywhere' '
	ids= &&
	gather soak workflow-token.so &&
	flux kvs put --sync checkpoint=1 &&
	tasks= &&
	everywhere file command kubernetes &&
	test "$(cat status)" = 1
'

test_expect_success 'the instance ends normally' '
	instance_down
'

test_done
