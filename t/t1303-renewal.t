#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='Tokens are renewed while their job runs, and end with it'

. "$(dirname "$0")/own-shm.sh"
. "$(dirname "$0")/lib.sh"
need_flux
need_canaries

mint_program "$canaries"

# rule KEY…: sets a rule for all jobs, with these keys.
rule() {
	printf '[[workflow-token.rule]]\nsource = "command"\ncommand = ["%s/mint"]\n' "$PWD" &&
		printf '%s\n' "$@"
}

# minted COUNT: succeeds if at least this number of tokens was fetched.
minted() {
	test "$(wc -l <"$canaries/minted")" -ge "$1"
}

# has_failed COUNT: succeeds if this number of renewals failed.
has_failed() {
	test "$(counter renewal-failures)" -ge "$1"
}

# started ID COUNT: succeeds if this number of tasks of the job read their files.
started() {
	test "$(find shared -name "started.$1.*" | wc -l)" -eq "$2"
}

# log_has TEXT
log_has() {
	flux dmesg >dmesg && grep -F -e "$1" dmesg
}

# has_event ID TEXT
has_event() {
	flux job eventlog "$1" >eventlog && grep -F -e "$2" eventlog
}

# files: prints the token directories of this user.
files() {
	find /dev/shm -maxdepth 1 -name "workflow-token-$(id -u)-*"
}

# Jobs outlive the instance.
export FLUX_DISABLE_JOB_CLEANUP=t

# A broker passes the path of a batch script to a shell, so the path must not contain a space.
RUN=$base/run
cleanup 'rm -rf "$RUN" "$base/trash"'

# The minimum time in seconds for which a job of four shells reads its file.
RUNS=${WORKFLOW_TOKEN_RENEWAL_SECONDS:-0}

mkdir shared
echo 6 >lifetime

test_expect_success 'an instance of four brokers on two hosts' '
	munge_up &&
	initrc initrc.lua "munge-socket=$MUNGE_SOCKET" &&
	rule "renew = 0.25" "renew-signal = \"SIGUSR1\"" "bearer-token-file = true" | table &&
	HOSTS=node0,node0,node1,node1 instance_up 4 && load
'

test_expect_success 'a job finds its token in its environment and in a file of its own' '
	flux run sh -c "
		for token in \"\$(cat \$DW_WORKFLOW_TOKEN_FILE)\" \"\$(cat \$BEARER_TOKEN_FILE)\" \"\$DW_WORKFLOW_TOKEN\"; do
			printf %s \"\$token\" | sha256sum
		done
		stat -c %a \$DW_WORKFLOW_TOKEN_FILE \$(dirname \$DW_WORKFLOW_TOKEN_FILE)
		echo \$WORKFLOW_TOKEN_VARIABLES" >out &&
	sum=$(tail -n 1 "$canaries/minted" | tr -d "\n" | sha256sum) &&
	printf "%s\n" "$sum" "$sum" "$sum" 600 700 \
		"DW_WORKFLOW_TOKEN BEARER_TOKEN_FILE DW_WORKFLOW_TOKEN_FILE" >expected &&
	test_cmp expected out
'

test_expect_success 'a job of four shells runs for many lifetimes' '
	id=$(flux submit -N4 -n4 -o cpu-affinity=off --output=out.readers "$TESTS/read-token.py" "$PWD/shared") &&
	end=$((SECONDS + RUNS)) &&
	ids=$id && eventually started "$id" 4 && minted 1 && before=$(wc -l <"$canaries/minted") &&
	eventually minted $((before + 3))
'

test_expect_success 'the source is down for two periods' '
	touch down && eventually log_has "could not be renewed" &&
	counted=$(counter renewal-failures) && eventually has_failed $((counted + 2)) && rm down &&
	before=$(wc -l <"$canaries/minted") && eventually minted $((before + 2)) &&
	log_has "its workflow token was renewed"
'

test_expect_success 'the agent is killed' '
	pkill -KILL -f "workflow-token-agent .*$RUN" &&
	before=$(wc -l <"$canaries/minted") && eventually minted $((before + 2))
'

test_expect_success 'the plugin is loaded again' '
	unload && load &&
	before=$(wc -l <"$canaries/minted") && eventually minted $((before + 2)) &&
	test "$(counter renewing)" -eq 1
'

test_expect_success 'no generation of the token is elsewhere' '
	tasks=$(pgrep -f "$TESTS/read-token.py" | paste -sd,) &&
	gather running workflow-token.so &&
	test "$(wc -l <"$canaries/minted")" -ge 5 &&
	everywhere minted && test "$(cat status)" -eq 1
'

# is_over: succeeds if the job has run for the requested time.
is_over() {
	test "$SECONDS" -ge "$end"
}

test_expect_success 'the job runs for the requested time' '
	while ! is_over; do before=$(wc -l <"$canaries/minted") && eventually minted $((before + 1)) || return 1; done
'

test_expect_success 'every read returned a complete and valid token, and one signal announced each new one' '
	touch shared/stop &&
	flux job wait-event -t 60 "$id" clean &&
	test "$(wc -l <out.readers)" -eq 4 && readers_saw out.readers 6
'

test_expect_success 'files and records end with the job' '
	eventually has_no_record "$id" && files >left && test_must_be_empty left &&
	before=$(wc -l <"$canaries/minted") && test "$(counter renewing)" -eq 0
'

test_expect_success 'the next shell removes the files of a killed one' '
	rm -f shared/* && id=$(flux submit "$TESTS/read-token.py" "$PWD/shared") && eventually started "$id" 1 &&
	test "$(files | wc -l)" -eq 1 &&
	pkill -KILL -f "flux-shell.*$(flux job id --to=dec "$id")" && touch shared/stop &&
	flux job wait-event -t 60 "$id" clean &&
	test "$(files | wc -l)" -eq 1 && flux run true && files >left && test_must_be_empty left
'

test_expect_success 'jobs of an inner instance on several nodes read the current token' '
	rule "renew = 0.25" | table && rm -f shared/* &&
	ln -sfn "$SHARNESS_TRASH_DIRECTORY" "$base/trash" &&
	program inner <<-EOF &&
		#!/bin/sh
		flux run -N2 -n2 "$TESTS/read-token.py" "$PWD/shared" >"$PWD/out.inner"
	EOF
	flux batch -N2 -n2 --broker-opts=-Sconf.shell_pluginpath="$STAGE/lib/flux/shell/plugins" \
		--broker-opts=-Sconf.shell_initrc="$base/trash/initrc.lua" --output=out.batch "$base/trash/inner" >batch.id &&
	{ eventually started "*" 2 || { cat out.batch; false; }; } &&
	before=$(wc -l <"$canaries/minted") && eventually minted $((before + 5)) && touch shared/stop &&
	flux job wait-event -t 60 "$(cat batch.id)" clean && cat out.batch out.inner &&
	python3 - out.inner <<-\EOF
		import json, sys
		lines = open(sys.argv[1]).readlines()
		assert len(lines) == 2
		for seen in map(json.loads, lines):
		    assert seen["tokens"] >= 2 and not seen["incomplete"] and not seen["expired"], seen
	EOF
'
rm -f "$base/trash"

test_expect_success 'a token that does not expire is not renewed' '
	echo 100000000000 >lifetime && rm -f shared/stop &&
	id=$(flux submit "$TESTS/read-token.py" "$PWD/shared") && eventually started "$id" 1 &&
	test "$(counter in-flight)" -eq 0 &&
	rule "renew = false" | table && echo 3 >lifetime &&
	other=$(flux submit "$TESTS/read-token.py" "$PWD/shared") && eventually started "$other" 1 &&
	test "$(counter renewing)" -le 1 &&
	flux cancel "$id" "$other"
'

# Of the executors of flux-core, only those for systemd and for simulated jobs find a running job again after a restart.
test_expect_success 'the token of a simulated job that survives a restart of the instance is renewed' '
	echo 60 >lifetime && rule "renew = 0.1" | table &&
	id=$(flux submit --setattr=system.exec.test.run_duration=600s true) && flux job wait-event -t 60 "$id" start &&
	instance_down && before=$(wc -l <"$canaries/minted") &&
	HOSTS=node0,node0,node1,node1 instance_up 4 && load &&
	eventually minted $((before + 2)) && test "$(counter renewing)" -eq 1 && test "$(counter failed)" -eq 0 &&
	flux cancel "$id" && flux job wait-event -t 60 "$id" clean
'

# expires POLICY: runs a job whose token expires while the source is down.
expires() {
	rm -f down shared/stop && echo 3 >lifetime && rule "on-expiry = \"$1\"" | table &&
		id=$(flux submit --output=out.expires "$TESTS/read-token.py" "$PWD/shared") && eventually started "$id" 1 &&
		touch down && eventually has_event "$id" "workflow token of this job has expired" && log_has "its workflow token has expired"
}

test_expect_success 'on-expiry = warn: the user is notified, and the job continues' '
	expires warn && grep "severity=4" eventlog && rm down &&
	before=$(wc -l <"$canaries/minted") && eventually minted $((before + 1)) &&
	touch shared/stop && flux job wait-event -t 60 "$id" clean && flux job eventlog "$id" | grep "finish status=0"
'

test_expect_success 'on-expiry = signal: the tasks receive SIGTERM' '
	expires signal && flux job wait-event -t 60 "$id" clean && flux job eventlog "$id" | grep "finish status=15\|finish status=36608"
'

test_expect_success 'on-expiry = exception: the job ends' '
	expires exception && grep "severity=0" eventlog && flux job wait-event -t 60 "$id" clean
'

test_expect_success 'the end' '
	rm -f down && unload && instance_down
'

test_done
