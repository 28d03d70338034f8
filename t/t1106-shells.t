#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='Jobs of 64 tasks on two nodes with several job shells each: all tasks have the same values, and each shell sends one request'

. "$(dirname "$0")/lib.sh"
need_flux
need_rabbits
command -v "${CC:-cc}" >/dev/null || skip "no C compiler found: install gcc"

PMI=$STAGE/lib/flux/job-manager/plugins/cray-pmi-bootstrap.so
need_canaries
VARIABLES=$canaries/variables
printf '{"DW_JOB_a":"/mnt/nnf/a","DW_WORKFLOW_TOKEN":"%s"}' "$(new_token)" >"$VARIABLES"
table </dev/null

pals_initrc cray-pmi-bootstrap dws_environment

# Each task stores its variables, and the shell that started it.
program keep <<-EOF
	#!/bin/sh
	dir=$canaries/\$(flux job id --to=dec \$FLUX_JOB_ID)
	mkdir -p "\$dir"
	echo "\$PPID" >"\$dir/shell.\$FLUX_TASK_RANK"
	printf '%s\n' "\${DW_JOB_a-unset} \${DW_WORKFLOW_TOKEN-unset} \${PMI_CONTROL_PORT-unset} \${PMI_SHARED_SECRET-unset}" \
		>"\$dir/task.\$FLUX_TASK_RANK"
EOF

program wait <<-EOF
	#!/bin/sh
	until test -e "$PWD/go"; do sleep 0.1; done
	exec "$PWD/keep"
EOF

# have_all ID SHELLS: succeeds if the 64 tasks of a job have the variables of its rabbits, its ports and one secret, and
# this number of shells started them.
have_all() {
	local dir secret
	dir=$canaries/$(flux job id --to=dec "$1")
	test "$(find "$dir" -maxdepth 1 -name "task*" | wc -l)" = 64 &&
		test "$(cat "$dir"/shell.* | sort -u | wc -l)" = "$2" &&
		test "$(sort -u "$dir"/task.* | wc -l)" = 1 &&
		secret=$(cut -d" " -f4 "$dir/task.0") &&
		echo "$secret" | grep -Eqx "[0-9]+" &&
		python3 - "$VARIABLES" "$(ports "$1")" "$secret" >"$canaries/expected" <<-EOF &&
			import json, sys
			print(*json.load(open(sys.argv[1])).values(), *sys.argv[2:])
		EOF
		cmp "$canaries/expected" "$dir/task.63"
}

# ports ID: prints the ports in the job's event.
ports() {
	events cray-pmi-bootstrap "$1" | sed -n 's/.* ports=\[\([0-9]*,[0-9]*\)\]$/\1/p'
}

# ends_well ID
ends_well() {
	await clean "$1" && test "$(flux jobs -no '{result}' "$1")" = COMPLETED && has_no_event exception "$1"
}

# trace SIZE: writes the lookups that reach each broker from its job shells to trace.RANK. Returns when this has begun.
trace() {
	local rank
	tracers=
	for ((rank = 0; rank < $1; rank++)); do
		# Without a pipe, which would buffer the output.
		FLUX_URI=local://$RUN/local-$rank stdbuf -oL "$FLUX" module trace --full --color=never \
			--topic=job-info.lookup --type=request job-info >trace.$rank 2>>trace.err 8>&- 9>&- &
		tracers+=" $!"
		is_traced() {
			FLUX_URI=local://$RUN/local-$rank flux job info "$traced" jobspec >/dev/null && test -s trace.$rank
		}
		eventually is_traced || return
	done
}

# untrace: ends the trace, once all earlier requests are written.
untrace() {
	local rank pid
	for rank in $(seq 0 $(($(echo "$tracers" | wc -w) - 1))); do
		is_last() {
			FLUX_URI=local://$RUN/local-$rank flux job info "$traced" the-last-one 2>/dev/null
			grep the-last-one trace.$rank
		}
		eventually is_last || return
	done
	for pid in $tracers; do kill "$pid" && await_exit "$pid" || return; done
	tracers=
}

# lookups ID KEY: prints how often job shells looked up a key of a job, on all brokers together.
lookups() {
	cat trace.[0-9]* | python3 -c '
import json, re, sys
found = 0
# A message is one line. Its payload follows on several lines.
text = sys.stdin.read()
decoder = json.JSONDecoder()
for at in re.finditer(r"^\s*\{", text, re.M):
    payload, _ = decoder.raw_decode(text, at.end() - 1)
    if payload.get("id") == int(sys.argv[1]) and sys.argv[2] in payload.get("keys", ()):
        found += 1
print(found)' "$(flux job id --to=dec "$1")" "$2"
}

cleanup 'test -z "$tracers" || kill $tracers 2>/dev/null; rm -rf "$canaries"'

CORES=0-127

test_expect_success 'two nodes, with one broker each' '
	munge_up &&
	instance_up 2 &&
	flux jobtap load "$DWS_JOBTAP" &&
	flux jobtap load "$PMI" port-min=11000 port-max=12000 &&
	stand_in_up &&
	traced=$(flux submit true) &&
	await clean "$traced" &&
	trace 2
'

test_expect_success 'all tasks of four jobs of 64, which run at once on both nodes, have what is their jobs'\'' alone' '
	rm -f go &&
	ids=$(for n in 1 2 3 4; do rabbit_job ok -N2 -n64 -o cpu-affinity=off "$PWD/wait" || return; done) &&
	for id in $ids; do await start "$id" || return; done &&
	>go &&
	for id in $ids; do
		ends_well "$id" &&
		have_all "$id" 2 || return
	done &&
	for id in $ids; do cut -d" " -f3,4 "$canaries/$(flux job id --to=dec "$id")/task.0"; done >"$canaries/each" &&
	test "$(cut -d" " -f1 "$canaries/each" | sort -u | wc -l)" = 4 &&
	test "$(cut -d" " -f2 "$canaries/each" | sort -u | wc -l)" = 4
'

test_expect_success 'each of their shells looked up each of the two records once' '
	untrace &&
	for id in $ids; do
		test "$(lookups "$id" dws-environment)" = 2 &&
		test "$(lookups "$id" cray-pmi-bootstrap)" = 2 || return
	done
'

test_expect_success 'two nodes, with two brokers each' '
	stand_in_down &&
	instance_down &&
	HOSTS="node[0-1],node[0-1]" &&
	instance_up 4 &&
	flux jobtap load "$DWS_JOBTAP" &&
	flux jobtap load "$PMI" port-min=11000 port-max=12000 &&
	stand_in_up &&
	trace 4
'

test_expect_success 'all 64 tasks of one job with two shells on each node have the same' '
	>go &&
	id=$(rabbit_job ok -N4 -n64 -o cpu-affinity=off "$PWD/wait") &&
	ends_well "$id" &&
	flux job info "$id" R &&
	have_all "$id" 4
'

test_expect_success 'each of the four shells looked up each of the two records once' '
	untrace &&
	test "$(lookups "$id" dws-environment)" = 4 &&
	test "$(lookups "$id" cray-pmi-bootstrap)" = 4
'

test_expect_success 'the instance ends normally' '
	stand_in_down &&
	instance_down
'

test_done
