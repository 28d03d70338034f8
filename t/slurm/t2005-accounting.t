#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='Slurm: no token is in the accounting database, and rules for accounts and qualities of service work'

. "$(dirname "$0")/lib.sh"
need_slurm
for program in mariadbd mariadb-install-db mariadb-dump; do
	command -v $program >/dev/null || skip "no $program found: install the packages mariadb-server-core, mariadb-client"
done
for program in slurmdbd sacctmgr sacct; do
	command -v $program >/dev/null || skip "no $program found: install the packages slurmdbd, slurm-client"
done

# MariaDB checks no password: only its own user can reach the socket.
DATABASE=$PWD/database
export MYSQL_UNIX_PORT=$DATABASE/socket

# mariadb_up: starts MariaDB, and returns when it responds.
mariadb_up() {
	as "$CONTROLLER" env TMPDIR="$DATABASE" timeout 60 mariadb-install-db --no-defaults --datadir="$DATABASE/data" \
		--auth-root-authentication-method=normal --skip-test-db --skip-name-resolve >mariadb.log 2>&1 || return
	(become "$CONTROLLER" "$(type -P mariadbd)" --no-defaults --datadir="$DATABASE/data" --tmpdir="$DATABASE" \
		--socket="$MYSQL_UNIX_PORT" --pid-file="$DATABASE/pid" --skip-networking --skip-grant-tables \
		--innodb-buffer-pool-size=32M --innodb-log-file-size=16M) >>mariadb.log 2>&1 8>&- 9>&- &
	MARIADB=$!
	BESIDE+=("$MARIADB")
	eventually dump >/dev/null 2>&1
}

# dump: prints all databases, as text.
dump() {
	as "$CONTROLLER" timeout 60 mariadb-dump --no-defaults --all-databases --skip-extended-insert
}

# slurmdbd_up: starts slurmdbd, and returns when it responds. Its configuration must be in the
# directory of slurm.conf.
slurmdbd_up() {
	read -r DBD_PORT < <(free_ports 1)
	cat >slurmdbd.conf <<-EOT
		DbdHost=localhost
		DbdPort=$DBD_PORT
		SlurmUser=$CONTROLLER
		AuthType=auth/munge
		AuthInfo=socket=$MUNGE_SOCKET
		PidFile=$STATE/slurmdbd.pid
		LogFile=$STATE/slurmdbd.log
		DebugLevel=debug3
		StorageType=accounting_storage/mysql
		StorageHost=localhost
		StorageUser=$CONTROLLER
		StorageLoc=accounting
	EOT
	chmod 0600 slurmdbd.conf && chown "$CONTROLLER" slurmdbd.conf || return
	slurm_conf AccountingStorageType=accounting_storage/slurmdbd AccountingStorageHost=localhost \
		AccountingStoragePort="$DBD_PORT" AccountingStoragePass="$MUNGE_SOCKET" \
		AccountingStorageEnforce=associations,qos AccountingStoreFlags=job_comment,job_env,job_script
	(become "$CONTROLLER" "$(type -P slurmdbd)" -D) >>slurmdbd.out 2>&1 8>&- 9>&- &
	DBD=$!
	BESIDE+=("$DBD")
	eventually slurmdbd_is_up && ! is_gone "$DBD"
}

slurmdbd_is_up() {
	is_gone "$DBD" || manage show cluster 2>/dev/null
}

# manage …: runs sacctmgr without confirmation prompts.
manage() {
	timeout 60 sacctmgr --immediate "$@"
}

# prints TEXT ARGUMENTS…: succeeds if the task of a job prints TEXT.
prints() {
	local text=$1
	shift
	run "$ALICE" "$@" sh -c "$PRINT" >out && echo "$text" >expected && test_cmp expected out
}

cluster_prepare && mkdir -m 0700 "$DATABASE" && chown "$CONTROLLER" "$DATABASE" && munge_up && mariadb_up && slurmdbd_up >/dev/null &&
	DATABASE_UP=1
# slurmdbd 24.11 receives no result for its first query from MariaDB 11.8.9 of Debian 13.
! grep -qs "fatal: _check_mysql_concat_is_sane" slurmdbd.out || skip "slurmdbd does not run with this MariaDB: $(grep "error: mysql" slurmdbd.out)"

test_expect_success 'a cluster with a database starts' '
	test -n "$DATABASE_UP" &&
	manage add cluster "$CLUSTER" &&
	manage add account science,other &&
	manage add qos urgent &&
	manage add user "$ALICE" account=science,other defaultaccount=other &&
	manage modify user "$ALICE" set qos=normal,urgent defaultqos=normal &&
	mkdir shared && chmod 1777 shared &&
	token_file token >/dev/null && chown "$CONTROLLER" token &&
	rule "user = \"$ALICE\"" | site &&
	agent_up && cluster_up
'

test_expect_success 'jobs run with their tokens, also nested' '
	program "$PWD/shared/outer" <<-EOF &&
		#!/bin/sh
		# script-marker-$$
		export INNER=inner-marker-$$
		{ $PRINT; } >"$PWD/shared/outer.out"
		sbatch --parsable --wait -o "$PWD/shared/inner.out" --comment=comment-marker-$$ --wrap "$PRINT" >/dev/null
		srun sh -c "$PRINT" >"$PWD/shared/step.out"
		salloc srun sh -c "$PRINT" >"$PWD/shared/salloc.out"
	EOF
	id=$(OUTER=outer-marker-$$ batch "$ALICE" -o "$PWD/shared/log" "$PWD/shared/outer") &&
	eventually finished "$id" && test_debug "cat shared/log" &&
	for out in outer inner step salloc; do test_cmp token shared/$out.out || return; done
'

# stored: prints everything that sacct shows of all jobs: properties, environments and scripts.
stored() {
	timeout 60 sacct --allusers --starttime=now-1hour --parsable2 --format=ALL >stored/jobs &&
		ids=$(timeout 60 sacct --allusers --starttime=now-1hour --noheader --allocations --parsable2 --format=JobID) &&
		for id in $ids; do
			timeout 60 sacct --jobs="$id" --env-vars >"stored/env-$id" &&
				timeout 60 sacct --jobs="$id" --batch-script >"stored/script-$id" || return
		done
}

# has_stored: waits until the database contains the markers. slurmctld sends its data periodically.
has_stored() {
	stored && for name in script outer inner comment; do grep -rqF "$name-marker-$$" stored || return; done
}

test_expect_success 'the database stores environments, scripts and comments, and no token' '
	mkdir stored && eventually has_stored &&
	test_debug "ls -l stored" &&
	hides stored &&
	dump >dump && for name in script outer inner comment; do grep -qF "$name-marker-$$" dump || return; done &&
	hides dump
'

# rules: prints the rules of this part.
rules() {
	rule "account = \"science\""
	rule "qos = \"urgent\""
	rule "comment = \"with token\""
}

test_expect_success 'account: only jobs of this account receive the token' '
	rules | site && kill -HUP "$AGENT" && eventually has_lines 1 "was reloaded" agent.log &&
	token=$(cat token) &&
	prints "$token" -A science &&
	prints none -A other
'

test_expect_success 'account: the default account of the user counts' '
	prints none &&
	manage modify user "$ALICE" set defaultaccount=science && LONGEST=10 eventually prints "$token" &&
	manage modify user "$ALICE" set defaultaccount=other && LONGEST=10 eventually prints none
'

test_expect_success 'account: a user cannot use an account of others' '
	manage add account closed && ! run "$ALICE" -A closed true 2>err && grep "Invalid account" err
'

test_expect_success 'qos: only jobs of this quality of service receive the token' '
	prints "$token" -A other --qos=urgent &&
	prints none -A other --qos=normal
'

test_expect_success 'comment: only jobs with this comment receive the token' '
	prints "$token" -A other --comment="with token" &&
	prints none -A other --comment="without token"
'

# Releases that pass the quality of service to prologs.
case $RELEASE in 21.* | 22.* | 23.02*) ;; *) test_set_prereq QOS_IN_PROLOG ;; esac

test_expect_success !QOS_IN_PROLOG 'the prolog receives no quality of service: the agent looks it up' '
	sed -i "2i env >$STATE/prolog-env" prolog && prints "$token" -A other --qos=urgent &&
	grep SLURM_JOB_ACCOUNT=other "$STATE/prolog-env" && ! grep urgent "$STATE/prolog-env"
'

test_expect_success !QOS_IN_PROLOG 'the look-up fails: the job does not start' '
	: >none.conf && agent_down && SLURM_CONF=$PWD/none.conf agent_up &&
	! run "$ALICE" -A other --qos=urgent touch "$PWD/shared/started" 2>err &&
	test ! -e shared/started && test "$(grep -c "workflow-token: " err)" -eq 1 &&
	grep "its quality of service.* could not be looked up: squeue" agent.log &&
	agent_down && agent_up && prints "$token" -A other --qos=urgent && no_node_is_drained
'

test_expect_success 'no token is in the files of the database or in any log' '
	slurmctld_down && kill "$MARIADB" && wait "$MARIADB" &&
	grep -rqaF "outer-marker-$$" "$DATABASE" && grep -rqaF "inner-marker-$$" "$DATABASE" &&
	hides "$DATABASE" "$STATE" slurmdbd.out mariadb.log slurmctld.out slurmd-n1.log slurmd-n2.log agent.log
'

test_done
