#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='The plugins of flux-coral2 for rabbit jobs are replaced and restored while jobs exist'

. "$(dirname "$0")/lib.sh"
need_flux
need_rabbits
OLD=$FLUX_CORAL2_PLUGINS
test -n "$OLD" || skip "the plugins of flux-coral2 are not here: set FLUX_CORAL2_PLUGINS to what has job-manager/plugins and shell/plugins"
OLD_DWS=$OLD/job-manager/plugins/dws-jobtap.so
OLD_SHELL=$OLD/shell/plugins/dws_environment.so
for file in "$OLD_DWS" "$OLD_SHELL"; do
	test -e "$file" || skip "there is no $file: see FLUX_CORAL2_PLUGINS"
done

VARIABLES=$PWD/variables
echo '{"DW_JOB_a":"/mnt/nnf/a"}' >variables
table </dev/null
# shells OLD|NEW: sets the plugin that job shells load from now on.
shells() {
	case $1 in
	OLD) printf 'plugin.load { file = "%s" }\n' "$OLD_SHELL" ;;
	NEW) printf 'plugin.load { file = "%s", conf = { ["munge-socket"] = "%s" } }\n' "$DWS_SHELL" "$MUNGE_SOCKET" ;;
	esac >initrc.lua
}
shells OLD
mkdir found
program keep <<-EOF
	#!/bin/sh
	echo "\${DW_JOB_a-unset}" >"$PWD/found/\$(flux job id --to=dec \$FLUX_JOB_ID)"
EOF
program wait <<-EOF
	#!/bin/sh
	until test -e "$PWD/go"; do sleep 0.05; done
	exec "$PWD/keep"
EOF

# replace FILE: replaces the loaded plugin by this one.
replace() {
	flux jobtap load --remove=dws-jobtap.so "$1"
}

# lives ID: succeeds if the job ends normally, and was torn down once.
lives() {
	await clean "$1" &&
		test "$(flux jobs -no '{result}' "$1")" = COMPLETED &&
		has_no_event exception "$1" &&
		test "$(cat "found/$(flux job id --to=dec "$1")")" = /mnt/nnf/a &&
		test "$(events prolog-start "$1" | wc -l)" = "$(events prolog-finish "$1" | wc -l)" &&
		test "$(events epilog-start "$1" | wc -l)" -ge 1 &&
		test "$(events epilog-start "$1" | wc -l)" = "$(events epilog-finish "$1" | wc -l)" &&
		asked post_run "$1"
}

is_sealed() {
	events dws_environment "$1" | grep "names=" && ! events dws_environment "$1" | grep variables=
}

is_clear() {
	events dws_environment "$1" | grep "variables=.*/mnt/nnf/a"
}

# at_all_points_and_canceled: like at_all_points, with another job in its prolog, to be canceled.
at_all_points_and_canceled() {
	at_all_points &&
		canceled=$(rabbit_job setup=held "$PWD/keep") && asked setup "$canceled"
}

resources='"resources":[{"type":"slot","count":1,"label":"task","with":[{"type":"core","count":1}]}],"exclude":null'
given() {
	tell prolog-remove "$1" "\"variables\":$(cat variables)"
}

# A prolog of another plugin, which holds jobs whose rabbits are ready.
mkfifo fetching fetched
program held <<-EOF
	#!/bin/sh
	echo fetching >"$PWD/fetching"
	read line <"$PWD/fetched"
	echo something
EOF

test_expect_success 'an instance with the plugins of flux-coral2' '
	munge_up &&
	instance_up 2 &&
	flux jobtap load "$OLD_DWS" &&
	stand_in_up &&
	id=$(rabbit_job ok "$PWD/keep") &&
	lives "$id" &&
	is_clear "$id"
'

test_expect_success 'doctor names the plugin' '
	of_plugins &&
	grep "^warn  plugin .*the loaded dws-jobtap.so, from $OLD_DWS, .* flux-coral2" doctor
'

test_expect_success 'first the job shells: jobs have the variables of the eventlog' '
	shells NEW &&
	id=$(rabbit_job ok -o verbose=1 "$PWD/keep") &&
	lives "$id" &&
	is_clear "$id" &&
	flux job attach "$id" 2>&1 | grep "in clear text: the dws-jobtap.so that prepared this job does not seal them"
'

test_expect_success 'then the job manager: jobs in all states continue' '
	at_all_points_and_canceled &&
	replace "$DWS_JOBTAP" &&
	flux cancel "$canceled" &&
	tell epilog-remove "$in_epilog" &&
	lives "$in_epilog" &&
	>go &&
	lives "$running" &&
	given "$in_prolog" &&
	lives "$in_prolog" &&
	is_sealed "$in_prolog" &&
	tell resource-update "$created" "$resources" &&
	lives "$created" &&
	flux job urgency "$first" default &&
	lives "$waiting" &&
	flux job urgency "$scheduled" default &&
	lives "$scheduled" &&
	for id in $created $waiting $scheduled; do is_sealed "$id" || return; done &&
	await clean "$canceled" &&
	asked post_run "$canceled" "\"run_started\": false"
'

test_expect_success 'doctor names the new plugin, and finds its part for job shells' '
	of_plugins &&
	grep "^ok    plugin .*loaded from $DWS_JOBTAP: .*in-flight=" doctor &&
	grep "^ok    shell .*dws_environment.so is installed" doctor &&
	! grep "no line of .* loads dws_environment.so" doctor
'

test_expect_success 'a job that has not started, with variables in the eventlog, has them' '
	replace "$OLD_DWS" &&
	table <<-EOF &&
		[[workflow-token.rule]]
		attribute = "system.other"
		source = "command"
		command = ["$PWD/held"]
		check = "none"
	EOF
	flux jobtap load "$JOBTAP" &&
	id=$(rabbit_job ok --setattr=system.other=1 "$PWD/keep") &&
	timeout 60 cat fetching &&
	asked prolog-remove "$id" ok &&
	replace "$DWS_JOBTAP" &&
	release fetched &&
	lives "$id" &&
	is_clear "$id"
'

# ends ID: succeeds if the job had its variables, and ends normally.
ends() {
	await clean "$1" &&
		test "$(flux jobs -no '{result}' "$1")" = COMPLETED &&
		test "$(cat "found/$(flux job id --to=dec "$1")")" = /mnt/nnf/a
}

test_expect_success 'a plugin is installed over the loaded one, and replaces it' '
	mkdir -p installed &&
	install "$OLD_DWS" installed/dws-jobtap.so &&
	replace "$PWD/installed/dws-jobtap.so" &&
	id=$(rabbit_job setup=held "$PWD/keep") &&
	asked setup "$id" &&
	install "$DWS_JOBTAP" installed/dws-jobtap.so &&
	flux jobtap query dws-jobtap.so >query &&
	! grep in-flight query &&
	replace "$PWD/installed/dws-jobtap.so" &&
	flux jobtap query dws-jobtap.so | grep in-flight &&
	given "$id" &&
	lives "$id" &&
	is_sealed "$id"
'

test_expect_success 'rollback: jobs without resources, or in their epilog, continue' '
	at_all_points_and_canceled &&
	flux jobtap query dws-jobtap.so | grep "\"in-flight\": *0" &&
	replace "$OLD_DWS" &&
	shells OLD &&
	tell epilog-remove "$in_epilog" &&
	lives "$in_epilog" &&
	flux job urgency "$scheduled" default &&
	lives "$scheduled" &&
	is_clear "$scheduled"
'

test_expect_success 'rollback: a job that waits for its workflow fails, because it exists already' '
	for id in $created $waiting; do
		await clean "$id" &&
		events exception "$id" | grep "dws-create.*already exists" || return
	done
'

test_expect_success 'rollback: jobs in their prolog, or running, end normally, and operators remove their workflows' '
	given "$in_prolog" &&
	>go &&
	for id in $in_prolog $running; do
		ends "$id" &&
		has_no_event epilog-start "$id" &&
		test -e "dws/workflows/$(flux job id --to=dec "$id")" || return
	done &&
	is_clear "$in_prolog"
'

test_expect_success 'a job canceled in its prolog hangs until the test acts for the service' '
	flux cancel "$canceled" &&
	await epilog-finish "$canceled" &&
	has_no_event clean "$canceled" &&
	given "$canceled" &&
	await clean "$canceled" &&
	has_no_event start "$canceled"
'

test_expect_success 'a job that has not started, with sealed variables, does not start' '
	replace "$DWS_JOBTAP" &&
	id=$(rabbit_job ok --setattr=system.other=1 "$PWD/keep") &&
	timeout 60 cat fetching &&
	asked prolog-remove "$id" ok &&
	is_sealed "$id" &&
	replace "$OLD_DWS" &&
	release fetched &&
	await clean "$id" &&
	events exception "$id" &&
	! test -e "found/$(flux job id --to=dec "$id")"
'

# The state that one plugin leaves with the handle does not contain what happened to jobs under the
# other plugin.
test_expect_success 'temporary rollback: jobs that proceeded meanwhile continue' '
	shells NEW &&
	rm -f go &&
	replace "$DWS_JOBTAP" &&
	in_prolog=$(rabbit_job setup=held --urgency=hold "$PWD/keep") && await priority "$in_prolog" &&
	running=$(rabbit_job ok --urgency=hold "$PWD/wait") && await priority "$running" &&
	in_epilog=$(rabbit_job post_run=held --urgency=hold "$PWD/keep") && await priority "$in_epilog" &&
	canceled=$(rabbit_job setup=held --urgency=hold "$PWD/keep") && await priority "$canceled" &&
	started=$(rabbit_job setup=held "$PWD/wait") && asked setup "$started" &&
	replace "$OLD_DWS" &&
	for id in $in_prolog $running $in_epilog $canceled; do flux job urgency "$id" default || return; done &&
	asked setup "$in_prolog" &&
	asked setup "$canceled" &&
	await start "$running" &&
	asked post_run "$in_epilog" &&
	given "$started" &&
	await start "$started" &&
	replace "$DWS_JOBTAP" &&
	given "$in_prolog" &&
	lives "$in_prolog" &&
	is_sealed "$in_prolog" &&
	test "$(grep -c "^setup $(flux job id --to=dec "$in_prolog") " dws/log)" = 1 &&
	tell epilog-remove "$in_epilog" &&
	lives "$in_epilog" &&
	flux cancel "$canceled" &&
	await clean "$canceled" &&
	has_no_event start "$canceled" &&
	test "$(events prolog-start "$canceled" | wc -l)" = "$(events prolog-finish "$canceled" | wc -l)" &&
	>go &&
	lives "$running" &&
	lives "$started"
'

# A prolog of another plugin would end if ours were finished too often.
program hold-both <<-EOF
	#!/bin/sh
	echo fetching >"$PWD/fetching"
	until test -e "$PWD/let-go"; do sleep 0.05; done
	echo something
EOF
test_expect_success 'so do jobs held by another plugin: no prolog is finished twice' '
	table <<-EOF &&
		[[workflow-token.rule]]
		attribute = "system.both"
		source = "command"
		command = ["$PWD/hold-both"]
		check = "none"
	EOF
	id=$(rabbit_job setup=held --setattr=system.both=1 "$PWD/keep") &&
	timeout 60 cat fetching &&
	asked setup "$id" &&
	later=$(rabbit_job ok --setattr=system.both=1 --urgency=hold "$PWD/keep") && await priority "$later" &&
	replace "$OLD_DWS" &&
	given "$id" &&
	flux job urgency "$later" default &&
	timeout 60 cat fetching &&
	asked prolog-remove "$later" ok &&
	replace "$DWS_JOBTAP" &&
	given "$id" &&
	given "$later" &&
	test "$(events prolog-finish "$id" | wc -l)" = 1 &&
	has_no_event start "$id" &&
	has_no_event start "$later" &&
	>let-go &&
	lives "$id" &&
	lives "$later" &&
	is_clear "$id" &&
	is_clear "$later"
'

test_expect_success 'the instance ends normally' '
	stand_in_down &&
	instance_down
'

test_done
