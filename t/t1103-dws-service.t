#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='Rabbit jobs with the unmodified service of flux-coral2, and a stand-in for its Kubernetes'

. "$(dirname "$0")/lib.sh"
need_flux
need_kube
need_dws_service

# The plugin for comparison, if installed.
THEIRS=$FLUX_CORAL2_PLUGINS/job-manager/plugins/dws-jobtap.so
if test -r "$THEIRS"; then
	test_set_prereq THEIRS
else
	echo "# nothing is compared with flux-coral2's own plugin: set FLUX_CORAL2_PLUGINS to where its job-manager/plugins is"
fi

need_canaries
token_file "$canaries/env" >/dev/null
openssl ecparam -name prime256v1 -genkey -noout -out "$canaries/key.pem"

mkdir -p config
cat >config/rabbit.toml <<-EOF
	[rabbit]
	kubeconfig = "$KUBE/flux-dws.kubeconfig"
EOF
dws_initrc
table </dev/null
mkfifo go pids

# A task that stores its environment where it is not searched, prints its process id, and waits.
program keep <<-EOF
	#!/bin/bash
	tr '\0' '\n' </proc/\$\$/environ | grep ^DW_ | sort >"$canaries/environ"
	echo \$\$ >"$PWD/pids"
	read -r line <"$PWD/go"
EOF

# begins …: submits a rabbit job, and waits until it has stored its environment. Sets id, and tasks to its process.
begins() {
	rm -f "$canaries/environ"
	id=$(rabbit "$@" "$PWD/keep") && has_begun
}

has_begun() {
	read -r -t 60 tasks <>pids
}

# ends: releases that job, and waits for the end of all.
ends() {
	release go && await clean "$id" && eventually workflow_is_gone "$id"
}

# has_environment [with-token]: succeeds if the job that began has exactly the variables of its Workflow.
has_environment() {
	workflow "$id" | python3 -c '
import json, sys
for name, value in sorted(json.load(sys.stdin)["status"]["env"].items()):
    print(f"{name}={value}")' >"$canaries/expected" &&
		{ test -z "$1" || echo "DW_WORKFLOW_TOKEN=$(workflow_token "$id")" >>"$canaries/expected"; } &&
		sort -o "$canaries/expected" "$canaries/expected" &&
		grep DW_JOB_project1= "$canaries/expected" &&
		cmp "$canaries/expected" "$canaries/environ"
}

# holds STATE …: submits a rabbit job whose Workflow does not complete this state, and waits for the state.
holds() {
	kube_set "{\"hold\": [\"$1\"]}" && id=$(rabbit "${@:2}") && eventually workflow_is_in "$id" "$1"
}

# story ID: prints the events of a job, without times and numbers that differ in each run.
story() {
	flux job eventlog --format=json "$1" | python3 -c '
import json, re, sys
for line in sys.stdin:
    event = json.loads(line)
    context = event.get("context") or {}
    keys = ("description", "type", "severity", "status", "note")
    what = [re.sub("ƒ?[0-9]{6,}", "N", str(context[key])) for key in keys if key in context]
    if event["name"] == "memo":
        what += sorted(context)
    print(event["name"], *what)'
}

test_expect_success 'an instance loads the plugin, and the service starts' '
	munge_up &&
	kube_up rabbit0=node0,node1 &&
	kube_key "$canaries/key.pem" &&
	kube_set "{\"watch-for\": 0.2}" &&
	FLUX_DISABLE_JOB_CLEANUP=t instance_up 2 -Slog-level=7 -Slog-stderr-level=7 -Slog-stderr-mode=local &&
	flux jobtap load "$DWS_JOBTAP" &&
	dws_up
'

test_expect_success 'a job passes all states, and has the variables of its Workflow' '
	begins &&
	has_environment &&
	ends &&
	story "$id" >well &&
	cat well &&
	test "$(grep -c "^\(dependency-remove dws-create\|prolog-finish dws-setup 0\|dws_environment\|epilog-finish dws-epilog 0\|clean\)$" well)" = 5
'

test_expect_success 'a job with a copy-offload server also has its token' '
	kube_set "{\"env\": {\"DW_CANARY\": \"$(cat "$canaries/env")\"}}" &&
	DW="$DW requires=copy-offload" begins &&
	has_environment with-token &&
	{ workflow_token "$id" && echo; } >"$canaries/token" &&
	flux job info "$id" dws-environment | member variables | grep DW_WORKFLOW_TOKEN
'

test_expect_success 'while it runs, its token and its variables are found nowhere else' '
	ids=$id &&
	gather running dws-jobtap.so &&
	flux kvs put --sync checkpoint=1 &&
	grep MUNGE: gathered/running/values.primary &&
	grep dws_environment gathered/running/eventlog.* &&
	everywhere token env &&
	test "$(cat status)" = 1
'

test_expect_success 'after it, its token is found nowhere' '
	ends &&
	tasks= &&
	gather ended dws-jobtap.so &&
	flux kvs put --sync checkpoint=2 &&
	everywhere token &&
	test "$(cat status)" = 1
'

# The service writes the Workflow of a job that ends into the KVS, including its status.env.
test_expect_success 'its variables are only where the service itself has written them' '
	everywhere env &&
	grep "values.primary" found &&
	! grep "^found" found | grep -v "/gathered/ended/\(values\|trees\).primary$\|content.sqlite" &&
	flux job info "$id" rabbit_workflow >"$canaries/rabbit-workflow" &&
	grep DW_CANARY "$canaries/rabbit-workflow"
'

test_expect_success 'a job waits in DEPEND for a killed service, and continues with the next one' '
	holds Proposal "$PWD/keep" &&
	dws_kill &&
	dws_up &&
	has_no_event dependency-remove "$id" &&
	kube_set "{\"hold\": []}" &&
	has_begun &&
	has_environment &&
	ends
'

test_expect_success 'so it does if the Workflow continues without a service' '
	holds Proposal "$PWD/keep" &&
	dws_kill &&
	kube_set "{\"hold\": []}" &&
	dws_up &&
	has_begun &&
	has_environment &&
	ends
'

for state in Setup DataIn PreRun; do
	test_expect_success "the service is killed while a job is in its prolog, its Workflow in $state" '
		holds $state "$PWD/keep" &&
		await prolog-start "$id" &&
		dws_kill &&
		kube_set "{\"hold\": []}" &&
		dws_up &&
		has_begun &&
		has_environment &&
		ends
	'
done

test_expect_success 'the service is killed while a job runs: its repeated messages change nothing' '
	begins &&
	dws_kill &&
	dws_up &&
	ends &&
	test "$(events dws_environment "$id" | wc -l)" = 1 &&
	test "$(events prolog-finish "$id" | wc -l)" = 1 &&
	has_no_event exception "$id"
'

test_expect_success 'the service is killed while a job is in its epilog' '
	holds DataOut true &&
	await epilog-start "$id" &&
	dws_kill &&
	dws_up &&
	has_no_event epilog-finish "$id" &&
	kube_set "{\"hold\": []}" &&
	await clean "$id" &&
	events epilog-finish "$id" | grep status=0 &&
	eventually workflow_is_gone "$id"
'

for state in Proposal PreRun DataOut; do
	test_expect_success "the plugin is reloaded while a Workflow is in $state" '
		holds $state true &&
		flux jobtap remove dws-jobtap.so &&
		flux jobtap load "$DWS_JOBTAP" &&
		kube_set "{\"hold\": []}" &&
		await clean "$id" &&
		story "$id" >loaded-anew &&
		cat loaded-anew &&
		test_cmp well loaded-anew &&
		eventually workflow_is_gone "$id"
	'
done

# asked_for RESOURCE: prints the number of the plugin's requests for the resource.
asked_for() {
	kube GET /control | python3 -c '
import json, sys
print(json.load(sys.stdin)["requests"].get("flux-workflow-token get " + sys.argv[1], 0))' "$1"
}

test_expect_success 'with source = "kubernetes" the plugin reads the same from Kubernetes, with its own credential' '
	test "$(asked_for workflows)" = 0 &&
	table <<-EOF &&
	[workflow-token.dws]
	source = "kubernetes"
	kubeconfig = "$KUBE/flux-workflow-token.kubeconfig"
	EOF
	DW="$DW requires=copy-offload" begins &&
	has_environment with-token &&
	test "$(asked_for workflows)" = 1 &&
	test "$(asked_for secrets)" = 1 &&
	ends
'

test_expect_success 'if the two differ, the value from Kubernetes wins' '
	kube_set "{\"down\": [\"flux-workflow-token\"]}" &&
	id=$(rabbit "$PWD/keep") &&
	is_delivering() { test "$(flux jobtap query dws-jobtap.so | member in-flight)" = 1; } &&
	eventually is_delivering &&
	kube PATCH "$WORKFLOWS/fluxjob-$(flux job id --to=dec "$id")" \
		<<<"{\"status\": {\"env\": {\"DW_JOB_project1\": \"/mnt/later\"}}}" >/dev/null &&
	kube_set "{\"down\": []}" &&
	has_begun &&
	grep DW_JOB_project1=/mnt/later "$canaries/environ" &&
	has_environment &&
	ends &&
	table </dev/null
'

# tell_all DIR: writes the stories of jobs to files below it.
tell_all() {
	local state
	mkdir -p "$1" &&
		id=$(rabbit true) && told "$1/well" &&
		id=$(rabbit false) && told "$1/badly" &&
		id=$(DW='#DW jobdw type=xfs' rabbit true) && told "$1/refused" || return
	for state in Proposal Setup DataIn PreRun PostRun DataOut; do
		kube_set "{\"fail\": {\"$state\": \"the rabbit is ill\"}}" &&
			id=$(rabbit true) && told "$1/failed-in-$state" || return
	done
	kube_set '{"fail": {}}' || return
	for state in Proposal Setup DataIn PreRun PostRun DataOut; do
		holds $state true && flux cancel "$id" && told "$1/canceled-in-$state" || return
	done
	kube_set '{"hold": []}' &&
		id=$(rabbit sleep 1000) && await start "$id" && flux cancel "$id" && told "$1/canceled" &&
		dws_kill &&
		id=$(rabbit true) && await clean "$id" && story "$id" >"$1/submitted-without-service" &&
		dws_up
}

told() {
	await clean "$id" && story "$id" >"$1" && eventually workflow_is_gone "$id"
}

test_expect_success 'Workflows that fail in each state, jobs canceled in each state, and a missing service' '
	tell_all ours &&
	head -n 100 ours/*
'

test_expect_success 'the job of a failed Workflow receives an exception with the cause' '
	for state in Proposal Setup DataIn PreRun; do
		grep "^exception .* 0 DWS/Rabbit interactions failed: workflow hit an error: the rabbit is ill$" ours/failed-in-$state &&
			! grep "^start" ours/failed-in-$state || return
	done &&
	grep "prolog-finish dws-setup 1" ours/failed-in-Setup &&
	grep "epilog-finish dws-epilog 0" ours/failed-in-Setup
'

test_expect_success 'a job canceled in its prolog ends, and its Workflow is torn down' '
	grep "prolog-finish dws-setup 1" ours/canceled-in-DataIn &&
	grep "epilog-finish dws-epilog 0" ours/canceled-in-DataIn &&
	! grep "^start" ours/canceled-in-DataIn
'

# Flux-coral2's plugin ends the epilog here, and the Workflow remains.
test_expect_success 'a job that ends without a service waits for it in its epilog' '
	id=$(rabbit sleep 1000) &&
	await start "$id" &&
	dws_kill &&
	flux cancel "$id" &&
	is_asked_again() { flux dmesg | grep "$id: dws.post_run: .*again"; } &&
	eventually is_asked_again &&
	has_no_event epilog-finish "$id" &&
	dws_up &&
	await clean "$id" &&
	events epilog-finish "$id" | grep status=0 &&
	eventually workflow_is_gone "$id"
'

test_expect_success THEIRS 'with the plugin of flux-coral2, jobs have the same environment' '
	flux jobtap remove dws-jobtap.so &&
	flux jobtap load "$THEIRS" &&
	begins &&
	has_environment &&
	ends
'

test_expect_success THEIRS 'and the same events in the same order' '
	tell_all theirs &&
	diff -r theirs ours
'

# by_ours: replaces flux-coral2's plugin by this one, and lets Workflows continue.
by_ours() {
	flux jobtap remove dws-jobtap.so && flux jobtap load "$DWS_JOBTAP" && kube_set '{"hold": []}'
}

# by_theirs: restores flux-coral2's plugin, which does not resume earlier jobs: those in DEPEND fail, and no others get
# an epilog. So no job must exist.
by_theirs() {
	flux jobtap remove dws-jobtap.so && flux jobtap load "$THEIRS"
}

for state in Proposal Setup PreRun; do
	test_expect_success THEIRS "the plugin of flux-coral2 is replaced while a Workflow is in $state" '
		holds $state "$PWD/keep" &&
		by_ours &&
		has_begun &&
		has_environment &&
		ends &&
		has_no_event exception "$id" &&
		by_theirs
	'
done

test_expect_success THEIRS 'the plugin of flux-coral2 is replaced while a job runs' '
	begins &&
	by_ours &&
	ends &&
	has_no_event exception "$id" &&
	events epilog-finish "$id" | grep status=0 &&
	by_theirs
'

test_expect_success THEIRS 'the plugin of flux-coral2 is replaced while a job is in its epilog' '
	holds DataOut true &&
	by_ours &&
	await clean "$id" &&
	has_no_event exception "$id" &&
	events epilog-finish "$id" | grep status=0 &&
	eventually workflow_is_gone "$id"
'

test_expect_success 'an instance configured to load the plugin crashes with jobs in DEPEND and in their prologs' '
	flux jobtap remove dws-jobtap.so &&
	printf "[job-manager]\nplugins = [ { load = \"%s\" } ]\n" "$DWS_JOBTAP" >config/job-manager.toml &&
	dws_kill &&
	instance_down &&
	FLUX_DISABLE_JOB_CLEANUP=t instance_up 2 &&
	dws_up &&
	holds Proposal true &&
	depend=$id &&
	kube_set "{\"hold\": [\"DataIn\"]}" &&
	id=$(rabbit "$PWD/keep") &&
	eventually workflow_is_in "$id" DataIn &&
	kube_set "{\"hold\": [\"Proposal\", \"DataIn\"]}" &&
	flux kvs put --sync checkpoint=3 &&
	dws_kill &&
	instance_kill
'

test_expect_success 'after the restart both continue' '
	FLUX_DISABLE_JOB_CLEANUP=t instance_up 2 &&
	dws_up &&
	has_no_event prolog-finish "$id" &&
	has_no_event exception "$id" &&
	kube_set "{\"hold\": []}" &&
	has_begun &&
	has_environment &&
	ends &&
	await clean "$depend" &&
	story "$depend" &&
	has_no_event exception "$depend" &&
	events finish "$depend" | grep status=0
'

test_expect_success 'the instance ends normally' '
	dws_kill &&
	instance_down
'

test_done
