#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='Rabbit jobs: their life, their fate after failures, and reloads and restarts without a loss'

. "$(dirname "$0")/lib.sh"
need_flux
need_rabbits

# This directory is not searched: it contains the canary, and the output of tasks.
mkdir -m 0700 "$base/canaries"
canaries=$base/canaries
cleanup 'rm -rf "$canaries"'
canary=$(new_token)
echo "$canary" >"$canaries/secrets"
printf '{"DW_JOB_a":"/mnt/nnf/a","DW_WORKFLOW_TOKEN":"%s"}' "$canary" >"$canaries/variables"
VARIABLES=$canaries/variables
{
	printf 'plugin.load { file = "%s", conf = { ["munge-socket"] = "%s" } }\n' "$DWS_SHELL" "$MUNGE_SOCKET"
	printf 'plugin.load { file = "%s", conf = { ["munge-socket"] = "%s" } }\n' "$SHELL_PLUGIN" "$MUNGE_SOCKET"
} >initrc.lua
table </dev/null
program keep <<-EOF
	#!/bin/sh
	echo "\${DW_JOB_a-unset} \${DW_WORKFLOW_TOKEN-unset}" >>"$canaries/\$(flux job id --to=dec \$FLUX_JOB_ID)"
EOF
program wait <<-EOF
	#!/bin/sh
	until test -e "$PWD/go"; do sleep 0.05; done
	exec "$PWD/keep"
EOF

# found ID [COUNT]: succeeds if this number of tasks found the variables.
found() {
	for n in $(seq "${2:-1}"); do echo "/mnt/nnf/a $canary"; done >"$canaries/expected"
	cmp "$canaries/expected" "$canaries/$(flux job id --to=dec "$1")"
}

# lives ID: succeeds if the job ends normally, with one prolog, one epilog, and its variables.
lives() {
	await clean "$1" &&
		test "$(flux jobs -no '{result}' "$1")" = COMPLETED &&
		has_no_event exception "$1" &&
		is_balanced "$1" &&
		found "$1"
}

# is_balanced ID: succeeds if the prolog began and ended once, and all epilogs that began also ended. After a restart, a
# job may have another epilog, which holds it until its state is known.
is_balanced() {
	test "$(events prolog-start "$1" | grep -c dws-setup)" = 1 &&
		test "$(events prolog-finish "$1" | grep -c dws-setup)" = 1 &&
		test "$(events epilog-start "$1" | grep -c dws-epilog)" -ge 1 &&
		test "$(events epilog-start "$1" | grep -c dws-epilog)" = "$(events epilog-finish "$1" | grep -c dws-epilog)"
}

# ends ID STARTED: waits for the end of the job, and checks what the service was told about its start.
ends() {
	await clean "$1" && asked post_run "$1" "\"run_started\": $2" && is_gone_from_service "$1"
}

is_gone_from_service() {
	! test -e "dws/workflows/$(flux job id --to=dec "$1")"
}

counter() {
	flux jobtap query dws-jobtap.so | python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"
}

in_flight() {
	test "$(counter in-flight)" = "$1"
}

says() {
	flux dmesg | grep "$1"
}

# has_no_environment ID: succeeds only if the record does not exist, not on other errors.
has_no_environment() {
	! flux job info "$1" dws-environment 2>record.err && grep -i "key not found\|No such file" record.err
}

# is_refused_by ID TYPE TEXT: like is_refused.
is_refused_by() {
	local id=$1 type=$2
	shift 2
	is_refused "$id" "$type" "$*"
}

reload() {
	flux jobtap load --remove=dws-jobtap.so "$DWS_JOBTAP"
}

test_expect_success 'an instance loads the plugin' '
	munge_up &&
	instance_up 2 -Slog-level=7 -Slog-stderr-level=7 -Slog-stderr-mode=local &&
	flux jobtap load "$DWS_JOBTAP" epilog-timeout=-1.0 &&
	flux dmesg | grep "dws: epilog timeout = -1." &&
	flux jobtap remove dws-jobtap.so &&
	flux jobtap load "$DWS_JOBTAP" &&
	flux dmesg | grep "dws: epilog timeout = 0.000s"
'

test_expect_success 'the life of a rabbit job, on two nodes' '
	stand_in_up &&
	id=$(rabbit_job ok -N2 -n2 -o verbose=2 "$PWD/keep") &&
	await clean "$id" &&
	test "$(flux jobs -no "{result}" "$id")" = COMPLETED &&
	found "$id" 2 &&
	is_balanced "$id" &&
	flux job eventlog "$id" | cut -d" " -f2 | grep -v -e release -e memo | paste -sd" " >order &&
	echo "submit validate dependency-add jobspec-update dependency-remove depend priority alloc prolog-start" \
		"dws_environment prolog-finish start finish epilog-start epilog-finish free clean" >expected &&
	test_cmp expected order &&
	events dws_environment "$id" | grep -F "names=[\"DW_JOB_a\",\"DW_WORKFLOW_TOKEN\"]" &&
	asked create "$id" "\"failure_tolerance\": 0"
'

# The other plugin holds the job until a command ends.
mkfifo fetching fetched
program held <<-EOF
	#!/bin/sh
	echo fetching >"$PWD/fetching"
	read line <"$PWD/fetched"
	echo token-of-the-other-plugin
EOF
test_expect_success 'this plugin does not finish the prolog of another plugin, nor its own twice' '
	table <<-EOF &&
		[[workflow-token.rule]]
		attribute = "system.other"
		source = "command"
		command = ["$PWD/held"]
		check = "none"
	EOF
	flux jobtap load "$JOBTAP" &&
	id=$(rabbit_job setup=held --setattr=system.other=1 "$PWD/keep") &&
	timeout 60 cat fetching &&
	asked setup "$id" &&
	for n in 1 2 3; do tell prolog-remove "$id" "\"variables\":{\"DW_JOB_a\":\"a\"}" || return; done &&
	reload &&
	tell prolog-remove "$id" "\"variables\":{\"DW_JOB_a\":\"a\"}" &&
	test "$(events prolog-finish "$id" | wc -l)" = 1 &&
	has_no_event start "$id" &&
	release fetched &&
	await clean "$id" &&
	test "$(events prolog-finish "$id" | wc -l)" = 2 &&
	is_balanced "$id" &&
	test "$(cat "$canaries/$(flux job id --to=dec "$id")")" = "a token-of-the-other-plugin" &&
	id=$(rabbit_job setup=held --setattr=system.other=1 true) &&
	timeout 60 cat fetching &&
	asked setup "$id" &&
	flux cancel "$id" &&
	ends "$id" false &&
	is_balanced "$id" &&
	flux jobtap remove workflow-token.so &&
	table </dev/null
'

# at_all_points_and_unanswered: like at_all_points, with another job whose workflow got no response.
at_all_points_and_unanswered() {
	at_all_points &&
		unanswered=$(rabbit_job create=none "$PWD/keep") && asked create "$unanswered"
}

# go_on: makes them continue.
go_on() {
	: >go
	local id resources='"resources":[{"type":"slot","count":1,"label":"task","with":[{"type":"core","count":1}]}],"exclude":null'
	for id in $created $unanswered; do
		eventually tell resource-update "$id" "$resources" && lives "$id" || return
	done
	tell prolog-remove "$in_prolog" "$(sed "s/^/\"variables\":/" "$canaries/variables")" && lives "$in_prolog" &&
		flux job urgency "$first" default && lives "$waiting" &&
		flux job urgency "$scheduled" default && lives "$scheduled" &&
		tell epilog-remove "$in_epilog" && lives "$in_epilog"
}

test_expect_success 'the plugin is reloaded: jobs in all states continue' '
	at_all_points_and_unanswered &&
	reload &&
	go_on &&
	lives "$running" &&
	test "$(grep -c "^setup $(flux job id --to=dec "$in_prolog") " dws/log)" = 1 &&
	test "$(grep -c "^post_run $(flux job id --to=dec "$in_epilog") " dws/log)" = 1
'

test_expect_success 'the plugin is removed and loaded 20 times while jobs run: none is lost' '
	{ while ! test -e enough; do
		rabbit_job "post_run=none teardown=held" true || return
	done >stream & } &&
	for n in $(seq 20); do reload || return; done &&
	touch enough &&
	wait $! &&
	for id in $(cat stream); do
		asked post_run "$id" &&
		tell epilog-remove "$id" &&
		await clean "$id" &&
		is_balanced "$id" || return
	done &&
	wc -l stream
'

test_expect_success 'a delivery in progress at the removal fails, with an error' '
	munge_signal STOP &&
	test_when_finished "munge_signal CONT" &&
	id=$(rabbit_job ok true) &&
	asked setup "$id" &&
	eventually in_flight 1 &&
	reload &&
	is_refused_by "$id" dws-setup submit it again &&
	munge_signal CONT &&
	is_balanced "$id"
'

test_expect_success 'the instance is restarted: jobs in all states continue' '
	instance_down &&
	stand_in_down &&
	printf "[job-manager]\nplugins = [ { load = \"%s\" } ]\n" "$DWS_JOBTAP" >"$CONFIG/job-manager.toml" &&
	FLUX_DISABLE_JOB_CLEANUP=t instance_up 2 -Slog-level=7 -Slog-stderr-level=7 -Slog-stderr-mode=local &&
	stand_in_up &&
	at_all_points_and_unanswered &&
	stand_in_down &&
	instance_down &&
	FLUX_DISABLE_JOB_CLEANUP=t instance_up 2 -Slog-level=7 -Slog-stderr-level=7 -Slog-stderr-mode=local &&
	eventually says "no service answers to it: is flux-coral2-dws running?: asking again" &&
	stand_in_up &&
	ends "$running" true &&
	is_balanced "$running" &&
	go_on
'

test_expect_success 'they also continue after a crash, and teardowns complete' '
	at_all_points_and_unanswered &&
	sealed=$running &&
	flux kvs put --sync checkpoint=1 &&
	instance_kill &&
	stand_in_down &&
	FLUX_DISABLE_JOB_CLEANUP=t instance_up 2 -Slog-level=7 -Slog-stderr-level=7 -Slog-stderr-mode=local &&
	stand_in_up &&
	ends "$running" true &&
	go_on &&
	eventually has_no_environment "$sealed"
'

test_expect_success 'at the end nothing is left over' '
	test "$(counter in-flight)" = 0 &&
	flux jobtap query dws-jobtap.so | grep -E "\"active\": *0" &&
	flux jobs -no "{id}" >left &&
	test ! -s left
'

test_expect_success 'the canary is found nowhere' '
	id=$(rabbit_job ok -o verbose=2 "$PWD/keep") &&
	lives "$id" &&
	flux dmesg >dmesg &&
	flux jobs -a --json >jobs &&
	flux jobtap query dws-jobtap.so >query &&
	for id in $(flux jobs -ano "{id}"); do
		flux job eventlog "$id" || return
		flux job attach --show-events --show-exec "$id" 2>&1 || :
	done >all &&
	grep "exported DW_JOB_a, DW_WORKFLOW_TOKEN" all &&
	flux kvs put --sync checkpoint=3 &&
	test_expect_code 1 "$TESTS/search.py" "$canaries/secrets" "$PWD" proc: &&
	test_expect_code 0 "$TESTS/search.py" "$canaries/secrets" "$canaries/variables"
'

test_expect_success 'nor after the instance, which ends normally' '
	stand_in_down &&
	instance_down &&
	test_expect_code 1 "$TESTS/search.py" "$canaries/secrets" "$PWD" &&
	test -e state/content.sqlite
'

test_done
