#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='Slurm: a user requests another audience or lifetime, within what the rule allows'

. "$(dirname "$0")/lib.sh"
need_slurm
CLI=$STAGE/bin/workflow-token

# rules: prints the rules of two partitions, which a client cannot tell apart, and one that matches
# nobody here.
rules() {
	cat <<-EOF
		[workflow-token.issuer]
		keys = "$PWD/keys"
		name = "https://hpc.example.org"
		audience = "service"
		[[workflow-token.rule]]
		partition = "debug"
		source = "issuer"
		workspace = "w"
		audiences = ["archive"]
		max-lifetime = "1h"
		[[workflow-token.rule]]
		partition = "other"
		source = "issuer"
		workspace = "w"
		audiences = ["bank"]
		max-lifetime = "2h"
		[[workflow-token.rule]]
		name = "cloud"
		variable = "CLOUD"
		partition = "cloud"
		source = "oauth2"
		issuer = "https://login.example.org"
		client-id = "slurm"
		client-secret = "$PWD/secret"
		scope = "read"
		scopes = ["write"]
		check = "none"
	EOF
}

# has FILE AUDIENCE SECONDS: succeeds if the token in the file has that audience and lifetime.
has() {
	"$CLI" inspect --json - <"$1" >claims && test "$(member claims.aud <claims)" = "$2" &&
		test "$(($(member claims.exp <claims) - $(member claims.iat <claims)))" -eq "$3"
}

# rejected TEXT COMMAND…: succeeds if the command fails with one line, which contains TEXT.
rejected() {
	local text=$1
	shift
	test_must_fail "$@" >out 2>err && test "$(wc -l <err)" -eq 1 && grep -F "workflow-token: $text" err
}

test_expect_success 'a cluster starts' '
	cluster_prepare && mkdir shared && chmod 1777 shared &&
	"$CLI" keygen "$PWD/keys" >/dev/null && chown -R "$CONTROLLER" keys && echo secret >secret && chmod 0600 secret &&
	chown "$CONTROLLER" secret &&
	rules | site && munge_up && agent_up && cluster_up
'

test_expect_success 'srun: the token matches the option, and not a request in the environment of a job' '
	srun --help | grep -A3 -e "--token=NAME.KEY=VALUE" &&
	run "$ALICE" sh -c "$PRINT" >out && has out service 3600 &&
	run "$ALICE" --token=default.lifetime=5m sh -c "$PRINT" >out && has out service 300 &&
	run "$ALICE" --token=default.audience=archive --token=default.lifetime=7m sh -c "$PRINT" >out && has out archive 420 &&
	run "$ALICE" -p other --token default.audience=bank sh -c "$PRINT" >out && has out bank 7200 &&
	SLURM_SPANK__SLURM_SPANK_OPTION_workflow_token_token=default.lifetime=5m run "$ALICE" sh -c "$PRINT" >out &&
	has out service 3600
'

test_expect_success 'sbatch: the command line overrides lines of the script, and steps have the token of their job' '
	program "$PWD/shared/script" <<-EOF &&
		#!/bin/sh
		#SBATCH --token=default.audience=archive
		#SBATCH --token=default.lifetime=5m
		{ $PRINT; } >"$PWD/shared/script.out"
		srun sh -c "$PRINT" >"$PWD/shared/step.out"
		srun --token=default.lifetime=1m true 2>"$PWD/shared/refused.out"
		sbatch --wait -o "$PWD/shared/inner.out" --wrap "$PRINT"
		salloc srun sh -c "$PRINT" >"$PWD/shared/inner2.out"
		echo >"$PWD/shared/done"
	EOF
	id=$(batch "$ALICE" -o "$PWD/shared/log" "$PWD/shared/script") && eventually finished "$id" &&
	has shared/script.out archive 300 && has shared/step.out archive 300 &&
	test "$(wc -l <shared/refused.out)" -eq 1 && grep "a step has the token of its job" shared/refused.out &&
	has shared/inner.out service 3600 && has shared/inner2.out service 3600 && rm shared/script.out &&
	id=$(batch "$ALICE" -o "$PWD/shared/log" --token=default.lifetime=2m "$PWD/shared/script") && eventually finished "$id" &&
	has shared/script.out archive 120
'

test_expect_success 'salloc: its steps have the token of the job' '
	as "$ALICE" timeout 60 salloc --token=default.lifetime=6m srun sh -c "$PRINT" >out 2>err && has out service 360
'

test_expect_success 'each task of an array has the requested token' '
	id=$(batch "$ALICE" --array=1-2 --token=default.lifetime=5m -o "$PWD/shared/array-%a.out" --wrap "$PRINT") &&
	eventually finished "$id" && has shared/array-1.out service 300 && has shared/array-2.out service 300
'

test_expect_success 'each component of a heterogeneous job has the token requested for it' '
	run "$ALICE" -N1 --token=default.lifetime=5m sh -c "{ $PRINT; } >$PWD/shared/first" : \
		-N1 --token=default.audience=archive sh -c "{ $PRINT; } >$PWD/shared/second" &&
	has shared/first service 300 && has shared/second archive 3600 &&
	program "$PWD/shared/het" <<-EOF &&
		#!/bin/sh
		#SBATCH --token=default.audience=archive --token=default.lifetime=5m --nodes=1
		#SBATCH hetjob
		#SBATCH --nodes=1
		srun --het-group=0 sh -c "$PRINT" >"$PWD/shared/first"
		srun --het-group=1 sh -c "$PRINT" >"$PWD/shared/second"
	EOF
	id=$(batch "$ALICE" -o "$PWD/shared/log" "$PWD/shared/het") && eventually finished "$id" &&
	has shared/first archive 300 && has shared/second service 3600 &&
	rm shared/first shared/second && sed -i "s/--nodes=1\$/& --token=default.lifetime=6m/" shared/het &&
	id=$(batch "$ALICE" -o "$PWD/shared/log" "$PWD/shared/het") && eventually finished "$id" &&
	has shared/first archive 360 && has shared/second service 360
'

test_expect_success 'a requeued job keeps its request' '
	program "$PWD/shared/wait" <<-EOF &&
		#!/bin/sh
		{ $PRINT; } >"$PWD/shared/run-\${SLURM_RESTART_COUNT:-0}"
		test "\$SLURM_RESTART_COUNT" = 1 || exec sleep 600
	EOF
	id=$(batch "$ALICE" --requeue --token=default.lifetime=5m -o /dev/null "$PWD/shared/wait") &&
	eventually test -s shared/run-0 && requeue "$id" && LONGEST=300 eventually finished "$id" &&
	has shared/run-0 service 300 && has shared/run-1 service 300
'

test_expect_success 'any other request is rejected at submission, with a one-line error that names the allowed values' '
	scontrol show config | grep "^NEXT_JOB_ID" >before &&
	rejected "token.default.audience: \`shop\` is not allowed: choose from service, archive" \
		run "$ALICE" --token=default.audience=shop true &&
	rejected "token.default.lifetime: must be at most 3600 s" \
		batch "$ALICE" --token=default.lifetime=3h --wrap true &&
	rejected "token.default.scope: \`x\` is not allowed" as "$ALICE" salloc --token=default.scope=x true &&
	rejected "token.cloud.scope: \`admin\` is not allowed: choose from read, write" \
		run "$ALICE" "--token=cloud.scope=write admin" true &&
	rejected "token.archive: this job gets no such token, only cloud, default" run "$ALICE" --token=archive.scope=x true &&
	rejected "token.default.lifetime: " run "$ALICE" --token=default.lifetime=soon true &&
	rejected "token.default.audienc: " run "$ALICE" --token=default.audienc=x true &&
	rejected "--token=archive: must be NAME.KEY=VALUE" run "$ALICE" --token=archive true &&
	printf "#!/bin/sh\n#SBATCH --token=default.audience=shop\n" >bad && chmod 0755 bad &&
	rejected "token.default.audience: \`shop\` is not allowed" batch "$ALICE" "$PWD/bad" &&
	scontrol show config | grep "^NEXT_JOB_ID" >after && test_cmp before after
'

# denied TEXT ARGUMENTS…: succeeds if the job starts but its tasks do not, for that reason.
denied() {
	local text=$1
	shift
	test_must_fail run "$ALICE" "$@" sh -c "$PRINT" >out 2>err && test ! -s out &&
		test "$(grep -c "workflow-token: " err)" -eq 1 && grep -F "$text [request-denied]" err
}

test_expect_success 'the agent rejects requests that a client cannot check' '
	denied "token.default.audience: \`archive\` is not allowed: choose from service, bank" \
		-p other --token=default.audience=archive &&
	denied "token.cloud: this job gets no such token, only default" --token=cloud.scope=read
'

# elsewhere PLUGSTACK COMMAND…: runs a command on a node with that plugstack.conf.
elsewhere() {
	local conf=$PWD/elsewhere.conf
	echo "$1" >elsewhere.plugstack
	shift
	sed "s,^PlugStackConfig=.*,PlugStackConfig=$PWD/elsewhere.plugstack," "$SLURM_CONF" >"$conf" && SLURM_CONF=$conf "$@"
}

test_expect_success 'and requests of a client without the rules' '
	echo "required $PWD/bin/workflow-token-spank.so config=$PWD/nowhere" >elsewhere.plugstack &&
	sed "s,^PlugStackConfig=.*,PlugStackConfig=$PWD/elsewhere.plugstack," "$SLURM_CONF" >elsewhere.conf &&
	SLURM_CONF=$PWD/elsewhere.conf run "$ALICE" --token=default.audience=archive sh -c "$PRINT" >out && has out archive 3600 &&
	SLURM_CONF=$PWD/elsewhere.conf denied "token.default.audience: \`shop\` is not allowed: choose from service, archive" \
		--token=default.audience=shop &&
	SLURM_CONF=$PWD/elsewhere.conf rejected "token.default.audienc: " run "$ALICE" --token=default.audienc=x true
'

# prolog ID REQUESTS: runs the prolog of a job with requests of a forged client.
prolog() {
	as "$CONTROLLER" env SLURM_SCRIPT_CONTEXT=prolog_slurmctld SLURM_CLUSTER_NAME="$CLUSTER" SLURM_JOB_ID="$1" \
		SLURM_JOB_UID="$(id -u "$ALICE")" SLURM_JOB_PARTITION=debug SLURM_JOB_NODELIST=n1 \
		SPANK_WORKFLOW_TOKEN_REQUESTS="$2" "$PWD/prolog"
}

test_expect_success 'and requests of a forged client' '
	mkfifo shared/go && chmod 0666 shared/go &&
	id=$(batch "$ALICE" -o /dev/null --wrap "read go <$PWD/shared/go") && eventually test -s "cache/job-$id" &&
	prolog "$id" "{\"default\": {\"lifetime\": \"5m\"}}" && ! grep "job $id: no workflow token" agent.log &&
	prolog "$id" "{\"default\": {\"lifetime\": \"3h\"}}" && grep "job $id: .*must be at most 3600 s .request-denied" agent.log &&
	for bad in "{" "$(printf "%070000d" 0)" "$(printf "\377")"; do
		: >agent.log && prolog "$id" "$bad" && grep "job $id: .*token: the requests are not valid JSON, or are too long .request-denied" agent.log || return
	done &&
	echo >shared/go && eventually finished "$id"
'

test_expect_success 'the nodes report nothing about the option' '
	no_node_is_drained && ! grep -i "error.*\(spank\|option\)" slurmd-n1.log slurmd-n2.log
'

test_done
