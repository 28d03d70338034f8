#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='Slurm: tokens are renewed while their job runs, and end with it'

. "$(dirname "$0")/../own-shm.sh"
. "$(dirname "$0")/lib.sh"
need_slurm
test "$(id -u)" -eq 0 || skip "not root: the program of a rule must not belong to the user of the job"

# minted contains all generations. Only this file and the tasks may contain
# them.
CANARIES=$base/canaries
cleanup 'rm -rf "$CANARIES"'

# renewing KEY…: prints a rule for the partition debug, with these keys.
renewing() {
	printf '\n[[workflow-token.rule]]\nsource = "command"\ncommand = ["%s/mint"]\npartition = "debug"\n' "$PWD"
	printf '%s\n' "$@"
}

# rules KEY…: puts such a rule into force.
rules() {
	renewing "$@" | site && agent_down && agent_up
}

# minted COUNT: succeeds if at least this number of tokens was fetched.
minted() {
	test "$(wc -l <"$CANARIES/minted")" -ge "$1"
}

# renewed COUNT: waits for this number of further tokens.
renewed() {
	local before
	before=$(wc -l <"$CANARIES/minted") && eventually minted $((before + $1))
}

# started ID COUNT: succeeds if this number of tasks of the job read their
# files.
started() {
	test "$(find shared -name "started.$1.*" | wc -l)" -eq "$2"
}

# log_has COUNT TEXT: succeeds if the agent logged TEXT at least this often.
log_has() {
	has_lines "$1" "$2" agent.log
}

# no_files: succeeds if no directory with tokens of the user exists.
no_files() {
	test -z "$(find /dev/shm -maxdepth 1 -name "workflow-token-$(id -u "$ALICE")-*")"
}

# hides_all HAYSTACK…: succeeds if none of them contains a token of any
# generation.
hides_all() {
	test_expect_code 1 "$TESTS/search.py" "$CANARIES/minted" "$@"
}

test_expect_success 'a cluster starts' '
	cluster_prepare && cp "$TESTS/new-token.py" "$TESTS/read-token.py" bin && mkdir shared && chmod 1777 shared && mkfifo shared/go && chmod 0666 shared/go &&
	mint_program "$CANARIES" "$PWD/bin" && chown -R "$CONTROLLER" "$CANARIES" && echo 20 >lifetime &&
	renewing "renew = 0.1" "renew-signal = \"SIGUSR1\"" "bearer-token-file = true" | site &&
	munge_up && agent_up && cluster_up
'

test_expect_success 'a task finds its token in its environment and in a file that only its user can read' '
	run "$ALICE" sh -c "
		printenv DW_WORKFLOW_TOKEN && cat \$DW_WORKFLOW_TOKEN_FILE && echo && cat \$BEARER_TOKEN_FILE && echo
		stat -c %a.%U \$DW_WORKFLOW_TOKEN_FILE \$(dirname \$DW_WORKFLOW_TOKEN_FILE)" >out &&
	token=$(tail -n 1 "$CANARIES/minted") &&
	printf "%s\n" "$token" "$token" "$token" "600.$ALICE" "700.$ALICE" >expected && test_cmp expected out &&
	eventually no_files
'

test_expect_success 'a nested job has its own files, and a job without a token has none' '
	cat >shared/inner <<-\EOF &&
		test "$(cat "$DW_WORKFLOW_TOKEN_FILE")" = "$DW_WORKFLOW_TOKEN" && ls "$DW_WORKFLOW_TOKEN_FILE"
	EOF
	cat >shared/outer <<-EOF &&
		#!/bin/sh
		echo "\$DW_WORKFLOW_TOKEN_FILE"
		srun sh "$PWD/shared/inner"
		srun sh -c "trap : USR1; env -u SLURM_JOB_ID sbatch -p other --wait -o $PWD/shared/other --wrap \"env | grep -e ^DW_ -e ^BEARER || echo none\""
	EOF
	id=$(batch "$ALICE" -o "$PWD/shared/out" shared/outer) && eventually finished "$id" && cat shared/out &&
	test "$(grep -c "^/dev/shm/workflow-token-$(id -u "$ALICE")-" shared/out)" -eq 2 &&
	test "$(sort -u shared/out | grep -c ^/dev)" -eq 2 &&
	echo none >expected && test_cmp expected shared/other
'

test_expect_success 'a step of four tasks on two nodes runs for many lifetimes' '
	id=$(batch "$ALICE" -N2 -n4 -o "$PWD/shared/out.readers" --wrap "srun $PWD/bin/read-token.py $PWD/shared") &&
	eventually started "$id" 4 && renewed 3
'

test_expect_success 'the source is down for two periods' '
	touch down && eventually log_has 1 "job $id: .* could not be renewed: .*\[source-failed\]" && sleep 4 && rm down && renewed 2 &&
	eventually log_has 1 "job $id: its workflow token was renewed"
'

test_expect_success 'the agent is killed' '
	agent_down KILL && agent_up && renewed 2
'

test_expect_success 'slurmctld and the daemons of the nodes are restarted' '
	slurmctld_down && slurmctld_up && renewed 2 &&
	for pid in "${SLURMD[@]}"; do kill "$pid" && { wait "$pid" || :; }; done && SLURMD=() &&
	slurmd_up n1 && slurmd_up n2 && renewed 2
'

test_expect_success 'another step on the same nodes has the current token' '
	as "$ALICE" timeout 60 srun --jobid="$id" --overlap -N2 -n2 sh -c "$PRINT" >out && test "$(wc -l <out)" -eq 2 &&
	tail -n 3 "$CANARIES/minted" >recent && test "$(grep -cF -f recent out)" -eq 2
'

test_expect_success 'no generation of the token is elsewhere' '
	minted 10 && hides_all "$STATE" spool-n1 spool-n2 slurmd-n1.log slurmd-n2.log agent agent.log cache munged.log \
		slurmctld.out slurmd.out &&
	scontrol show jobs -dd >shown && hides_all shown &&
	for pid in $(pgrep -f "$PWD/bin/workflow-token-slurmstepd"); do cat "/proc/$pid/environ" "/proc/$pid/cmdline"; done >shown &&
	hides_all shown
'

test_expect_success 'nobody else can read the files, or stop their renewal' '
	pid=$(pgrep -f "$PWD/bin/workflow-token-slurmstepd" | head -n 1) && test -n "$pid" &&
	test_must_fail as "$ALICE" kill "$pid" && test_must_fail as "$ALICE" cat "/proc/$pid/environ" &&
	directory=$(find /dev/shm -maxdepth 1 -name "workflow-token-$(id -u "$ALICE")-$id-*" | head -n 1) &&
	test_must_fail as "$BOB" ls "$directory"
'

test_expect_success 'every read returned a complete and valid token, and one signal announced each new one' '
	touch shared/stop && eventually finished "$id" && test "$(wc -l <shared/out.readers)" -eq 4 && readers_saw shared/out.readers 8
'

test_expect_success 'files, records and programs end with the job' '
	eventually no_files && eventually is_empty agent/store && eventually is_empty cache &&
	test_must_fail pgrep -f "$PWD/bin/workflow-token-slurmstepd" &&
	before=$(wc -l <"$CANARIES/minted")
'

test_expect_success 'the file is renewed whatever a user puts into the directory' '
	run "$ALICE" sh -c "
		trap : USR1
		cd \$(dirname \$DW_WORKFLOW_TOKEN_FILE) && mkfifo .DW_WORKFLOW_TOKEN && first=\$(cat DW_WORKFLOW_TOKEN) &&
		while test \"\$(cat DW_WORKFLOW_TOKEN)\" = \"\$first\"; do sleep 0.1; done && echo renewed" >out &&
	grep renewed out && eventually no_files
'

# The nodes share a cache here, so nothing on them may follow the job.
test_expect_success 'a step has the current token on a node where no step of the job ran for a while' '
	id=$(batch "$ALICE" -N2 -o "$PWD/shared/out.later" --wrap "
		srun -N1 -n1 -w n2 sh -c \"$PRINT\"
		read go <$PWD/shared/go
		srun -N1 -n1 -w n2 sh -c \"$PRINT\"") &&
	eventually test -s shared/out.later && pkill -KILL -f "$PWD/bin/workflow-token-slurmstepd" && renewed 4 && echo >shared/go && eventually finished "$id" &&
	tail -n 3 "$CANARIES/minted" >recent && test "$(wc -l <shared/out.later)" -eq 2 && test "$(grep -cF -f recent shared/out.later)" -eq 1
'

# begun: starts a job that reads its files. Sets id.
begun() {
	rm -f shared/started.* shared/stop
	id=$(batch "$ALICE" -o "$PWD/shared/out" --wrap "srun $PWD/bin/read-token.py $PWD/shared") && eventually started "$id" 1
}

test_expect_success 'the next step removes the files of a killed program' '
	begun && pkill -KILL -f "$PWD/bin/workflow-token-slurmstepd" && touch shared/stop && eventually finished "$id" &&
	! no_files && run "$ALICE" true && eventually no_files
'

test_expect_success 'a job whose token expires ends if its rule requires it' '
	echo 6 >lifetime && rules "on-expiry = \"exception\"" && begun && touch down &&
	eventually log_has 1 "job $id: its workflow token has expired" && eventually finished "$id" && rm down &&
	squeue --noheader --states=all --jobs="$id" --format=%T >shown && grep CANCELLED shown
'

test_expect_success 'or its tasks receive SIGTERM' '
	rules "on-expiry = \"signal\"" &&
	cat >shared/trap <<-EOF &&
		trap "echo terminated; exit" TERM
		touch $PWD/shared/started.\$SLURM_JOB_ID.0
		while :; do sleep 0.1; done
	EOF
	id=$(batch "$ALICE" -o "$PWD/shared/out" --wrap "srun bash $PWD/shared/trap") && eventually started "$id" 1 && touch down &&
	eventually finished "$id" && rm down && grep terminated shared/out
'

test_expect_success 'without the program, the token is in the environment only' '
	mv bin/workflow-token-slurmstepd away &&
	run "$ALICE" sh -c "$PRINT; echo \${DW_WORKFLOW_TOKEN_FILE:-none}" >out && mv away bin/workflow-token-slurmstepd &&
	{ tail -n 1 "$CANARIES/minted" && echo none; } >expected && test_cmp expected out &&
	grep "its token is not renewed, because its file could not be written: .*step-program" slurmd-n?.log &&
	no_node_is_drained
'

test_done
