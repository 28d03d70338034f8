#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='In a multi-user instance only the job owner has the variables of rabbits and the secret for Cray PMI'

. "$(dirname "$0")/lib.sh"
need_flux
need_users
need_rabbits
command -v "${CC:-cc}" >/dev/null || skip "no C compiler found: install gcc"

PMI=$STAGE/lib/flux/job-manager/plugins/cray-pmi-bootstrap.so
need_canaries
VARIABLES=$canaries/variables
new_token >"$canaries/token"
printf '{"DW_JOB_a":"/mnt/nnf/a","DW_WORKFLOW_TOKEN":"%s"}' "$(cat "$canaries/token")" >"$VARIABLES"
guest=$(id -u "$GUEST")
mkfifo -m 0666 go pids
# All processes use the munged of the system.
mkdir -p config
"${CC:-cc}" -shared -fPIC -o pals.so "$TESTS/../tests/support/pals.c" || error "pals.c does not compile"
{
	for name in cray-pmi-bootstrap dws_environment; do
		echo "plugin.load { file = \"${SHELL_PLUGIN%/*}/$name.so\" }"
	done
	echo "plugin.load { file = \"$PWD/pals.so\" }"
} >initrc.lua
program show <<-EOF
	#!/bin/sh
	echo "\$(id -u) \${DW_JOB_a-unset} \${DW_WORKFLOW_TOKEN-unset} \${PMI_CONTROL_PORT-unset} \${PMI_SHARED_SECRET-unset}"
EOF
program wait-for-go <<-EOF
	#!/bin/sh
	echo \$\$ >"$PWD/pids"
	read line <>"$PWD/go"
EOF

instance_up 2 || skip "no instance of $OWNER could be started: $(tail -n 1 instance.log)"
as "$GUEST" flux run true 2>err || skip "the IMP does not run jobs of $GUEST for $OWNER: $(tr '\n' ' ' <err)"

# run USER OPTION…: runs a rabbit job of two nodes of that user. Its output is a
# canary.
run() {
	local user=$1
	shift
	as "$user" flux run --setattr=system.dw=ok -N2 "$@" "$PWD/show"
}

# environment PID NAME: prints the value of a variable of a process.
environment() {
	tr '\0' '\n' <"/proc/$1/environ" | sed -n "s/^$2=//p"
}

# is_refused_to USER KEY: succeeds if neither the job nor the KVS returns the record
# to that user.
is_refused_to() {
	test_must_fail as "$1" flux job info "$id" "$2" 2>err &&
		cat err &&
		grep -i "restricted\|not permitted" err &&
		test_must_fail as "$1" flux kvs get "$(flux job id --to=kvs "$id").$2" 2>err &&
		grep -i "not permitted" err
}

test_expect_success 'the instance loads the plugins' '
	flux jobtap load "$DWS_JOBTAP" &&
	flux jobtap load "$PMI" port-min=11000 port-max=12000 &&
	stand_in_up
'

test_expect_success 'all tasks of a job of a guest run as the guest, with the variables and one secret' '
	RANK=1 run "$GUEST" -n4 >"$canaries/out" &&
	test "$(wc -l <"$canaries/out")" = 4 &&
	test "$(sort -u "$canaries/out" | wc -l)" = 1 &&
	grep -Eq "^$guest /mnt/nnf/a $(cat "$canaries/token") [0-9]+,[0-9]+ [0-9]+$" "$canaries/out"
'

test_expect_success 'another guest and the instance owner have their own secrets' '
	run "$OTHER" -n2 >"$canaries/other" &&
	run "$OWNER" -n2 >"$canaries/owner" &&
	for name in other owner; do
		grep -Eq "/mnt/nnf/a $(cat "$canaries/token") [0-9]+,[0-9]+ [0-9]+$" "$canaries/$name" || return
	done &&
	for name in out other owner; do cut -d" " -f5 "$canaries/$name" | sort -u || return; done >"$canaries/each" &&
	test "$(sort -u "$canaries/each" | wc -l)" = 3
'

test_expect_success 'a job of the guest runs and waits, with a token that no other job had' '
	new_token >"$canaries/token" &&
	printf "{\"DW_WORKFLOW_TOKEN\":\"%s\"}" "$(cat "$canaries/token")" >"$VARIABLES" &&
	id=$(as "$GUEST" flux submit --setattr=system.dw=ok -N2 -n2 "$PWD/wait-for-go") &&
	tasks=$(for n in 1 2; do read -r -t 60 pid && echo "$pid"; done <>pids | paste -sd,) &&
	task=${tasks%,*} &&
	test "$(ps -o uid= -p "$task" | tr -d " ")" = $guest &&
	environment "$task" DW_WORKFLOW_TOKEN | cmp "$canaries/token" - &&
	environment "$task" PMI_SHARED_SECRET >"$canaries/pmi" &&
	grep -Eqx "[0-9]+" "$canaries/pmi"
'

for key in dws-environment cray-pmi-bootstrap; do
	test_expect_success "the guest can read the record $key, and another user cannot" '
		as "$GUEST" flux job info "$id" '$key' >record &&
		python3 -c "import json; print(json.load(open(\"record\"))[\"credential\"], end=\"\")" >credential &&
		chmod 0644 credential &&
		is_refused_to "$OTHER" '$key'
	'

	test_expect_success 'it opens for the guest' '
		as "$GUEST" unmunge --metadata="/dev/null" --input "$PWD/credential" >"$canaries/payload"
		case '$key' in
		dws-environment) grep -Fqf "$canaries/token" "$canaries/payload" ;;
		cray-pmi-bootstrap) grep -Fqf "$canaries/pmi" "$canaries/payload" ;;
		esac
	'

	for user in "$OTHER" root "$OWNER"; do
		test_expect_success "it does not open for $user, who has its text" '
			test_must_fail as '"$user"' unmunge --input "$PWD/credential" >opened 2>&1 &&
			cat opened &&
			grep "Unauthorized credential" opened
		'
	done
done

test_expect_success 'another user cannot read the environment of the task' '
	as "$GUEST" cat "/proc/$task/environ" >"$canaries/environ" &&
	test_must_fail as "$OTHER" cat "/proc/$task/environ"
'

test_expect_success 'another user cannot read the eventlog, which contains no value' '
	test_must_fail as "$OTHER" flux job eventlog "$id" &&
	as "$GUEST" flux job eventlog "$id" >eventlog.main &&
	grep "dws_environment names=" eventlog.main &&
	grep "cray-pmi-bootstrap ports=" eventlog.main
'

test_expect_success 'nothing else on this node contains token or secret, including the raw content store' '
	ids=$id &&
	gather running dws-jobtap.so &&
	flux jobtap query cray-pmi-bootstrap.so >query &&
	cat "$canaries/token" >"$canaries/secrets" &&
	# One secret in two thousand has too few digits to be unmistakable.
	{ grep -E "^[0-9]{16,}$" "$canaries/pmi" >>"$canaries/secrets" || :; } &&
	flux kvs put --sync checkpoint=1 &&
	test_expect_code 1 "$TESTS/search.py" "$canaries/secrets" "$PWD" "proc:$tasks" &&
	test_expect_code 0 "$TESTS/search.py" "$canaries/secrets" "$canaries/environ"
'

test_expect_success 'a guest cannot send messages of the service' '
	held=$(as "$GUEST" flux submit --setattr=system.dw=setup=held -N2 -n2 "$PWD/show") &&
	asked setup "$held" &&
	for method in prolog-remove epilog-remove resource-update; do
		test_must_fail as "$GUEST" flux python "$TESTS/dws-service.py" rpc "job-manager.dws.$method" \
			"{\"id\":$(flux job id --to=dec "$held"),\"variables\":{\"DW_JOB_a\":\"a\"},\"resources\":[],\"exclude\":null}" 2>err &&
		cat err &&
		grep -i "owner\|not permitted" err || return
	done &&
	test "$(events prolog-finish "$held" | grep -c dws-setup)" = 0 &&
	flux cancel "$held" &&
	await clean "$held"
'

test_expect_success 'the job of the guest ends, and its records are removed' '
	release go && release go &&
	await clean "$id" &&
	are_gone() { ! flux job info "$id" dws-environment 2>/dev/null && ! flux job info "$id" cray-pmi-bootstrap 2>/dev/null; } &&
	eventually are_gone
'

for key in dws-environment cray-pmi-bootstrap; do
	test_expect_success "a record $key sealed by the guest is rejected, even if it is stored in the right place" '
		id=$(as "$GUEST" flux submit -N2 -n2 -o pmi=cray-pals,simple --urgency=hold --setattr=system.dw=ok sh -c "touch $PWD/go.started") &&
		dec=$(flux job id --to=dec "$id") &&
		flux jobtap remove dws-jobtap.so &&
		flux jobtap remove cray-pmi-bootstrap.so &&
		printf "{\"version\":1,\"jobid\":%s,\"uid\":%s,\"variables\":{\"PMI_CONTROL_PORT\":\"1,2\",\"PMI_SHARED_SECRET\":\"3\"}}" $dec $guest |
			as "$GUEST" munge --restrict-uid $guest --cipher aes256 >spoof &&
		printf "{\"version\":1,\"jobid\":%s,\"uid\":%s,\"sealer\":%s,\"variables\":[\"PMI_CONTROL_PORT\"],\"sealed-at\":1,\"credential\":\"%s\"}" \
			$dec $guest "$(id -u "$OWNER")" "$(cat spoof)" |
			as "$OWNER" flux kvs put --raw "$(flux job id --to=kvs "$id").'$key'=-" &&
		flux job urgency "$id" default &&
		await clean "$id" &&
		events exception "$id" &&
		events exception "$id" | grep "was sealed by uid $guest and only the instance owner" &&
		test ! -e go.started &&
		flux jobtap load "$DWS_JOBTAP" &&
		flux jobtap load "$PMI" port-min=11000 port-max=12000
	'
done

test_expect_success 'the instance ends normally' '
	stand_in_down &&
	instance_down
'

test_done
