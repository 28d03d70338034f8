#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='The plugin of flux-coral2 for Cray PMI is replaced and restored while jobs exist'

. "$(dirname "$0")/lib.sh"
need_flux
need_rabbits
OLD=$FLUX_CORAL2_PLUGINS
test -n "$OLD" || skip "the plugins of flux-coral2 are not here: set FLUX_CORAL2_PLUGINS to what has job-manager/plugins and shell/plugins"
OLD_PMI=$OLD/job-manager/plugins/cray-pmi-bootstrap.so
PALS=$OLD/shell/plugins/cray_pals.so
for file in "$OLD_PMI" "$PALS"; do
	test -e "$file" || skip "there is no $file: see FLUX_CORAL2_PLUGINS"
done
PMI=$STAGE/lib/flux/job-manager/plugins/cray-pmi-bootstrap.so

need_canaries
VARIABLES=$PWD/variables
echo '{}' >variables
table </dev/null
# shells OLD|NEW: sets the plugin that job shells load from now on.
shells() {
	{
		echo 'if shell.options.pmi == nil then shell.options.pmi = "cray-pals" end'
		test "$1" = OLD ||
			echo "plugin.load { file = \"${SHELL_PLUGIN%/*}/cray-pmi-bootstrap.so\", conf = { [\"munge-socket\"] = \"$MUNGE_SOCKET\" } }"
		echo "plugin.load { file = \"$PALS\" }"
	} >initrc.lua
}
shells OLD
# Each task stores its variables.
program keep <<-EOF
	#!/bin/sh
	echo "\${PMI_CONTROL_PORT-unset} \${PMI_SHARED_SECRET-unset}" \
		>"$canaries/\$(flux job id --to=dec \$FLUX_JOB_ID).\$FLUX_TASK_RANK"
EOF
program wait <<-EOF
	#!/bin/sh
	until test -e "$PWD/go"; do sleep 0.05; done
	exec "$PWD/keep"
EOF

# replace FILE [OPTION…]: replaces the loaded plugin by this one.
replace() {
	flux jobtap load --remove=cray-pmi-bootstrap.so "$@" port-min=11000 port-max=12000
}

# job HOW OPTION…: submits a job of two nodes. The plugin for rabbit jobs and the stand-in for its service hold it in
# its prolog and in its epilog, as for rabbit_job.
job() {
	local how=$1
	shift
	rabbit_job "$how" -N2 -n2 "$@"
}

free() {
	flux jobtap query cray-pmi-bootstrap.so | member ports-free
}

are_free() {
	test "$(free)" = "$1"
}

# ports ID: prints the ports in the job's event.
ports() {
	events cray-pmi-bootstrap "$1" | sed -n 's/.* ports=\[\([0-9]*,[0-9]*\)\].*/\1/p'
}

# is_clear ID: succeeds if the job's event contains the secret, and its tasks have the same one.
is_clear() {
	events cray-pmi-bootstrap "$1" | sed -n 's/.* random_integer=\(-\?[0-9]*\).*/\1/p' >"$canaries/integer" &&
		python3 -c 'print(int(input()) % 2**64)' <"$canaries/integer" >"$canaries/expected" &&
		cut -d" " -f2 "$canaries/$(flux job id --to=dec "$1").0" >"$canaries/found" &&
		cmp "$canaries/expected" "$canaries/found"
}

# is_sealed ID: succeeds if the job's event contains only ports.
is_sealed() {
	events cray-pmi-bootstrap "$1" >event && grep "ports=" event && ! grep random_integer event
}

# lives ID: succeeds if the job ends normally, and both of its tasks had its ports and one secret.
lives() {
	local dec
	dec=$(flux job id --to=dec "$1")
	await clean "$1" &&
		test "$(flux jobs -no '{result}' "$1")" = COMPLETED &&
		has_no_event exception "$1" &&
		test "$(events cray-pmi-bootstrap "$1" | wc -l)" = 1 &&
		test "$(events prolog-start "$1" | wc -l)" = "$(events prolog-finish "$1" | wc -l)" &&
		cmp "$canaries/$dec.0" "$canaries/$dec.1" &&
		grep -Eqx "$(ports "$1") [0-9]+" "$canaries/$dec.0"
}

# pmi_at_all_points: submits jobs and brings them to all states.
pmi_at_all_points() {
	rm -f go
	in_epilog=$(job post_run=held "$PWD/keep") && asked post_run "$in_epilog" &&
		running=$(job ok "$PWD/wait") && await start "$running" &&
		in_prolog=$(job setup=held "$PWD/keep") && asked setup "$in_prolog" && await cray-pmi-bootstrap "$in_prolog" &&
		canceled=$(job setup=held "$PWD/keep") && asked setup "$canceled" && await cray-pmi-bootstrap "$canceled" &&
		first=$(flux submit --urgency=hold true) &&
		waiting=$(job ok --dependency=afterok:"$first" "$PWD/keep") && asked resource-update "$waiting" ok &&
		scheduled=$(job ok --urgency=hold "$PWD/keep") && await priority "$scheduled"
}

given() {
	tell prolog-remove "$1" '"variables":{}'
}

test_expect_success 'an instance with the plugin of flux-coral2' '
	munge_up &&
	instance_up 2 &&
	flux jobtap load "$DWS_JOBTAP" &&
	stand_in_up &&
	flux jobtap load "$OLD_PMI" port-min=11000 port-max=12000 &&
	id=$(job ok "$PWD/keep") &&
	lives "$id" &&
	is_clear "$id"
'

test_expect_success 'doctor names the plugin' '
	of_plugins &&
	grep "^warn  plugin .*the loaded cray-pmi-bootstrap.so, from $OLD_PMI, .* flux-coral2" doctor
'

test_expect_success 'first the job shells: jobs have the values of the eventlog' '
	shells NEW &&
	id=$(job ok "$PWD/keep") &&
	lives "$id" &&
	is_clear "$id"
'

test_expect_success 'then the job manager: jobs in all states continue' '
	pmi_at_all_points &&
	replace "$PMI" &&
	flux cancel "$canceled" &&
	await clean "$canceled" &&
	tell epilog-remove "$in_epilog" &&
	lives "$in_epilog" &&
	given "$in_prolog" &&
	lives "$in_prolog" &&
	is_clear "$in_prolog" &&
	flux job urgency "$first" default &&
	lives "$waiting" &&
	is_sealed "$waiting" &&
	flux job urgency "$scheduled" default &&
	lives "$scheduled" &&
	is_sealed "$scheduled"
'

test_expect_success 'doctor names the new plugin, and finds that job shells load theirs in the right order' '
	of_plugins &&
	grep "^ok    plugin .*loaded from $PMI: .*ports-free=" doctor &&
	grep "^ok    shell .*cray-pmi-bootstrap.so is installed" doctor &&
	grep "^ok    shell .*initrc.lua loads cray-pmi-bootstrap.so before cray_pals.so" doctor
'

test_expect_success 'the ports of a running job are not allocated again, and are released later' '
	are_free 998 &&
	other=$(job ok "$PWD/keep") &&
	lives "$other" &&
	is_sealed "$other" &&
	for port in $(ports "$running" | tr , " "); do
		! ports "$other" | grep -w $port || return
	done &&
	>go &&
	lives "$running" &&
	is_clear "$running" &&
	eventually are_free 1000
'

test_expect_success 'sealed secrets are nowhere in clear text' '
	cut -d" " -f2 "$canaries/$(flux job id --to=dec "$other").0" >"$canaries/secrets" &&
	for id in $(flux jobs -ano "{id}"); do flux job eventlog "$id" || return; done >eventlogs &&
	# One secret in two thousand has too few digits to be unmistakable.
	if grep -Eq "^[0-9]{1,15}$" "$canaries/secrets"; then echo 1234567890123456789 >"$canaries/secrets"; fi &&
	flux kvs put --sync checkpoint=1 &&
	test_expect_code 1 "$TESTS/search.py" "$canaries/secrets" "$PWD" proc:
'

test_expect_success 'rollback without the job shells: all jobs continue, and new jobs have their secret in clear text' '
	pmi_at_all_points &&
	is_sealed "$running" && is_sealed "$in_prolog" &&
	test "$(flux jobtap query cray-pmi-bootstrap.so | member in-flight)" = 0 &&
	replace "$OLD_PMI" &&
	flux cancel "$canceled" &&
	await clean "$canceled" &&
	tell epilog-remove "$in_epilog" &&
	lives "$in_epilog" &&
	given "$in_prolog" &&
	lives "$in_prolog" &&
	is_sealed "$in_prolog" &&
	flux job urgency "$first" default &&
	lives "$waiting" &&
	is_clear "$waiting" &&
	flux job urgency "$scheduled" default &&
	lives "$scheduled" &&
	is_clear "$scheduled"
'

test_expect_success 'the earlier plugin allocates the ports of a running job again' '
	for id in $in_prolog $running; do ports "$id" | tr , "\n" || return; done | sort -u >taken &&
	for id in $waiting $scheduled; do ports "$id" | tr , "\n" || return; done | sort -u >given &&
	comm -12 taken given >twice &&
	test -s twice &&
	>go &&
	lives "$running" &&
	is_sealed "$running"
'

test_expect_success 'the new plugin again: it counts ports that the earlier one allocated' '
	rm -f go &&
	a=$(job ok "$PWD/wait") && await start "$a" &&
	b=$(job setup=held "$PWD/keep") && asked setup "$b" &&
	replace "$PMI" &&
	eventually are_free 996 &&
	given "$b" &&
	lives "$b" &&
	is_clear "$b" &&
	>go &&
	lives "$a" &&
	is_clear "$a" &&
	eventually are_free 1000
'

test_expect_success 'a job with a sealed secret does not run with job shells without the plugin' '
	id=$(job setup=held "$PWD/keep") && asked setup "$id" &&
	is_delivered() { test "$(events prolog-finish "$id" | grep -c cray-pmi-bootstrap)" = 1; } &&
	eventually is_delivered &&
	replace "$OLD_PMI" &&
	shells OLD &&
	given "$id" &&
	await clean "$id" &&
	events exception "$id" &&
	test ! -e "$canaries/$(flux job id --to=dec "$id").0" &&
	shells NEW &&
	replace "$PMI"
'

test_expect_success 'a delivery in progress at the rollback holds its job until the new plugin is loaded again' '
	munge_signal STOP &&
	id=$(job ok "$PWD/keep") && await cray-pmi-bootstrap "$id" &&
	canceled=$(job ok "$PWD/keep") && await cray-pmi-bootstrap "$canceled" &&
	eventually asked setup "$id" &&
	replace "$OLD_PMI" &&
	flux cancel "$canceled" &&
	await exception "$canceled" &&
	munge_signal CONT &&
	other=$(job ok "$PWD/keep") &&
	lives "$other" &&
	has_no_event start "$id" &&
	has_no_event clean "$canceled" &&
	replace "$PMI" &&
	lives "$id" &&
	await clean "$canceled" &&
	has_no_event start "$canceled" &&
	eventually are_free 1000
'

test_expect_success 'the log contains no error of the new plugin' '
	flux dmesg >dmesg &&
	! grep "\.err\[0\]: cray-pmi-bootstrap: " dmesg
'

test_expect_success 'the instance ends normally' '
	stand_in_down &&
	instance_down
'

test_done
