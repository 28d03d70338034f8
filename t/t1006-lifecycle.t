#!/usr/bin/env bash
test_description='Jobs canceled, the plugin removed and loaded, the instance restarted: with deliveries under way'

. "$(dirname "$0")/lib.sh"
need_flux

mkfifo fetching fetched
mkdir out
# Held: says that it has begun, and waits to be let go. Its token tells the job.
program held <<-EOF
	#!/bin/sh
	echo \$\$ >"$PWD/held.pid"
	echo fetching >"$PWD/fetching"
	read line <"$PWD/fetched"
	exec "$PWD/own" "\$1"
EOF
head=$(new_token | cut -d. -f1)
tail=$(new_token | cut -d. -f3)
program own <<-EOF
	#!/bin/sh
	echo "$head.\$(printf '{"sub":"%s"}' "\$1" | base64 -w0 | tr '+/' '-_' | tr -d =).$tail"
EOF
# A task of each job keeps what it was given.
program keep <<-EOF
	#!/bin/sh
	echo "\$DW_WORKFLOW_TOKEN" >"$PWD/out/\$(flux job id --to=dec \$FLUX_JOB_ID)"
EOF
rules() {
	cat <<-EOF
		[[workflow-token.rule]]
		attribute = "system.held"
		source = "command"
		command = ["$PWD/held", "{jobid.dec}"]

		[[workflow-token.rule]]
		attribute = "system.workflow"
		source = "command"
		command = ["$PWD/own", "{jobid.dec}"]
	EOF
}
rules | table

# hold: submits a job, and returns when its token is being fetched. Sets id.
hold() {
	id=$(flux submit --setattr=system.held=1 "$PWD/keep") && is_fetching
}

is_fetching() {
	timeout 60 cat fetching
}

# has_own ID: the job ended well and had its own token.
has_own() {
	local dec
	await clean "$1" &&
		test "$(flux jobs -no '{result}' "$1")" = COMPLETED &&
		dec=$(flux job id --to=dec "$1") &&
		"$PWD/own" "$dec" >expected &&
		test_cmp expected "out/$dec"
}

# all_have_own ID…: the same, of many.
all_have_own() {
	local id
	for id; do await clean "$id" || return; done
	flux jobs -no '{id.dec} {result} {exception.note}' "$@" >results &&
		test "$(wc -l <results)" = $# &&
		! grep -v ' COMPLETED ' results &&
		python3 - "$head" "$tail" <<-EOF
		import base64, sys
		for dec in (line.split()[0] for line in open("results")):
		    body = base64.urlsafe_b64encode(b'{"sub":"%s"}' % dec.encode()).rstrip(b"=").decode()
		    assert open(f"out/{dec}").read() == f"{sys.argv[1]}.{body}.{sys.argv[2]}\n", dec
		EOF
}

# waits ID: the job is still in its prolog.
waits() {
	has_no_event prolog-finish "$1" && has_no_event exception "$1"
}

reload() {
	flux jobtap load --remove=workflow-token.so "$JOBTAP"
}

test_expect_success 'an instance takes the plugin' '
	munge_up &&
	instance_up 2 &&
	load
'

test_expect_success 'a job canceled during its delivery ends, and so does the command' '
	hold &&
	flux cancel "$id" &&
	await clean "$id" &&
	events exception "$id" >exceptions &&
	test "$(wc -l <exceptions)" = 1 &&
	grep "type=\"cancel\"" exceptions &&
	events prolog-finish "$id" | grep status=1 &&
	has_no_event start "$id" &&
	eventually is_gone $(cat held.pid) &&
	test "$(counter canceled)" = 1 &&
	test "$(counter in-flight)" = 0
'

test_expect_success 'loaded anew 20 times while jobs pass: each job has its own token' '
	{ while ! test -e enough; do submit --cc=1-20 "$PWD/keep" || return; done >stream & } &&
	for n in $(seq 20); do reload || return; done &&
	touch enough &&
	wait $! &&
	wc -l stream &&
	flux dmesg | grep "removed with" &&
	all_have_own $(cat stream)
'

test_expect_success 'removed with a delivery under way, and loaded: the delivery goes on' '
	hold &&
	unload &&
	eventually is_gone $(cat held.pid) &&
	flux run true &&
	waits "$id" &&
	load &&
	is_fetching &&
	release fetched &&
	has_own "$id" &&
	test "$(counter resumed)" = 1
'

test_expect_success 'a job canceled while the plugin is removed ends when it is loaded' '
	hold &&
	unload &&
	flux cancel "$id" &&
	await exception "$id" &&
	load &&
	await clean "$id" &&
	has_no_event start "$id"
'

test_expect_success 'rules changed during a delivery: it goes on as it began' '
	hold &&
	table </dev/null &&
	release fetched &&
	has_own "$id" &&
	rules | table
'

test_expect_success 'no rule any more for a delivery that was under way: the job is told to be submitted again' '
	hold &&
	unload &&
	table </dev/null &&
	load &&
	is_failed_delivery "$id" "submit it again" &&
	rules | table
'

test_expect_success 'removed while munged is stopped: at once, and the broker lives' '
	munge_signal STOP &&
	test_when_finished "munge_signal CONT" &&
	ids=$(submit --cc=1-6 "$PWD/keep") &&
	for id in $ids; do await prolog-start "$id" || return; done &&
	LIMIT=20 unload &&
	flux run true &&
	LIMIT=20 load &&
	LIMIT=20 unload &&
	flux run true
'

test_expect_success 'loaded when munged goes on: the deliveries go on' '
	load &&
	all_have_own $ids
'

test_expect_success 'after all that it is loaded once, and idle' '
	test "$(flux jobtap list | grep -c workflow-token)" = 1 &&
	test "$(counter in-flight)" = 0
'

test_expect_success 'the instance ends well with a delivery under way that hangs in munged' '
	munge_signal STOP &&
	test_when_finished "munge_signal CONT" &&
	id=$(submit "$PWD/keep") &&
	await prolog-start "$id" &&
	instance_down
'

test_expect_success 'an instance that is configured to load the plugin has it from its start' '
	printf "[job-manager]\nplugins = [ { load = \"%s\" } ]\n" "$JOBTAP" >config/job-manager.toml &&
	FLUX_DISABLE_JOB_CLEANUP=t instance_up 2 &&
	id=$(submit "$PWD/keep") &&
	has_own "$id"
'

test_expect_success 'the instance restarted with a delivery under way: the delivery goes on' '
	hold &&
	instance_down &&
	eventually is_gone $(cat held.pid) &&
	FLUX_DISABLE_JOB_CLEANUP=t instance_up 2 &&
	is_fetching &&
	waits "$id" &&
	release fetched &&
	has_own "$id" &&
	test "$(counter resumed)" = 1
'

test_expect_success 'so it does after a crash' '
	hold &&
	flux kvs put --sync checkpoint=1 &&
	instance_kill &&
	eventually is_gone $(cat held.pid) &&
	FLUX_DISABLE_JOB_CLEANUP=t instance_up 2 &&
	is_fetching &&
	waits "$id" &&
	release fetched &&
	has_own "$id"
'

test_expect_success 'and a record is not left behind by a job that ended with the restarted instance' '
	eventually has_no_record "$id"
'

# A real KVS refuses this commit only when it refuses those of the job manager as well, which then ends.
test_expect_success A_KVS_THAT_CAN_BE_TOLD_TO_REFUSE 'the commit of the record is refused' 'false'

test_expect_success 'the instance ends well' 'instance_down'

test_done
