#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='Token, variables of rabbits and secret for Cray PMI are found nowhere, whatever fails'

. "$(dirname "$0")/lib.sh"
need_flux
need_rabbits
command -v "${CC:-cc}" >/dev/null || skip "no C compiler found: install gcc"

PMI=$STAGE/lib/flux/job-manager/plugins/cray-pmi-bootstrap.so
need_canaries
token_file "$canaries/token" >/dev/null
new_token >"$canaries/rabbit"
VARIABLES=$canaries/variables
printf '{"DW_JOB_a":"/mnt/nnf/a","DW_CANARY":"%s"}' "$(cat "$canaries/rabbit")" >"$VARIABLES"
: >"$canaries/pmi"
pals_initrc cray-pmi-bootstrap dws_environment workflow-token
# configured TIMEOUT: sets the timeout of deliveries.
configured() {
	table <<-EOF
		timeout = "$1"
		[[workflow-token.rule]]
		attribute = "system.workflow"
		source = "file"
		path = "$canaries/token"
	EOF
}
configured 60s
# A task that consists of one process and prints only its process id, to another place.
quiet_program

LOG=(-Slog-level=7 -Slog-stderr-level=7 -Slog-stderr-mode=local)

# job HOW PROGRAM…: submits a job of two nodes to which all three plugins deliver. HOW is as for rabbit_job.
job() {
	local how=$1
	shift
	id=$(rabbit_job "$how" -N2 -n2 -o verbose=2 --setattr=system.workflow=1 "$@") && ids+=" $id"
}

# begins HOW: submits a job whose tasks wait, and returns when both have started.
begins() {
	job "$1" "$PWD/quiet" && have_begun
}

have_begun() {
	tasks=$(for n in 1 2; do read -r -t 60 pid && echo "$pid"; done <>pids | paste -sd,) && have_all
}

# have_all: succeeds if the tasks have all three secrets. The third one is not known in advance.
have_all() {
	local pid
	for pid in $(echo "$tasks" | tr , " "); do
		tr '\0' '\n' <"/proc/$pid/environ" >"$canaries/environ" &&
			grep -Fqx "DW_WORKFLOW_TOKEN=$(cat "$canaries/token")" "$canaries/environ" &&
			grep -Fqx "DW_CANARY=$(cat "$canaries/rabbit")" "$canaries/environ" &&
			sed -n 's/^PMI_SHARED_SECRET=\([0-9]*\)$/\1/p' "$canaries/environ" | grep . >"$canaries/secret" &&
			keep_secret || return
	done
}

# keep_secret: adds the secret to the others, unsigned and signed. One in two thousand has too few digits to be
# unmistakable.
keep_secret() {
	python3 -c 'n = int(input()); print(n, abs(n - (n >> 63 << 64)), sep="\n")' <"$canaries/secret" |
		grep -E '[0-9]{16,}' >>"$canaries/pmi" || :
}

# is_sealed ID: succeeds if the job's secret for Cray PMI is sealed, and stores it.
is_sealed() {
	flux job info "$1" cray-pmi-bootstrap 2>/dev/null | member credential >"$canaries/credential" &&
		unmunge --socket "$MUNGE_SOCKET" --metadata=/dev/null --input "$canaries/credential" |
		member variables.PMI_SHARED_SECRET >"$canaries/secret" && keep_secret
}

end() {
	flux cancel "$id" && await clean "$id"
}

in_flight() {
	local plugin
	for plugin in workflow-token dws-jobtap cray-pmi-bootstrap; do
		test "$(flux jobtap query $plugin.so | member in-flight)" = 1 || return
	done
}

# found_nowhere NAME: succeeds if no secret is found anywhere, except in the processes in $tasks.
found_nowhere() {
	gather "$1" dws-jobtap.so &&
		flux jobtap query cray-pmi-bootstrap.so >"gathered/$1/query-pmi" &&
		flux jobtap query workflow-token.so >"gathered/$1/query-token" &&
		flux kvs put --sync checkpoint="\"$1\"" &&
		everywhere token rabbit pmi &&
		test "$(cat status)" = 1
}

# is_over: succeeds if the job has ended without having started, and nothing runs any more.
is_over() {
	await clean "$id" && events exception "$id" && has_no_event start "$id" && tasks=
}

load_all() {
	flux jobtap load "$DWS_JOBTAP" && flux jobtap load "$PMI" port-min=11000 port-max=12000 && load
}

test_expect_success 'an instance loads the plugins' '
	munge_up &&
	FLUX_DISABLE_JOB_CLEANUP=t instance_up 2 "${LOG[@]}" &&
	load_all &&
	stand_in_up
'

test_expect_success 'planted secrets are found' '
	flux kvs put --sync planted="$(cat "$canaries/rabbit")" &&
	everywhere rabbit &&
	grep "content.sqlite: blob" found &&
	test "$(cat status)" = 0
'

# The planted secrets remain in the content store.
test_expect_success 'from now on the secrets are others' '
	new_token >"$canaries/rabbit" &&
	printf "{\"DW_JOB_a\":\"/mnt/nnf/a\",\"DW_CANARY\":\"%s\"}" "$(cat "$canaries/rabbit")" >"$VARIABLES"
'

test_expect_success 'while a job with all of them runs' '
	begins ok &&
	found_nowhere running &&
	grep MUNGE: gathered/running/values.primary &&
	grep "dws_environment" gathered/running/eventlog.*
'

test_expect_success 'after it has ended' '
	end &&
	tasks= &&
	found_nowhere ended &&
	grep "exported DW_CANARY, DW_JOB_a\|exported DW_JOB_a, DW_CANARY" gathered/ended/attach.*
'

test_expect_success 'the service dies while it sets up rabbits, and sends its message after a restart' '
	job setup=held "$PWD/quiet" &&
	asked setup "$id" &&
	kill -KILL "$STAND_IN" &&
	stand_in_down &&
	eventually is_sealed "$id" &&
	found_nowhere service-died &&
	stand_in_up &&
	tell prolog-remove "$id" "\"variables\":$(cat "$VARIABLES")" &&
	have_begun &&
	end &&
	tasks= &&
	found_nowhere service-back
'

test_expect_success 'the service sends a malformed message' '
	job setup=held true &&
	asked setup "$id" &&
	! tell prolog-remove "$id" "\"variables\":{\"DW_CANARY\":[\"$(cat "$canaries/rabbit")\"]}" &&
	is_over &&
	found_nowhere malformed
'

test_expect_success 'munged is stopped, and the job continues with it' '
	munge_signal STOP &&
	job ok "$PWD/quiet" &&
	eventually in_flight &&
	found_nowhere munged-stopped &&
	munge_signal CONT &&
	have_begun &&
	end &&
	tasks= &&
	found_nowhere munged-continued
'

test_expect_success 'munged is killed, and the job fails' '
	configured 2s &&
	munge_kill &&
	job ok true &&
	is_over &&
	munge_up &&
	configured 60s &&
	found_nowhere munged-killed
'

test_expect_success 'the job is canceled in its prolog, with some of it sealed and some not' '
	job setup=held true &&
	asked setup "$id" &&
	eventually is_sealed "$id" &&
	flux cancel "$id" &&
	is_over &&
	found_nowhere canceled
'

test_expect_success 'the job is canceled while all of it waits for munged' '
	munge_signal STOP &&
	job ok true &&
	eventually in_flight &&
	flux cancel "$id" &&
	is_over &&
	munge_signal CONT &&
	found_nowhere canceled-in-flight
'

# Without a hold, the job would read its record before it could be replaced: the plugin that would seal it is not
# loaded.
for plugin in workflow-token dws-jobtap cray-pmi-bootstrap; do
	test_expect_success "the record of $plugin.so is replaced by that of another job" '
		case '$plugin' in dws-jobtap) key=dws-environment ;; *) key='$plugin' ;; esac &&
		begins ok &&
		flux job info "$id" $key >record &&
		end &&
		tasks= &&
		job ok --urgency=hold true &&
		await priority "$id" &&
		flux jobtap remove '$plugin'.so &&
		flux kvs put --raw "$(flux job id --to=kvs "$id").$key=-" <record &&
		flux job urgency "$id" default &&
		await clean "$id" &&
		events exception "$id" | grep "belongs to job" &&
		flux jobtap load "${DWS_JOBTAP%/*}/'$plugin'.so" &&
		found_nowhere bad-record-'$plugin'
	'
done

test_expect_success 'the plugins are reloaded with deliveries in progress' '
	munge_signal STOP &&
	job ok true &&
	eventually in_flight &&
	for plugin in "$DWS_JOBTAP" "$PMI" "$JOBTAP"; do
		flux jobtap load --remove="$(basename "$plugin")" "$plugin" || return
	done &&
	munge_signal CONT &&
	is_over &&
	found_nowhere reloaded
'

test_expect_success 'and while a job runs' '
	begins ok &&
	for plugin in "$DWS_JOBTAP" "$PMI" "$JOBTAP"; do
		flux jobtap load --remove="$(basename "$plugin")" "$plugin" || return
	done &&
	found_nowhere reloaded-while-it-runs &&
	end &&
	tasks=
'

test_expect_success 'the instance is restarted with deliveries in progress, and crashes' '
	printf "[job-manager]\nplugins = [ { load = \"%s\" }, { load = \"%s\" }, { load = \"%s\" } ]\n" \
		"$DWS_JOBTAP" "$PMI" "$JOBTAP" >config/job-manager.toml &&
	munge_signal STOP &&
	job ok "$PWD/quiet" &&
	eventually in_flight &&
	stand_in_down &&
	instance_down &&
	everywhere token rabbit pmi &&
	test "$(cat status)" = 1 &&
	FLUX_DISABLE_JOB_CLEANUP=t instance_up 2 "${LOG[@]}" &&
	munge_signal CONT &&
	stand_in_up &&
	tell prolog-remove "$id" "\"variables\":$(cat "$VARIABLES")" &&
	have_begun &&
	found_nowhere restarted &&
	flux kvs put --sync checkpoint=1 &&
	instance_kill &&
	everywhere token rabbit pmi &&
	test "$(cat status)" = 1
'

test_expect_success 'after the crash' '
	stand_in_down &&
	for pid in $(echo "$tasks" | tr , " "); do kill -KILL "$pid" 2>/dev/null; done
	tasks= &&
	FLUX_DISABLE_JOB_CLEANUP=t instance_up 2 "${LOG[@]}" &&
	stand_in_up &&
	await clean "$id" &&
	found_nowhere crashed
'

test_expect_success 'every secret that was searched for existed' '
	test "$(sort -u "$canaries/pmi" | wc -l)" -ge 6 &&
	for name in token rabbit; do test -s "$canaries/$name" || return; done &&
	grep "took longer than 2 s" instance.log &&
	grep "belongs to job" gathered/*/eventlog.* &&
	stand_in_down &&
	instance_down &&
	everywhere token rabbit pmi &&
	test "$(cat status)" = 1
'

test_done
