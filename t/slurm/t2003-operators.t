#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='Slurm: doctor reports the setup, and show reports the tokens of a job'

. "$(dirname "$0")/lib.sh"
need_slurm
CLI=$STAGE/bin/workflow-token

# doctor [ARGUMENT…]
doctor() {
	"$CLI" doctor --config "$SITE" "$@" >found 2>&1
}

test_expect_success 'a cluster starts, and doctor reports no errors' '
	cluster_prepare && mkdir shared && chmod 1777 shared &&
	token_file token >/dev/null && chown "$CONTROLLER" token &&
	rule "user = \"$ALICE\"" | site &&
	munge_up && agent_up && cluster_up &&
	{ doctor; test_debug "cat found"; } && grep "^ok .*cluster $CLUSTER" found && ! grep "^fail" found
'

test_expect_success 'show: the variables of a job, without values' '
	mkfifo shared/go && chmod 0666 shared/go &&
	id=$(batch "$ALICE" -o /dev/null --wrap "read go <$PWD/shared/go") &&
	eventually test -s "cache/job-$id" &&
	"$CLI" show --config "$SITE" "$id" >shown && grep "^variables *DW_WORKFLOW_TOKEN$" shown &&
	grep "^for *$ALICE" shown && hides shown &&
	"$CLI" show --config "$SITE" --json "$id" >shown && hides shown &&
	mv agent/store away && mkdir agent/store && "$CLI" show --config "$SITE" "$id" >shown && grep "DW_WORKFLOW_TOKEN" shown &&
	rmdir agent/store && mv away agent/store &&
	echo >shared/go && eventually finished "$id" && eventually is_empty cache &&
	test_must_fail "$CLI" show --config "$SITE" "$id" 2>err && grep "there is no record" err &&
	test_must_fail "$CLI" show --config "$SITE" abc 2>err && grep "not a job id" err
'

# A job has run since, so the agent has served those connections.
test_expect_success 'the agent does not log the connections of doctor' '
	grep "^ok .*an agent listens at" found && test_expect_code 1 grep "a request of the controller" agent.log
'

test_expect_success 'doctor names what is missing' '
	cp plugstack.conf right && : >plugstack.conf &&
	test_must_fail doctor && grep "^fail .*does not name workflow-token-spank.so" found &&
	sed "s/^required/optional/" right >plugstack.conf && doctor && grep "^warn .*start without their token" found &&
	cp right plugstack.conf &&
	agent_down && test_must_fail doctor && grep "^fail .*the agent at 127.0.0.1:$AGENT_PORT cannot be reached" found &&
	agent_up &&
	sed "s/^cluster = .*/cluster = \"other\"/" "$SITE" >other.toml &&
	test_must_fail "$CLI" doctor --config other.toml >found && grep "^fail .*ClusterName=$CLUSTER" found &&
	sed "s/workflow-token-slurmstepd/missing/" "$SITE" >other.toml &&
	"$CLI" doctor --config other.toml >found && grep "^warn .*$PWD/bin/missing, the key step-program" found &&
	sed "s/^servers = .*/server = 1/" "$SITE" >other.toml &&
	test_must_fail "$CLI" doctor --config other.toml >found && grep "workflow-token.slurm.server" found &&
	sed "s/^user = \"$ALICE\"/partition = \"nowhere\"/" "$SITE" >other.toml &&
	"$CLI" doctor --config other.toml >found && grep "^warn .*the cluster has no partition \"nowhere\"" found &&
	sed "/^\[\[workflow-token.rule\]\]/,\$d" "$SITE" >other.toml &&
	"$CLI" doctor --config other.toml >found && grep "^warn .*contains no rule" found &&
	sed "s,^\[workflow-token\],&\nrevocations = \"$PWD/no/such\"," "$SITE" >other.toml &&
	test_must_fail "$CLI" doctor --config other.toml >found && grep "^fail .*$PWD/no/such: No such file" found &&
	echo "[workflow-token" >other.toml &&
	test_must_fail "$CLI" doctor --config other.toml >found &&
	grep "^fail .*other.toml: TOML parse error at line 1" found && test_expect_code 1 grep "flux" found
'

# verify: verifies the token of the job, with the agent. The caller is root or the user of the agent.
verify() {
	"$CLI" verify --agent --config "$SITE" --keys jwks.json --issuer https://hpc --audience s - <shared/token >out 2>&1
}

test_expect_success 'a token is valid while its job is active' '
	"$CLI" keygen "$PWD/keys" >/dev/null && "$CLI" jwks keys >jwks.json && chown -R "$CONTROLLER" keys &&
	sed -i "s,^\\[workflow-token\\],&\nrevocations = \"$PWD/agent/revocations\"," "$SITE" &&
	sed -i "/^\\[\\[workflow-token.rule/,\$d" "$SITE" &&
	printf "[workflow-token.issuer]\nkeys = \"%s/keys\"\nname = \"https://hpc\"\naudience = \"s\"\n" "$PWD" >>"$SITE" &&
	printf "[[workflow-token.rule]]\nsource = \"issuer\"\nworkspace = \"w\"\n" >>"$SITE" &&
	agent_down && agent_up &&
	program holder <<-EOF &&
		#!/bin/sh
		umask 022
		printenv DW_WORKFLOW_TOKEN >"$PWD/shared/token.new" && mv "$PWD/shared/token.new" "$PWD/shared/token"
		read go <"$PWD/shared/go"
	EOF
	id=$(batch "$ALICE" -o /dev/null "$PWD/holder") && eventually test -s shared/token && verify &&
	mv "agent/store/job-$id" away && verify && mv away "agent/store/job-$id" &&
	agent_down && test_expect_code 2 verify && agent_up && verify &&
	echo >shared/go && eventually finished "$id" && eventually test ! -e "agent/store/job-$id" &&
	at=$(squeue --noheader --states=all --jobs="$id" --format=%e) &&
	test_expect_code 1 verify && grep "its job has ended, at $(date -u -d "$at" +%FT%TZ)" out
'

test_expect_success 'the tokens of a job are revoked' '
	rm shared/token && id=$(batch "$ALICE" -o /dev/null "$PWD/holder") && eventually test -s shared/token && verify &&
	"$CLI" revoke --config "$SITE" "$id" && test_expect_code 1 verify && grep "it was revoked" out &&
	agent_down && agent_up && test_expect_code 1 verify && echo >shared/go && eventually finished "$id"
'

test_expect_success 'Flux rejects the configuration of a cluster, and Slurm that of Flux' '
	printf "[workflow-token]\n[[workflow-token.rule]]\nqueue = \"x\"\nsource = \"file\"\npath = \"/t\"\n" >flux.toml &&
	test_must_fail "$PWD/bin/workflow-token-agent" slurm --config "$PWD/flux.toml" 2>err && grep "workflow-token.slurm: is missing" err
'

test_done
