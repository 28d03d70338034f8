#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='A job of an unknown owner is held, and the job manager does not wait'

. "$(dirname "$0")/lib.sh"
need_flux
command -v "${CC:-cc}" >/dev/null || skip "no C compiler found, for a name service that can be told to be slow"

# Flux loads plugins so that their own libraries take precedence, except over tools that are preloaded like this one.
names=$PWD/names
# LD_PRELOAD accepts no path with a space.
preload=$base/names.so
cleanup 'rm -f "$preload"'
"${CC:-cc}" -shared -fPIC -Wall -o "$preload" "$TESTS/../tests/support/names.c" || skip "the name service does not compile"
printf 'user alice %s 100\nuser bob 65534 200\ngroup users 100\ngroup staff 200\ngroup hydro 5000 alice\n' "$(id -u)" >"$names"

need_canaries
(umask 077 && new_token >"$canaries/hydro.jwt")

# up: starts an instance with this name service, which clients do not use.
up() {
	FLUX_DISABLE_JOB_CLEANUP=t FLUX_LOAD_WITH_DEEPBIND=0 LD_PRELOAD=$preload TEST_NAMES=$names instance_up 1
}

# slow: makes lookups of users hang until answered.
slow() {
	rm -f "$names.asked" "$names.hang" && mkfifo "$names.hang"
}

answer() {
	# shellcheck disable=SC2016
	timeout 60 sh -c 'exec 3>"$1" && rm "$1" && echo >&3' - "$names.hang"
}

is_asked() {
	grep -qx "$(id -u)" "$names.asked" 2>/dev/null
}

has() {
	test "$(counter "$1")" = "$2"
}

submit() {
	flux submit --setattr=system.workflow=1 --setattr=project="$1" "${@:2}"
}

is_held() {
	await dependency-add "$1" &&
		events dependency-add "$1" | grep 'description="workflow-token-project"' &&
		test "$(flux jobs -no '{state} {dependencies}' "$1")" = "DEPEND workflow-token-project"
}

configure() {
	table <<-END
		timeout = "${1:-60s}"
		[[workflow-token.project]]
		name = "hydro"
		groups = ["hydro"]

		[[workflow-token.project]]
		name = "fusion"
		groups = ["fusion"]

		[[workflow-token.rule]]
		attribute = "system.workflow"
		source = "file"
		path = "$canaries/{project}.jwt"
	END
}

configure
printf '[job-manager]\nplugins = [ { load = "%s" } ]\n' "$JOBTAP" >"$CONFIG/job-manager.toml"
munge_up
slow
up || skip "the instance does not start with a name service of our own: $(tail -n 1 instance.log)"
eventually is_asked || skip "Flux does not use a name service of our own"

test_expect_success 'jobs are accepted, and held, while the name service does not respond' '
	good=$(submit hydro printenv DW_WORKFLOW_TOKEN) &&
	bad=$(submit fusion printenv DW_WORKFLOW_TOKEN) &&
	is_held "$good" &&
	is_held "$bad" &&
	has held 2
'

test_expect_success 'the job manager serves others meanwhile' '
	id=$(flux submit --urgency=hold true) &&
	await depend "$id" &&
	flux update "$id" duration=60s &&
	flux cancel "$id" &&
	await clean "$id"
'

test_expect_success 'an update is rejected until the owner is known, and can be retried' '
	id=$(flux submit --urgency=hold true) &&
	await depend "$id" &&
	test_must_fail flux update "$id" project=hydro 2>err &&
	cat err &&
	grep "try again in a moment" err
'

test_expect_success 'a held job can be canceled' '
	away=$(submit hydro true) &&
	is_held "$away" &&
	flux cancel "$away" &&
	await clean "$away" &&
	has held 2
'

# The agent stays, and so does its query.
test_expect_success 'the plugin is removed and loaded again: the jobs are still held' '
	unload &&
	is_held "$good" &&
	load &&
	has held 2
'

test_expect_success 'the instance is restarted: the jobs are still held' '
	flux kvs put --sync checkpoint=1 &&
	instance_kill &&
	rm -f "$names.asked" &&
	up &&
	eventually has held 2 &&
	eventually is_asked &&
	is_held "$good"
'

test_expect_success 'after the response, one job proceeds and has its token' '
	answer &&
	await clean "$good" &&
	flux job attach "$good" >out &&
	test_cmp "$canaries/hydro.jwt" out &&
	test "$(events dependency-add "$good" | wc -l)" = 1 &&
	test "$(events dependency-remove "$good" | wc -l)" = 1
'

test_expect_success 'the other job fails without having run' '
	is_refused "$bad" workflow-token "alice is not in project fusion: it requires group fusion" &&
	has_no_event start "$bad"
'

test_expect_success 'the next job is rejected at submission' '
	test_must_fail submit fusion true 2>err &&
	cat err &&
	grep -F "alice is not in project fusion: it requires group fusion" err
'

test_expect_success 'the update is accepted' '
	flux update "$id" project=hydro &&
	flux cancel "$id"
'

test_expect_success 'a name service that never responds fails the job, in time' '
	slow &&
	configure 1s &&
	id=$(submit hydro true) &&
	is_refused "$id" workflow-token "could not be found out in time" &&
	answer
'

test_expect_success 'the instance ends normally' 'instance_down'

test_done
