#!/usr/bin/env bash
test_description='munged absent, killed, stopped and continued: no job hangs, and none starts without its token'

. "$(dirname "$0")/lib.sh"
need_flux

token_file token >/dev/null
mkfifo fetching fetched
program mint <<-EOF
	#!/bin/sh
	echo fetching >"$PWD/fetching"
	read line <"$PWD/fetched"
	exec cat "$PWD/token"
EOF
rules() {
	cat <<-EOF
		timeout = "$1"
		[[workflow-token.rule]]
		attribute = "system.workflow"
		source = "file"
		path = "$PWD/token"

		[[workflow-token.rule]]
		attribute = "system.mint"
		source = "command"
		command = ["$PWD/mint"]
	EOF
}
rules 2s | table

# gets_token: a job is served now.
gets_token() {
	flux run --setattr=system.workflow=1 printenv DW_WORKFLOW_TOKEN >out && test_cmp token out
}

# others_pass: jobs that no rule matches are submitted, run and end.
others_pass() {
	flux submit --quiet --cc=1-10 --wait true
}

test_expect_success 'an instance takes the plugin while munged is absent' '
	instance_up 2 &&
	load
'

test_expect_success 'munged absent: one clear exception when the time is over, and the log says what to look at' '
	id=$(submit touch started) &&
	others_pass &&
	is_failed_delivery "$id" "it took longer than 2 s" &&
	! test -e started &&
	flux dmesg >dmesg &&
	grep "$id: no workflow token was delivered: .*munged.*is it running" dmesg &&
	grep -F "$MUNGE_SOCKET" dmesg &&
	has_no_record "$id"
'

test_expect_success 'munged present: the next job is served' '
	munge_up &&
	gets_token
'

test_expect_success 'munged killed during a delivery: it waits, and ends well when munged is back' '
	rules 60s | table &&
	id=$(flux submit --setattr=system.mint=1 printenv DW_WORKFLOW_TOKEN) &&
	timeout 60 cat fetching &&
	munge_kill &&
	release fetched &&
	others_pass &&
	has_no_event prolog-finish "$id" &&
	munge_up &&
	flux job attach "$id" >out &&
	test_cmp token out &&
	has_no_event exception "$id"
'

test_expect_success 'munged stopped for the whole time: other jobs pass, and each that needs it has one exception' '
	rules 4s | table &&
	munge_signal STOP &&
	test_when_finished "munge_signal CONT" &&
	ids=$(submit --cc=1-8 touch started) &&
	others_pass &&
	for id in $ids; do is_failed_delivery "$id" "it took longer than 4 s" || return; done &&
	! test -e started &&
	others_pass
'

test_expect_success 'munged continued: nothing is left of them, and the next jobs are served' '
	gets_token &&
	gets_token &&
	for id in $ids; do has_no_record "$id" || return; done &&
	test "$(counter in-flight)" = 0 &&
	test "$(counter failed)" = 9
'

test_expect_success 'munged stopped during a delivery and continued in time: the job is served' '
	rules 60s | table &&
	munge_signal STOP &&
	test_when_finished "munge_signal CONT" &&
	id=$(submit printenv DW_WORKFLOW_TOKEN) &&
	await prolog-start "$id" &&
	others_pass &&
	has_no_event prolog-finish "$id" &&
	munge_signal CONT &&
	flux job attach "$id" >out &&
	test_cmp token out
'

test_expect_success 'munged gone where the shells are: one exception, and no task is started' '
	initrc elsewhere.lua "munge-socket=$PWD/no.socket" &&
	id=$(submit -o initrc="$PWD/elsewhere.lua" touch started) &&
	is_refused "$id" exec "is munged running on this node" &&
	! test -e started
'

test_expect_success 'in a job of several shells each of them says so, and no task is started' '
	id=$(submit -N2 -n2 -o initrc="$PWD/elsewhere.lua" touch started) &&
	await clean "$id" &&
	events exception "$id" >exceptions &&
	! grep -v "type=\"exec\" severity=0 note=\".*is munged running on this node" exceptions &&
	! test -e started
'

test_expect_success 'munged restarted where the shells are: it is waited for' '
	initrc late.lua "munge-socket=$PWD/late.socket" &&
	id=$(submit -o initrc="$PWD/late.lua" printenv DW_WORKFLOW_TOKEN) &&
	await start "$id" &&
	munge_kill &&
	MUNGE_SOCKET=$PWD/late.socket munge_up &&
	flux job attach "$id" >out &&
	test_cmp token out &&
	munge_kill &&
	munge_up
'

test_expect_success 'in the end all is well' '
	gets_token &&
	test "$(counter in-flight)" = 0 &&
	instance_down
'

test_done
