#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='munged of the shells is down or restarted: no job hangs, and none starts without its token'

. "$(dirname "$0")/lib.sh"
need_flux

token_file token >/dev/null
table <<-EOF
	[[workflow-token.rule]]
	attribute = "system.workflow"
	source = "file"
	path = "$PWD/token"
EOF

# gets_token: succeeds if the next job receives its token.
gets_token() {
	flux run --setattr=system.workflow=1 printenv DW_WORKFLOW_TOKEN >out && test_cmp token out
}

test_expect_success 'an instance loads the plugin' '
	munge_up &&
	instance_up 2 &&
	load
'

test_expect_success 'munged of the shells is down: one exception, and no task starts' '
	initrc elsewhere.lua "munge-socket=$PWD/no.socket" &&
	id=$(submit -o initrc="$PWD/elsewhere.lua" touch started) &&
	is_refused "$id" exec "is munged running on this node" &&
	! test -e started
'

test_expect_success 'in a job of several shells each shell reports it, and no task starts' '
	id=$(submit -N2 -n2 -o initrc="$PWD/elsewhere.lua" touch started) &&
	await clean "$id" &&
	events exception "$id" >exceptions &&
	! grep -v "type=\"exec\" severity=0 note=\".*is munged running on this node" exceptions &&
	! test -e started
'

test_expect_success 'munged of the shells is restarted: the shells wait for it' '
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

test_expect_success 'at the end jobs run again' '
	gets_token &&
	test "$(counter in-flight)" = 0 &&
	instance_down
'

test_done
