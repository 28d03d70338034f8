#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='Slurm: a backup controller takes over while jobs run, and each job receives its token'

. "$(dirname "$0")/lib.sh"
need_slurm
test "$(id -u)" -eq 0 || skip "not root: two controllers need two host names"
unshare --uts --mount true 2>/dev/null || skip "unshare does not work here: two controllers need two host names"

# The controllers of this machine share a port: ctl1 at 127.0.0.1, and its backup ctl2 at 127.0.0.2.
PRIMARY='ctl1(127.0.0.1)'
declare -A CTLD

# controller_up HOST: starts slurmctld with that host name, and returns when it responds.
controller_up() {
	# shellcheck disable=SC2016
	unshare --uts --mount sh -c '
		hostname "$1" && mount --bind "$2/hosts" /etc/hosts || exit
		exec setpriv --reuid="$3" --regid="$(id -g "$3")" --clear-groups "$4" -D -f "$2/$1.conf" -i
	' - "$1" "$PWD" "$CONTROLLER" "$(type -P slurmctld)" >>"$1.out" 2>&1 8>&- 9>&- &
	CTLD[$1]=$!
	BESIDE+=($!)
	eventually answers "$1"
}

# answers HOST: succeeds if its slurmctld responds, in control or not.
answers() {
	scontrol ping | grep -q "at $1 is UP"
}

# controller_down HOST [SIGNAL]
controller_down() {
	kill -s "${2:-TERM}" "${CTLD[$1]}" && { wait "${CTLD[$1]}" 2>/dev/null || :; }
}

# took_control HOST COUNT: succeeds if it took control at least this often.
took_control() {
	has_lines "$2" "Running as primary controller" "$STATE/$1.log"
}

# works: succeeds if a job receives its token.
works() {
	run "$ALICE" sh -c "$PRINT" >out 2>err && test_cmp token out
}

# start_job NAME: starts a batch job that prints its token, and in a step once more after a line in the FIFO `go`.
# Returns when it has printed the first one, and is_saved. Sets id.
start_job() {
	id=$(batch "$ALICE" -J "$1" -o "$PWD/shared/$1" --wrap "$PRINT; read go <$PWD/shared/go; srun sh -c \"$PRINT\"") &&
		eventually grep -qF -f token "shared/$1" && is_saved "$1"
}

# is_saved NAME: waits until the state of slurmctld on disk contains the current state of the job `id`.
is_saved() {
	scontrol update JobId="$id" Comment="saved-$1" && eventually grep -qaF "saved-$1" "$STATE/save/job_state"
}

# end_job NAME: makes the job print its token again, on a node without its record.
end_job() {
	rm -f cache/* && echo >shared/go && eventually finished "$id" &&
		cat token token >expected && test_cmp expected "shared/$1"
}

test_expect_success 'a cluster with two controllers starts' '
	cluster_prepare &&
	slurm_conf "SlurmctldHost=ctl2(127.0.0.2)" CommunicationParameters=NoCtldInAddrAny SlurmctldTimeout=6 \
		DebugFlags=NO_CONF_HASH &&
	printf "127.0.0.1 localhost ctl1\n127.0.0.2 ctl2\n" >hosts &&
	for host in ctl1 ctl2; do
		sed "s,^Slurmctld\(Pid\|Log\)File=.*/slurmctld,Slurmctld\1File=$STATE/$host," slurm.conf >$host.conf || return
	done &&
	mkdir shared && chmod 1777 shared && mkfifo shared/go && chmod 0666 shared/go &&
	token_file token >/dev/null && chown "$CONTROLLER" token &&
	rule "user = \"$ALICE\"" "partition = \"debug\"" | site &&
	munge_up && agent_up &&
	controller_up ctl1 && slurmd_up n1 && slurmd_up n2 && eventually all_idle &&
	controller_up ctl2 && works
'

test_expect_success 'the primary is killed: a running job starts its next step with its token' '
	start_job during &&
	controller_down ctl1 KILL && eventually took_control ctl2 1 &&
	end_job during
'

test_expect_success 'a new job receives its token through the backup' '
	! answers ctl1 && works
'

test_expect_success 'a job that no rule matches runs without a token' '
	run "$ALICE" -p other sh -c "$PRINT" >out && echo none >expected && test_cmp expected out
'

test_expect_success 'the primary takes control back, also of a running job' '
	start_job back &&
	controller_up ctl1 && eventually took_control ctl1 2 &&
	works && end_job back && answers ctl2
'

# Slurm 22.05 kills each PrologSlurmctld of a backup that takes control a second time.
test_expect_success 'the backup is restarted' '
	controller_down ctl2 && controller_up ctl2 && works
'

# second_agent_up: starts the agent of ctl2, at the port `other`.
second_agent_up() {
	local AGENT
	SITE=$PWD/ctl2.toml AGENT_PORT=$other agent_up && SECOND_AGENT=$AGENT && BESIDE+=("$AGENT")
}

# The agent of each controller has its own socket and store. Nodes contact the agent of ctl1 first.
test_expect_success 'each controller has its own agent' '
	read -r other < <(free_ports 1) &&
	agent_down &&
	sed -i "s,^servers = .*,servers = [\"127.0.0.1:$AGENT_PORT\"\, \"127.0.0.1:$other\"]," "$SITE" &&
	cp "$SITE" ctl1.toml &&
	sed "s,$PWD/agent/,$PWD/agent/ctl2-,; s,^listen = .*,listen = \"127.0.0.1:$other\"," "$SITE" >ctl2.toml &&
	program prolog <<-EOF &&
		#!/bin/sh
		exec "$PWD/bin/workflow-token-slurmctld" --config="$PWD/\$(hostname).toml"
	EOF
	second_agent_up && SITE=$PWD/ctl1.toml agent_up &&
	works && eventually is_empty agent/ctl2-store
'

test_expect_success 'a job that runs while the backup takes over receives its token from the earlier agent' '
	start_job agents && test -e "agent/store/job-$id" && test ! -e "agent/ctl2-store/job-$id" &&
	controller_down ctl1 KILL && eventually took_control ctl2 2 &&
	end_job agents
'

test_expect_success 'a new job receives its token from the agent of the backup' '
	start_job new && test -e "agent/ctl2-store/job-$id" && test ! -e "agent/store/job-$id" &&
	end_job new
'

test_expect_success 'the primary takes control back from a backup with an agent' '
	start_job again &&
	controller_up ctl1 && eventually took_control ctl1 3 &&
	works && end_job again &&
	controller_down ctl2 && controller_up ctl2
'

test_expect_success 'a job whose agent is down with its controller fails with a one-line error, and others run' '
	start_job gone &&
	agent_down KILL && controller_down ctl1 KILL && eventually took_control ctl2 3 &&
	rm -f cache/* && echo >shared/go && eventually finished "$id" &&
	test_debug "cat shared/gone" &&
	test "$(grep -cF -f token shared/gone)" -eq 1 &&
	test "$(grep -c "workflow-token: .*could not be delivered" shared/gone)" -eq 1 &&
	grep "agent-unavailable" slurmd-n?.log &&
	works && no_node_is_drained
'

test_expect_success 'both controllers are back, and their agents share a directory' '
	SITE=$PWD/ctl1.toml agent_up && controller_up ctl1 && eventually took_control ctl1 4 &&
	controller_down ctl2 && controller_up ctl2 &&
	kill "$SECOND_AGENT" && { wait "$SECOND_AGENT" 2>/dev/null || :; } &&
	sed -i "s,ctl2-store,store," ctl2.toml && second_agent_up && works
'

test_expect_success 'a job that the backup requeues receives a new token' '
	program "$PWD/shared/wait" <<-EOF &&
		#!/bin/sh
		{ $PRINT; } >>"$PWD/shared/requeued"
		test "\$SLURM_RESTART_COUNT" = 1 || exec sleep 600
	EOF
	id=$(batch "$ALICE" --requeue -o /dev/null "$PWD/shared/wait") &&
	eventually test -s shared/requeued && is_saved requeued &&
	controller_down ctl1 KILL && eventually took_control ctl2 4 && works &&
	cp token former && token_file token >/dev/null && chown "$CONTROLLER" token &&
	requeue "$id" && LONGEST=300 eventually has_lines 2 . shared/requeued &&
	cat former token >expected && test_cmp expected shared/requeued
'

test_expect_success 'at the end no node is drained, and no node has a record' '
	controller_up ctl1 && eventually took_control ctl1 5 && works &&
	no_node_is_drained && eventually is_empty cache
'

test_done
