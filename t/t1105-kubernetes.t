#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='source = "kubernetes": jobs have the variables and tokens of their Workflows'

. "$(dirname "$0")/lib.sh"
need_flux
need_kube

need_canaries
token_file "$canaries/env" >/dev/null
token_file "$canaries/service" >/dev/null
openssl ecparam -name prime256v1 -genkey -noout -out "$canaries/key.pem"
initrc token.lua "munge-socket=$MUNGE_SOCKET"
dws_initrc
cat token.lua >>initrc.lua

# rule …: writes the table with one rule for this source. The arguments are further lines of the
# rule.
rule() {
	table <<-EOF
		timeout = "30s"
		[[workflow-token.rule]]
		attribute = "system.workflow"
		source = "kubernetes"
		kubeconfig = "$KUBE/flux-workflow-token.kubeconfig"
		$(printf '%s\n' "$@")
	EOF
}

# Stores its DWS variables where they are not searched.
program keep <<-EOF
	#!/bin/sh
	printenv | grep ^DW_ | grep -v ^DW_WORKFLOW_TOKEN_FILE= | sort >"$canaries/environ"
EOF
quiet_program

# held …: submits a job that may not run yet. Sets id.
held() {
	id=$(submit --urgency=hold "$@")
}

go() {
	flux job urgency "$id" default
}

# has_what_is_there: succeeds if the job ended normally, with the variables of its Workflow and its
# token.
has_what_is_there() {
	await clean "$id" &&
		events finish "$id" | grep status=0 &&
		{
			workflow "$id" | python3 -c '
import json, sys
for name, value in json.load(sys.stdin)["status"]["env"].items():
    print(f"{name}={value}")' &&
			printf 'DW_WORKFLOW_TOKEN=%s\n' "$(workflow_token "$id")"
		} | sort >"$canaries/expected" &&
		test "$(wc -l <"$canaries/expected")" = 5 &&
		cmp "$canaries/expected" "$canaries/environ"
}

# waits: succeeds if the job is in its prolog, and its Workflow was requested.
waits() {
	await prolog-start "$id" && eventually is_asked_for && has_no_event prolog-finish "$id" && has_no_event exception "$id"
}

# asks: prints the number of requests for Workflows.
asks() {
	kube GET /control | python3 -c 'import json, sys; print(json.load(sys.stdin)["requests"].get("flux-workflow-token get workflows", 0))'
}

is_asked_for() {
	test "$(asks)" -gt "$asked"
}

test_expect_success 'an instance loads the plugin' '
	munge_up &&
	kube_up &&
	kube_key "$canaries/key.pem" &&
	kube_set "{\"env\": {\"DW_CANARY\": \"$(cat "$canaries/env")\"}}" &&
	sed -n "s/.*token: //p" "$KUBE/flux-workflow-token.kubeconfig" | tr -d \" >"$canaries/bearer" &&
	rule &&
	instance_up 1 -Slog-level=7 -Slog-stderr-level=7 -Slog-stderr-mode=local &&
	load
'

test_expect_success 'doctor finds the server, the credential, and its permissions' '
	flux workflow-token doctor >doctor
	cat doctor &&
	grep "^ok .*kubernetes" doctor &&
	! grep "^\(warn\|fail\) .*kubernetes" doctor
'

test_expect_success 'a job has the variables of its Workflow, and the token of its Secret' '
	held "$PWD/keep" &&
	make_workflow "$id" PreRun &&
	go &&
	has_what_is_there
'

test_expect_success 'a delivery waits until the Workflow has completed PreRun' '
	asked=$(asks) &&
	kube_set "{\"hold\": [\"PreRun\"]}" &&
	held "$PWD/keep" &&
	make_workflow "$id" PreRun &&
	go &&
	waits &&
	kube_set "{\"hold\": []}" &&
	has_what_is_there
'

test_expect_success 'a job canceled meanwhile ends' '
	asked=$(asks) &&
	kube_set "{\"hold\": [\"PreRun\"]}" &&
	test_when_finished "kube_set \"{\\\"hold\\\": []}\"" &&
	held true &&
	make_workflow "$id" PreRun &&
	go &&
	waits &&
	flux cancel "$id" &&
	await clean "$id" &&
	has_no_event start "$id"
'

test_expect_success 'the plugin is reloaded meanwhile, and the delivery continues' '
	asked=$(asks) &&
	kube_set "{\"hold\": [\"DataIn\"]}" &&
	held "$PWD/keep" &&
	make_workflow "$id" DataIn &&
	go &&
	waits &&
	unload &&
	load &&
	kube_set "{\"hold\": []}" &&
	kube PATCH "$WORKFLOWS/fluxjob-$(flux job id --to=dec "$id")" \
		<<<"{\"spec\": {\"desiredState\": \"PreRun\"}}" >/dev/null &&
	has_what_is_there
'

test_expect_success 'requests to a failing server are retried' '
	kube_set "{\"down\": [\"flux-workflow-token\"]}" &&
	held "$PWD/keep" &&
	make_workflow "$id" PreRun &&
	go &&
	await prolog-start "$id" &&
	kube_set "{\"down\": []}" &&
	has_what_is_there
'

test_expect_success 'after an upgrade, the served version is used' '
	kube_set "{\"versions\": [\"v1alpha8\", \"v1alpha7\"]}" &&
	held "$PWD/keep" &&
	make_workflow "$id" PreRun &&
	kube_set "{\"versions\": [\"v1alpha8\"]}" &&
	go &&
	await clean "$id" &&
	kube_set "{\"versions\": [\"v1alpha7\", \"v1alpha6\"]}" &&
	has_what_is_there
'

test_expect_success 'a credential is no longer accepted: the job fails, and the operator learns the cause' '
	held true &&
	make_workflow "$id" PreRun &&
	kube_set "{\"refuse\": [\"flux-workflow-token\"]}" &&
	go &&
	is_failed_delivery "$id" "access to the Kubernetes API server that has its Workflow is not set up" &&
	kube_set "{\"refuse\": []}" &&
	flux dmesg | grep "workflow-token: .* it did not accept the credential (401)"
'

test_expect_success 'the same for a credential without permission to read Secrets' '
	held true &&
	make_workflow "$id" PreRun &&
	kube_set "{\"forbid\": {\"flux-workflow-token\": [\"secrets\"]}}" &&
	go &&
	is_failed_delivery "$id" "access to the Kubernetes API server that has its Workflow is not set up" &&
	flux dmesg | grep "workflow-token: .* the credential may not get secrets in the namespace default (403)" &&
	flux workflow-token doctor >doctor
	kube_set "{\"forbid\": {}}" &&
	grep "^fail .*kubernetes.*secrets" doctor
'

test_expect_success 'a server certified by another authority is not trusted' '
	held true &&
	make_workflow "$id" PreRun &&
	mv "$KUBE/ca.pem" "$KUBE/ca.was" &&
	test_when_finished "mv \"$KUBE/ca.was\" \"$KUBE/ca.pem\"" &&
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=another authority" \
		-keyout "$KUBE/other.key" -out "$KUBE/ca.pem" &&
	go &&
	await clean "$id" &&
	events exception "$id" &&
	has_no_event start "$id" &&
	flux dmesg | grep "workflow-token: .*certificate"
'

test_expect_success 'a Workflow that has failed fails its job' '
	kube_set "{\"fail\": {\"Setup\": \"the rabbit is ill\"}}" &&
	held true &&
	make_workflow "$id" Setup &&
	go &&
	is_failed_delivery "$id" "its Workflow has no usable variables" &&
	kube_set "{\"fail\": {}}" &&
	flux dmesg | grep "workflow-token: .*it has failed (it says: the rabbit is ill)"
'

test_expect_success 'a Workflow of another user is ignored' '
	held true &&
	make_workflow "$id" PreRun 4711 &&
	go &&
	is_failed_delivery "$id" "its Workflow has no usable variables" &&
	flux dmesg | grep "workflow-token: .*it belongs to uid 4711"
'

test_expect_success 'a job without a Workflow is not held for long' '
	rule "timeout = \"2s\"" &&
	id=$(submit true) &&
	is_failed_delivery "$id" "its Workflow was not ready in time" &&
	rule
'

# runs_with_its_secrets: lets the job $id continue. Its process is then in $tasks, and its secrets
# are in $canaries.
runs_with_its_secrets() {
	make_workflow "$id" PreRun &&
		go &&
		read -r -t 60 tasks <>pids &&
		{ workflow_token "$id" && echo; } >"$canaries/token" &&
		tr "\0" "\n" </proc/$tasks/environ >"$canaries/environ" &&
		grep -q "^DW_WORKFLOW_TOKEN=$(cat "$canaries/token")$" "$canaries/environ" &&
		ids=$id
}

test_expect_success 'while a job runs, its secrets are found nowhere else, and credentials nowhere' '
	held -o verbose=2 "$PWD/quiet" &&
	runs_with_its_secrets &&
	gather running workflow-token.so &&
	flux kvs put --sync checkpoint=1 &&
	grep MUNGE: gathered/running/values.primary &&
	everywhere token env bearer &&
	test "$(cat status)" = 1
'

test_expect_success 'nor are they after it' '
	flux cancel "$id" &&
	await clean "$id" &&
	tasks= &&
	gather ended workflow-token.so &&
	flux kvs put --sync checkpoint=2 &&
	everywhere token env bearer &&
	test "$(cat status)" = 1
'

#
# The table dws. A rabbit job has no Workflow other than the one made here.
#

dws_table() {
	table <<-EOF
		timeout = "30s"
		[workflow-token.dws]
		source = "kubernetes"
		kubeconfig = "$KUBE/flux-workflow-token.kubeconfig"
	EOF
}

# held_rabbit …: like held, for a rabbit job.
held_rabbit() {
	id=$(rabbit --urgency=hold "$@") && flux job wait-event -q -t 60 "$id" depend
}

test_expect_success 'the plugin for rabbit jobs is loaded, and a service without Kubernetes' '
	unload &&
	dws_table &&
	flux jobtap load "$DWS_JOBTAP" &&
	printf "{\"DW_JOB_project1\": \"/from/the/service\", \"DW_SERVICE\": \"%s\"}" "$(cat "$canaries/service")" \
		>"$canaries/variables" &&
	service_up "$canaries/variables"
'

test_expect_success 'a rabbit job has the variables of its service and of Kubernetes, which win' '
	held_rabbit "$PWD/keep" &&
	make_workflow "$id" PreRun &&
	go &&
	await clean "$id" &&
	events finish "$id" | grep status=0 &&
	grep "^DW_JOB_project1=/mnt/nnf/project1$" "$canaries/environ" &&
	grep "^DW_WORKFLOW_NAME=fluxjob-" "$canaries/environ" &&
	grep -q "^DW_WORKFLOW_TOKEN=$(workflow_token "$id")$" "$canaries/environ" &&
	grep -q "^DW_SERVICE=$(cat "$canaries/service")$" "$canaries/environ" &&
	events dws_environment "$id" | grep "DW_CANARY.*DW_JOB_project1.*DW_SERVICE.*DW_WORKFLOW_TOKEN"
'

test_expect_success 'a rabbit job waits for its Workflow, and its prolog is finished once' '
	asked=$(asks) &&
	kube_set "{\"hold\": [\"PreRun\"]}" &&
	held_rabbit "$PWD/keep" &&
	make_workflow "$id" PreRun &&
	go &&
	waits &&
	kube_set "{\"hold\": []}" &&
	await clean "$id" &&
	events finish "$id" | grep status=0 &&
	test "$(events prolog-finish "$id" | wc -l)" = 1
'

test_expect_success 'if Kubernetes reports a failure, a rabbit job does not start, and is cleaned up' '
	held_rabbit true &&
	make_workflow "$id" PreRun &&
	kube_set "{\"forbid\": {\"flux-workflow-token\": [\"workflows\"]}}" &&
	go &&
	is_refused "$id" dws-setup "its environment could not be delivered" &&
	kube_set "{\"forbid\": {}}" &&
	has_no_event start "$id" &&
	events prolog-finish "$id" | grep "description=\"dws-setup\" status=1" &&
	events epilog-finish "$id" | grep "description=\"dws-epilog\" status=0" &&
	flux dmesg | grep "dws: .* the credential may not get workflows"
'

test_expect_success 'its secrets are found nowhere' '
	held_rabbit -o verbose=2 "$PWD/quiet" &&
	runs_with_its_secrets &&
	gather rabbit dws-jobtap.so &&
	flux kvs put --sync checkpoint=3 &&
	everywhere token env bearer service &&
	test "$(cat status)" = 1 &&
	flux cancel "$id" &&
	await clean "$id"
'

test_expect_success 'the instance ends normally' '
	dws_kill &&
	instance_down
'

test_done
