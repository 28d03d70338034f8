#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='Slurm: after any fault, no job starts without its token, each reports the reason in one line, and no node is drained'

. "$(dirname "$0")/lib.sh"
need_slurm

TIMEOUT=3s

# fails TEXT ARGUMENTS…: succeeds if a job of the user does not start and prints one line,
# which contains that text.
fails() {
	local text=$1
	shift
	rm -f shared/started
	! run "$ALICE" "$@" touch "$PWD/shared/started" >out 2>err &&
		! test -e shared/started &&
		grep "workflow-token: .*$text" err &&
		test "$(grep -c "workflow-token: " err)" -eq 1 &&
		no_node_is_drained
}

# all_ended: succeeds if no job is left.
all_ended() {
	local jobs
	jobs=$(squeue --noheader) && test -z "$jobs"
}

# no_records: succeeds if no job in the file `ids` has a record.
no_records() {
	local id
	for id in $(cat ids); do test ! -e "agent/store/job-$id" || return; done
}

works() {
	run "$ALICE" sh -c "$PRINT" >out && test_cmp token out
}

test_expect_success 'a cluster starts' '
	cluster_prepare &&
	mkdir shared && chmod 1777 shared &&
	token_file token >/dev/null && chown "$CONTROLLER" token &&
	rule "user = \"$ALICE\"" "partition = \"debug\"" | site &&
	munge_up && agent_up && cluster_up && works
'

test_expect_success 'the source provides no token' '
	mv token away &&
	fails "source-failed" -N2 -n2 &&
	mv away token && works
'

test_expect_success 'the agent logs the job and the cause' '
	grep "no workflow token was delivered: .*token: .*No such file.*\[source-failed\]" agent.log
'

test_expect_success 'the agent is down: a job that a rule may match fails' '
	agent_down &&
	fails "could not be delivered.*\[agent-unavailable\]" &&
	grep "agent-unavailable" slurmd-n?.log
'

test -z "$BOB" || test_set_prereq TWO_USERS
test_expect_success TWO_USERS 'and jobs of other users run' '
	run "$BOB" sh -c "$PRINT" >out && grep none out
'

test_expect_success 'the agent is back: the next job receives its token' '
	agent_up && works
'

test_expect_success 'the agent is killed: the records of running jobs survive' '
	mkfifo shared/go && chmod 0666 shared/go &&
	id=$(batch "$ALICE" -o "$PWD/shared/out" --wrap "$PRINT; read go <$PWD/shared/go; srun -N1 sh -c \"$PRINT\"") &&
	eventually grep -qF -f token shared/out &&
	agent_down KILL && agent_up && rm -f cache/* &&
	echo >shared/go &&
	eventually finished "$id" &&
	cat token token >expected && test_cmp expected shared/out
'

test_expect_success 'the agent is stopped: a job fails in time' '
	kill -STOP "$AGENT" &&
	fails "could not be delivered.*\[agent-unavailable\]" &&
	kill -CONT "$AGENT" && works
'

# The plugin uses its own munged here, with the key of the other one.
test_expect_success 'munged of a node is down: a job fails, and others run once it is back' '
	sed "s,^munge-socket.*,munge-socket = \"$PWD/node/munge.socket\"," "$SITE" >node.toml &&
	mkdir -p node && cp -p munge.key node &&
	sed -i "s/config=.*/config=$(printf %s "$PWD" | sed "s,/,\\\\/,g")\/node.toml/" plugstack.conf &&
	fails "could not be delivered.*\[node-failed\]" &&
	grep "munged running on this node.*\[node-failed\]" slurmd-n?.log &&
	main=$MUNGED && MUNGE_SOCKET=$PWD/node/munge.socket munge_up && works &&
	munge_kill && MUNGED=$main &&
	sed -i "s/node.toml/site.toml/" plugstack.conf && works
'

test_expect_success 'the configuration of a node is invalid' '
	cp "$SITE" right.toml &&
	sed "s/^source = .*/source = \"none\"/" right.toml >"$SITE" &&
	fails "could not be delivered.*\[node-failed\]" &&
	grep "workflow-token.rule\[0\].source" slurmd-n?.log &&
	cp right.toml "$SITE" && works
'

test_expect_success 'the agent rejects an invalid configuration' '
	sed "s/^source = .*/source = \"none\"/" right.toml >"$SITE" &&
	kill -HUP "$AGENT" &&
	eventually grep "the former configuration stays" agent.log &&
	cp right.toml "$SITE" && works &&
	kill -HUP "$AGENT" &&
	eventually grep "was reloaded" agent.log && works
'

test_expect_success 'the agent cannot store records' '
	mkdir -p agent/store && mv agent/store agent/away && : >agent/store &&
	fails "could not be delivered" &&
	grep "store-failed" agent.log &&
	rm agent/store && mv agent/away agent/store && works
'

test_expect_success 'slurmctld is restarted while a job runs' '
	rm -f shared/out &&
	id=$(batch "$ALICE" -o "$PWD/shared/out" --wrap "$PRINT; read go <$PWD/shared/go; srun -N1 sh -c \"$PRINT\"") &&
	eventually grep -qF -f token shared/out &&
	slurmctld_down && slurmctld_up && works &&
	echo >shared/go &&
	eventually finished "$id" &&
	cat token token >expected && test_cmp expected shared/out && works
'

test_expect_success 'a hung source: Slurm responds, the job fails, and jobs of other rules run' '
	program slow <<-\EOF &&
		#!/bin/sh
		exec sleep 600
	EOF
	{
		printf "\n[[workflow-token.rule]]\nsource = \"command\"\ncommand = [\"%s/slow\"]\npartition = \"other\"\n" "$PWD"
		rule "user = \"$ALICE\"" "partition = \"debug\""
	} | site &&
	kill -HUP "$AGENT" && eventually has_lines 2 "was reloaded" agent.log &&
	id=$(batch "$ALICE" -p other -o "$PWD/shared/slow.out" --wrap "touch $PWD/shared/slow-started") &&
	works && squeue >/dev/null &&
	eventually finished "$id" &&
	! test -e shared/slow-started && grep "\[\(source\|agent\)-timeout\]" shared/slow.out &&
	no_node_is_drained
'

# are_configuring COUNT: succeeds if this number of jobs in the partition `other` wait for
# their prolog.
are_configuring() {
	test "$(squeue --noheader --partition=other --states=CONFIGURING --format=%A | wc -l)" -eq "$1"
}

test_expect_success 'all cores of a node wait for a hung source: Slurm responds, and jobs of other rules run' '
	program slow <<-EOF &&
		#!/bin/sh
		until test -e "$PWD/released"; do sleep 0.1; done
		exit 1
	EOF
	cp "$SITE" right.toml && sed "s/^timeout = .*/timeout = \"60s\"/" right.toml >"$SITE" &&
	kill -HUP "$AGENT" && eventually has_lines 3 "was reloaded" agent.log &&
	for n in $(seq 16); do batch "$ALICE" -p other -w n1 -o /dev/null --wrap "touch $PWD/shared/late" || return; done >ids &&
	eventually are_configuring 16 &&
	works && are_configuring 16 &&
	: >released && eventually all_ended &&
	! test -e shared/late && no_node_is_drained &&
	cp right.toml "$SITE" && kill -HUP "$AGENT" && eventually has_lines 4 "was reloaded" agent.log && works
'

test "$(id -u)" -ne 0 || ! mkdir full || ! mount -t tmpfs -o size=16k,mode=0700,uid="$(id -u "$CONTROLLER")" none full 2>/dev/null ||
	test_set_prereq SMALL_DISK
cleanup 'umount -l "$base/cluster/full" 2>/dev/null'

test_expect_success SMALL_DISK 'the disk of the store is full' '
	agent_down && cp "$SITE" right.toml &&
	sed -i "s,^store = .*,store = \"$PWD/full\"," "$SITE" && agent_up && works && eventually is_empty full &&
	{ head -c 1000000 /dev/zero >full/fill 2>/dev/null; true; } &&
	fails "could not be delivered" &&
	grep "No space left.*\[store-failed\]" agent.log &&
	rm full/fill && works &&
	agent_down && cp right.toml "$SITE" && agent_up && works
'

test_expect_success 'many jobs at once: each receives its token, and Slurm responds' '
	rm -rf shared/many && mkdir -m 1777 shared/many &&
	program many <<-EOF &&
		#!/bin/sh
		for n in \$(seq ${WORKFLOW_TOKEN_TEST_JOBS:-1000}); do
			sbatch --parsable -o "$PWD/shared/many/%j" --wrap "printenv DW_WORKFLOW_TOKEN" || exit
		done
	EOF
	as "$ALICE" ./many >ids &&
	squeue --noheader >/dev/null &&
	LONGEST=300 eventually all_ended &&
	for id in $(cat ids); do test_cmp token "shared/many/$id" || return; done &&
	eventually no_records && no_node_is_drained
'

test_expect_success 'two agents: jobs receive their tokens if one agent is down or does not know the job' '
	read -r other < <(free_ports 1) && cp "$SITE" right.toml && first=$AGENT &&
	sed "s,$PWD/agent/,$PWD/agent/other-,; s,:$AGENT_PORT\"\$,:$other\"," right.toml >other.toml &&
	sed -i "s,^servers = .*,servers = [\"127.0.0.1:$other\"\, \"127.0.0.1:$AGENT_PORT\"]," "$SITE" && works &&
	(SITE=$PWD/other.toml AGENT_PORT=$other && agent_up && echo "$AGENT" >other.pid) && works &&
	grep "job .* has no record" agent.log &&
	kill "$(cat other.pid)" && eventually is_gone "$(cat other.pid)" && works &&
	cp right.toml "$SITE" && works
'

test_expect_success 'at the end no node is drained' '
	no_node_is_drained && works
'

test_done
