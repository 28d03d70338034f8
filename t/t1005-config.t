#!/usr/bin/env bash
test_description='A mistake in the configuration is refused by its key, and the former configuration stays in force'

. "$(dirname "$0")/lib.sh"
need_flux

token_file token >/dev/null
good="munge-socket = \"$MUNGE_SOCKET\""
rule="
[[workflow-token.rule]]
attribute = \"system.workflow\"
source = \"file\"
path = \"$PWD/token\""

# write TEXT: what the table is from now on; the job manager is not told.
write() {
	printf '%s\n' "$1" >config/new && mv config/new config/workflow-token.toml
}

# in_force: the configuration that was good serves a job.
in_force() {
	flux run --setattr=system.workflow=1 printenv DW_WORKFLOW_TOKEN >out && test_cmp token out
}

test_expect_success 'an instance takes the plugin' '
	mkdir config &&
	write "[workflow-token]
$good
$rule" &&
	munge_up &&
	instance_up 1 &&
	load &&
	in_force
'

# levels N: an array that is nested so deep.
levels() {
	printf '%*s' "$1" "" | tr " " "[" && printf 1 && printf '%*s' "$1" "" | tr " " "]"
}

test_expect_success 'a configuration that cannot be read is refused, and not taken for none' '
	write "[workflow-token]
$good
$rule

[deep]
deep = $(levels 140)" &&
	test_must_fail flux config reload 2>err &&
	cat err && grep "configuration of Flux cannot be read" err &&
	in_force
'

test_expect_success 'a shell option that cannot be read ends the job, which is told so' '
	printf "{\"workflow-token\":%s}" "$(levels 600)" >deep.json &&
	! flux run --setattr=^system.shell.options=deep.json printenv DW_WORKFLOW_TOKEN >deep.out 2>deep.err &&
	cat deep.err && grep "the shell option workflow-token cannot be read" deep.err &&
	! test -s deep.out
'

test_expect_success 'what is no TOML is refused' '
	write "[workflow-token" &&
	test_must_fail flux config reload &&
	write "[workflow-token]
$good
$rule"
'

test_expect_success 'after all of these the former configuration is in force' '
	in_force &&
	test "$(counter rules)" = 1
'

test_expect_success 'keys given when it is loaded go before those of the table' '
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

test_expect_success 'the time that a delivery may take can be given so' '
	write "[workflow-token]
munge-socket = \"$PWD/no.socket\"
$rule" &&
	flux config reload &&
	load timeout=1s &&
	id=$(submit true) &&
	is_failed_delivery "$id" "longer than 1 s" &&
	unload
'

test_expect_success 'the instance ends well' 'instance_down'

test_done
