#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='Slurm: every kind of job receives its token, and no other job does'

. "$(dirname "$0")/lib.sh"
need_slurm

test_expect_success 'a cluster starts with the plugin' '
	cluster_prepare &&
	token_file token >/dev/null &&
	chown "$CONTROLLER" token &&
	{
		rule "user = \"$ALICE\"" "partition = \"debug\""
		rule "user = \"$ALICE\"" "partition = \"wide\""
	} | site &&
	read -r third fourth < <(free_ports 2) &&
	slurm_conf "NodeName=n3 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$third CPUs=16" \
		"NodeName=n4 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$fourth CPUs=16" \
		"PartitionName=wide Nodes=n[1-4] State=UP OverSubscribe=YES" &&
	munge_up &&
	agent_up &&
	cluster_up && slurmd_up n3 && slurmd_up n4
'

test_expect_success 'srun: each task on two nodes has the token' '
	run "$ALICE" -N2 -n3 sh -c "$PRINT" >out &&
	cat token token token >expected &&
	test_cmp expected out
'

test_expect_success 'no task has variables or descriptors of the plugin' '
	run "$ALICE" --export=NONE /bin/sh -c "/usr/bin/env; /bin/ls -l /proc/self/fd" >out &&
	grep -qF -f token out &&
	! grep "^WORKFLOW_TOKEN_\|socket:\|site.toml\|cache\|munge" out
'

test_expect_success 'a job that no rule matches runs without a token' '
	run "$ALICE" -p other sh -c "$PRINT" >out &&
	echo none >expected &&
	test_cmp expected out
'

test -z "$BOB" || test_set_prereq TWO_USERS
test_expect_success TWO_USERS 'a job of another user runs without a token' '
	run "$BOB" sh -c "$PRINT" >out &&
	echo none >expected &&
	test_cmp expected out
'

test_expect_success 'sbatch: the script and its steps have the token' '
	mkdir -p shared && chmod 1777 shared &&
	id=$(batch "$ALICE" -o "$PWD/shared/batch.out" --wrap "$PRINT; srun sh -c \"$PRINT\"; srun -N1 sh -c \"$PRINT\"") &&
	eventually finished "$id" &&
	cat token token token >expected &&
	test_cmp expected shared/batch.out
'

test_expect_success 'salloc with srun' '
	as "$ALICE" timeout 60 salloc -N2 srun sh -c "$PRINT" >out 2>err &&
	cat token token >expected &&
	test_cmp expected out
'

test_expect_success '--export=NONE' '
	run "$ALICE" --export=NONE /bin/sh -c "/usr/bin/$PRINT" >out &&
	test_cmp token out
'

test_expect_success 'a variable that the user sets is replaced' '
	DW_WORKFLOW_TOKEN=mine run "$ALICE" sh -c "$PRINT" >out &&
	test_cmp token out &&
	run "$ALICE" --export=ALL,DW_WORKFLOW_TOKEN=mine sh -c "$PRINT" >out &&
	test_cmp token out
'

test_expect_success 'each task of an array' '
	id=$(batch "$ALICE" --array=1-3 -o "$PWD/shared/array-%a.out" --wrap "$PRINT") &&
	eventually finished "$id" &&
	for task in 1 2 3; do test_cmp token "shared/array-$task.out" || return; done
'

test_expect_success 'each component of a heterogeneous job' '
	run "$ALICE" -N1 sh -c "$PRINT" : -N1 sh -c "$PRINT" >out &&
	cat token token >expected &&
	test_cmp expected out
'

test_expect_success 'each component of a heterogeneous job of several nodes' '
	as "$ALICE" timeout 60 salloc -p wide -N2 -n2 : -p wide -N2 -n2 srun --het-group=0,1 sh -c "$PRINT" >out 2>err &&
	cat token token token token >expected && test_cmp expected out &&
	program "$PWD/shared/het" <<-EOF &&
		#!/bin/sh
		#SBATCH --partition=wide --nodes=2 --ntasks=2
		#SBATCH hetjob
		#SBATCH --partition=wide --nodes=2 --ntasks=2
		srun --het-group=0 sh -c "$PRINT"
		srun --het-group=1 sh -c "$PRINT"
		echo >"$PWD/shared/ready"
		read go <"$PWD/shared/go"
	EOF
	mkfifo shared/go && chmod 0666 shared/go &&
	id=$(batch "$ALICE" -o "$PWD/shared/het.out" "$PWD/shared/het") && eventually test -s shared/ready &&
	for part in "$id" "$((id + 1))"; do test -s "agent/store/job-$part" && test -s "cache/job-$part" || return; done &&
	echo >shared/go && eventually finished "$id" &&
	test_cmp expected shared/het.out
'

test_expect_success 'a requeued job receives a new token' '
	program "$PWD/shared/wait" <<-EOF &&
		#!/bin/sh
		{ $PRINT; } >>"$PWD/shared/requeued"
		test "\$SLURM_RESTART_COUNT" = 1 || exec sleep 600
	EOF
	id=$(batch "$ALICE" --requeue -o /dev/null "$PWD/shared/wait") &&
	eventually test -s shared/requeued &&
	token_file token >/dev/null && chown "$CONTROLLER" token &&
	requeue "$id" && LONGEST=300 eventually grep -qF -f token shared/requeued &&
	eventually finished "$id" &&
	test "$(wc -l <shared/requeued)" -eq 2
'

test_expect_success 'a node sends one request for all steps of a job' '
	as "$ALICE" timeout 60 salloc --no-shell -N2 2>err &&
	id=$(sed -n "s/.*Granted job allocation //p" err) &&
	run "$ALICE" --jobid="$id" -N2 sh -c "$PRINT" >out &&
	kill -STOP "$AGENT" &&
	for step in 1 2 3; do run "$ALICE" --jobid="$id" -N2 sh -c "$PRINT" >>out || break; done;
	kill -CONT "$AGENT" &&
	test "$(grep -cF -f token out)" -eq 8 &&
	scancel "$id"
'

test_expect_success 'a nested job has its own token, and the outer one is not sent' '
	program "$PWD/shared/outer" <<-EOF &&
		#!/bin/sh
		sbatch --parsable --wait -p other -o "$PWD/shared/inner.out" --wrap "$PRINT" >/dev/null
		sbatch --parsable --wait -o "$PWD/shared/inner2.out" --wrap "$PRINT" >/dev/null
	EOF
	id=$(batch "$ALICE" -o "$PWD/shared/outer.out" "$PWD/shared/outer") &&
	eventually finished "$id" &&
	echo none >expected &&
	test_cmp expected shared/inner.out &&
	test_cmp token shared/inner2.out
'

# make_bundle: makes a bundle for runc in shared/bundle, whose container has the programs of
# this machine.
make_bundle() {
	mkdir -p shared/bundle/rootfs oci && chown "$ALICE" shared/bundle shared/bundle/rootfs oci &&
		mkdir -p shared/bundle/rootfs/{bin,dev,lib,lib64,proc,sys,usr} &&
		as "$ALICE" env -C shared/bundle runc spec --rootless &&
		python3 -c "
import json
config = json.load(open('shared/bundle/config.json'))
config['process'].update(terminal=False, args=['/bin/true'])
# Not every machine lets users mount control groups.
config['mounts'] = [mount for mount in config['mounts'] if mount['destination'] != '/sys/fs/cgroup'] + [
    {'destination': path, 'type': 'none', 'source': path, 'options': ['rbind', 'ro']} for path in ('/bin', '/lib', '/lib64', '/usr')]
json.dump(config, open('shared/bundle/config.json', 'w'))" &&
		as "$ALICE" runc --rootless=true --root="$PWD/oci" run --bundle "$PWD/shared/bundle" trial
}

# oci_conf: configures Slurm to start containers with runc.
oci_conf() {
	cat >oci.conf <<-EOF
		RunTimeQuery="runc --rootless=true --root=$PWD/oci state %n.%u.%j.%s.%t"
		RunTimeKill="runc --rootless=true --root=$PWD/oci kill -a %n.%u.%j.%s.%t"
		RunTimeDelete="runc --rootless=true --root=$PWD/oci delete --force %n.%u.%j.%s.%t"
		RunTimeRun="runc --rootless=true --root=$PWD/oci run %n.%u.%j.%s.%t -b %b"
	EOF
}

! command -v runc >/dev/null || ! make_bundle >runc.log 2>&1 || test_set_prereq RUNC
test_expect_success RUNC 'a container of a job that no rule matches runs' '
	oci_conf && run "$ALICE" -p other --container="$PWD/shared/bundle" sh -c "$PRINT; id -u" >out 2>err &&
	printf "none\n0\n" >expected && test_cmp expected out
'

test_expect_success RUNC 'a container of a job that needs a token does not start, with a one-line error' '
	for export in ALL NONE SLURM_CONTAINER=; do
		! run "$ALICE" --export=$export --container="$PWD/shared/bundle" sh -c "$PRINT" >out 2>err && test ! -s out &&
			test "$(grep -c "workflow-token: .*start it without --container" err)" -eq 1 || return
	done &&
	id=$(batch "$ALICE" --container="$PWD/shared/bundle" -o "$PWD/shared/container.out" --wrap "$PRINT") &&
	eventually finished "$id" &&
	grep "workflow-token: .*start it without --container" shared/container.out &&
	hides shared/bundle shared/container.out spool-n1 spool-n2 oci slurmd-n1.log slurmd-n2.log && no_node_is_drained
'

test_expect_success 'at the end no node is drained and no record is left' '
	no_node_is_drained &&
	eventually is_empty agent/store &&
	eventually is_empty cache
'

test_done
