#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='An invalid configuration is rejected with its key, and the earlier configuration stays in force'

. "$(dirname "$0")/lib.sh"
need_flux

token_file token >/dev/null
good="munge-socket = \"$MUNGE_SOCKET\""
rule="
[[workflow-token.rule]]
attribute = \"system.workflow\"
source = \"file\"
path = \"$PWD/token\""

# write TEXT: replaces the table without a reload of the job manager.
write() {
	printf '%s\n' "$1" >config/new && mv config/new config/workflow-token.toml
}

# in_force: succeeds if the earlier valid configuration serves a job.
in_force() {
	flux run --setattr=system.workflow=1 printenv DW_WORKFLOW_TOKEN >out && test_cmp token out
}

test_expect_success 'an instance loads the plugin' '
	mkdir config &&
	write "[workflow-token]
$good
$rule" &&
	munge_up &&
	instance_up 1 &&
	load &&
	in_force
'

# levels N: prints an array nested this deeply.
levels() {
	printf '%*s' "$1" "" | tr " " "[" && printf 1 && printf '%*s' "$1" "" | tr " " "]"
}

test_expect_success 'an unreadable configuration is rejected, and does not count as none' '
	write "[workflow-token]
$good
$rule

[deep]
deep = $(levels 140)" &&
	test_must_fail flux config reload 2>err &&
	cat err && grep "configuration of Flux cannot be read" err &&
	in_force
'

test_expect_success 'an unreadable shell option ends the job, with an error' '
	printf "{\"workflow-token\":%s}" "$(levels 600)" >deep.json &&
	! flux run --setattr=^system.shell.options=deep.json printenv DW_WORKFLOW_TOKEN >deep.out 2>deep.err &&
	cat deep.err && grep "the shell option workflow-token cannot be read" deep.err &&
	! test -s deep.out
'

test_expect_success 'invalid TOML is rejected' '
	write "[workflow-token" &&
	test_must_fail flux config reload &&
	write "[workflow-token]
$good
$rule"
'

test_expect_success 'after all of these the earlier configuration is in force' '
	in_force &&
	test "$(counter rules)" = 1
'

test_expect_success 'keys given at load override those of the table' '
	unload &&
	load variable=MY_TOKEN unlink=false timeout=30s max-parallel=3 &&
	id=$(submit printenv MY_TOKEN) &&
	flux job attach "$id" >out &&
	test_cmp token out &&
	record "$id"
'

test_expect_success 'and still do after a reload' '
	flux config reload &&
	flux run --setattr=system.workflow=1 printenv MY_TOKEN >out &&
	test_cmp token out &&
	unload
'

test_expect_success 'the timeout of a delivery can be set at load' '
	write "[workflow-token]
munge-socket = \"$PWD/no.socket\"
$rule" &&
	flux config reload &&
	load timeout=1s &&
	id=$(submit true) &&
	is_failed_delivery "$id" "longer than 1 s" &&
	unload
'

test_expect_success 'the instance ends normally' 'instance_down'

test_done
