#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='Slurm: the token is only in the environment of the tasks, and nobody else can obtain it'

. "$(dirname "$0")/lib.sh"
need_slurm

test_expect_success 'a cluster starts, and logs as much as it can' '
	cluster_prepare && cp "$TESTS/slurm/ask.py" bin &&
	slurm_conf DebugFlags=MPI,Steps,Protocol,Script PrologFlags=Alloc &&
	mkdir shared && chmod 1777 shared &&
	token_file token >/dev/null && chown "$CONTROLLER" token &&
	rule "user = \"$ALICE\"" | site &&
	munge_up && agent_up && cluster_up
'

test "$(id -u)" -ne 0 || test_set_prereq ROOT

# sniff_up: records all packets of the loopback interface from now on.
sniff_up() {
	"$TESTS/slurm/sniff.py" packets 8>&- 9>&- &
	SNIFFER=$!
	eventually test -e packets
}
cleanup 'test -z "$SNIFFER" || kill "$SNIFFER" 2>/dev/null'

test_expect_success 'jobs of each kind run, also nested' '
	run "$ALICE" -N2 sh -c "$PRINT" >out && test "$(grep -cF -f token out)" -eq 2 &&
	{ ! test_have_prereq ROOT || sniff_up; } &&
	mkfifo shared/go && chmod 0666 shared/go &&
	program "$PWD/shared/outer" <<-EOF &&
		#!/bin/sh
		export MARK=sent-in-clear-$$
		printenv DW_WORKFLOW_TOKEN | wc -c >"$PWD/shared/outer.out"
		sbatch --parsable --wait -o /dev/null --wrap "exit 0" >/dev/null
		srun true
		salloc true
		echo >"$PWD/shared/ready"
		read go <"$PWD/shared/go"
	EOF
	id=$(batch "$ALICE" -o /dev/null "$PWD/shared/outer") &&
	eventually test -s shared/ready
'

test_expect_success 'Slurm does not report the token with the job' '
	scontrol show job "$id" -dd >shown &&
	scontrol show jobs -dd >>shown &&
	scontrol write batch_script "$id" - >>shown &&
	scontrol show config >>shown &&
	hides shown
'

test_expect_success 'nor is it in the state, the spool, any log, the store or the caches' '
	test -n "$(ls agent/store)" && test -n "$(ls cache)" &&
	hides "$STATE" spool-n1 spool-n2 slurmd-n1.log slurmd-n2.log agent agent.log cache munged.log \
		slurmctld.out slurmd.out
'

test_expect_success ROOT 'nor in messages of srun, sbatch and salloc from within the job' '
	kill "$SNIFFER" && SNIFFER= &&
	grep -qaF "sent-in-clear-$$" packets &&
	hides packets
'

test_expect_success 'nor in the arguments or the environment of other processes' '
	tasks=$(pgrep -f "$PWD/shared/outer|shared/go|slurm_script" | paste -sd,) &&
	hides "proc:$tasks"
'

test_expect_success 'the search finds the token in a known place' '
	"$TESTS/search.py" token token
'

test -z "$BOB" || test_set_prereq TWO_USERS

# ask USER JOBID UID NODE [COUNT]: prints the response of the agent to a
# request.
ask() {
	as "$1" "$PWD/bin/ask.py" "$MUNGE_SOCKET" "$AGENT_PORT" "$(id -u "$CONTROLLER")" "$CLUSTER" "${@:2}"
}

test_expect_success 'the agent answers a node of the job' '
	node=$(squeue --noheader --jobs="$id" --format=%N) &&
	echo Record >expected &&
	ask "$(id -un)" "$id" "$(id -u "$ALICE")" "$node" >out && test_cmp expected out
'

test_expect_success 'but no other node, no other job, and no repeated request' '
	test "$node" = n1 && other=n2 || other=n1 &&
	echo Unknown >expected &&
	ask "$(id -un)" "$id" "$(id -u "$ALICE")" "$other" >out && test_cmp expected out &&
	ask "$(id -un)" "$id" "$(id -u "$ALICE")" n3 >out && test_cmp expected out &&
	ask "$(id -un)" "$id" 4711 "$node" >out && test_cmp expected out &&
	ask "$(id -un)" 4000000000 "$(id -u "$ALICE")" "$node" >out && test_cmp expected out &&
	CLUSTER=other ask "$(id -un)" "$id" "$(id -u "$ALICE")" "$node" >out && test_cmp expected out &&
	printf "Record\nUnknown\nUnknown\n" >expected &&
	ask "$(id -un)" "$id" "$(id -u "$ALICE")" "$node" 3 >out && test_cmp expected out &&
	grep "does not run on node n3" agent.log && grep "was received before" agent.log
'

test_expect_success TWO_USERS 'and only requests of root' '
	echo Unknown >expected &&
	ask "$BOB" "$id" "$(id -u "$ALICE")" "$node" >out && test_cmp expected out &&
	ask "$ALICE" "$id" "$(id -u "$ALICE")" "$node" >out && test_cmp expected out &&
	grep "only root may ask" agent.log
'

test_expect_success 'the agent rejects malformed input and continues to serve' '
	head -c 100000 /dev/urandom >noise &&
	printf "\377\377\377\377" >long &&
	for file in noise long /dev/null; do
		timeout 20 bash -c "cat <$file >&3; cat <&3" 3<>"/dev/tcp/127.0.0.1/$AGENT_PORT" >/dev/null 2>&1
	done;
	echo Record >expected &&
	ask "$(id -un)" "$id" "$(id -u "$ALICE")" "$node" >out && test_cmp expected out
'

test_expect_success 'only root can read the record, on the node and on the controller' '
	test "$(stat -c %a cache)" = 700 && test "$(stat -c %a agent/store)" = 700 &&
	for file in cache/* agent/store/*; do test "$(stat -c %a "$file")" = 600 || return; done
'

test_expect_success TWO_USERS 'no other user can open a copied record, not even root' '
	python3 -c "import json, sys; print(json.load(open(sys.argv[1]))[\"credential\"])" "cache/job-$id" >credential &&
	for user in "$BOB" root "$CONTROLLER"; do
		test_must_fail as "$user" unmunge -S "$MUNGE_SOCKET" <credential >opened 2>&1 &&
			grep "Unauthorized" opened && hides opened || return
	done
'

test_expect_success 'variables of the user have no effect' '
	for name in SLURM_JOB_UID SLURM_JOB_PARTITION SLURM_JOB_ACCOUNT SLURM_CLUSTER_NAME SLURMD_NODENAME SPANK_CONFIG \
		SPANK_SLURM_JOB_UID DW_WORKFLOW_TOKEN; do
		(export "$name=1" && run "$ALICE" -N1 sh -c "$PRINT") >out && test_cmp token out || return
	done
'

test_expect_success 'the end' '
	echo >shared/go &&
	eventually finished "$id" &&
	no_node_is_drained &&
	eventually is_empty cache
'

test_done
