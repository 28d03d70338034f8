#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='Rabbit jobs have the variables of their sealed record, or of the event of earlier versions'

. "$(dirname "$0")/lib.sh"
need_flux

DWS=$STAGE/lib/flux/shell/plugins/dws_environment.so
me=$(id -u)
value=$(new_token)
rabbit() {
	printf 'plugin.load { file = "%s", conf = { ["munge-socket"] = "%s", %s } }\n' "$DWS" "$MUNGE_SOCKET" "$1"
}
{
	rabbit
	echo "if shell.options.userrc then source (shell.options.userrc) end"
} >initrc.lua
rabbit 'legacy = false' >strict.lua
program show <<-EOF
	#!/bin/sh
	touch "$PWD/started"
	echo "\${DW_JOB_a-unset} \${DW_WORKFLOW_TOKEN-unset}"
EOF

# hold [OPTION…]: submits a rabbit job that may not run yet. Sets id, dec, and dir.
hold() {
	rm -f started
	id=$(flux submit --urgency=hold --setattr=system.dw='["#DW jobdw name=a"]' "$@" "$PWD/show") &&
		dec=$(flux job id --to=dec "$id") &&
		dir=$(flux job id --to=kvs "$id")
}

# seal [ID]: stores a record as the plugin of the job manager would, for another job if ID differs.
seal() {
	local credential
	credential=$(printf '{"version":1,"jobid":%s,"uid":%s,"variables":{"DW_JOB_a":"/mnt/a","DW_WORKFLOW_TOKEN":"%s"}}' \
		"${1:-$dec}" "$me" "$value" | munge --socket "$MUNGE_SOCKET" --cipher aes256 --restrict-uid="$me") &&
		printf '{"version":1,"jobid":%s,"uid":%s,"sealer":%s,"variables":["DW_JOB_a"],"sealed-at":1.5,"credential":"%s"}' \
			"$dec" "$me" "$me" "$credential" | flux kvs put --raw "$dir.dws-environment=-"
}

# post CONTEXT
post() {
	flux kvs eventlog append "$dir.eventlog" dws_environment "$1"
}

# go: releases the job, and checks that it ends normally.
go() {
	flux job urgency "$id" default && flux job attach "$id" >out 2>err
}

# refused TEXT: succeeds if the job was rejected, and nothing of it started.
refused() {
	flux job urgency "$id" default && is_refused "$id" exec "$1" && ! test -e started
}

test_expect_success 'an instance of two brokers' '
	munge_up &&
	instance_up 2
'

test_expect_success 'every task of a rabbit job has the variables of its record, and no log contains them' '
	hold -N2 -n2 -o verbose=2 &&
	seal &&
	post "{\"names\":[\"DW_JOB_a\"]}" &&
	go &&
	test "$(cat out)" = "$(printf "/mnt/a $value\n/mnt/a $value")" &&
	grep "exported DW_JOB_a, DW_WORKFLOW_TOKEN" err &&
	! grep WARN err &&
	! grep -Fe "$(echo "$value" | cut -d. -f2)" err
'

test_expect_success 'a job of the earlier plugin has the variables of its event, with a warning' '
	hold &&
	post "{\"variables\":{\"DW_JOB_a\":\"first\"}}" &&
	post "{\"variables\":{\"DW_JOB_a\":\"/mnt/a\",\"DW_WORKFLOW_TOKEN\":\"$value\"},\"rabbits\":{}}" &&
	go &&
	test "$(cat out)" = "/mnt/a $value" &&
	grep "WARN: dws_environment: exported DW_JOB_a, DW_WORKFLOW_TOKEN from the job.s eventlog" err &&
	! grep -Fe "$(echo "$value" | cut -d. -f2)" err
'

test_expect_success 'unless this is disabled' '
	hold -o userrc="$PWD/strict.lua" &&
	post "{\"variables\":{\"DW_JOB_a\":\"/mnt/a\"}}" &&
	refused "there is no sealed record with the variables of its rabbits" &&
	hold -o userrc="$PWD/strict.lua" &&
	seal &&
	go &&
	test "$(cat out)" = "/mnt/a $value"
'

test_expect_success 'without record and event a rabbit job does not start, and one line states the reason' '
	hold &&
	refused "the job manager has not loaded dws-jobtap.so"
'

test_expect_success 'nor if the record is lost' '
	hold &&
	post "{\"names\":[\"DW_JOB_a\"]}" &&
	refused "though they were sealed"
'

test_expect_success 'nor with the record of another job' '
	hold &&
	seal 4711 &&
	post "{\"variables\":{\"DW_JOB_a\":\"/mnt/a\"}}" &&
	refused "the rabbit environment of this job cannot be used: the sealed record belongs to job 4711"
'

test_expect_success 'a job without directives is not affected' '
	flux run "$PWD/show" >out &&
	test "$(cat out)" = "unset unset"
'

# Like Flux by default: its own initrc loads all installed plugins.
test_expect_success 'all installed plugins together do not affect unrelated jobs' '
	instance_down &&
	test -e "$STAGE/lib/flux/shell/plugins/cray-pmi-bootstrap.so" &&
	instance_up 2 -Sconf.shell_initrc="$(flux config builtin shell_initrc)" &&
	flux run -N2 -o verbose=2 "$PWD/show" >out 2>err &&
	test "$(sort -u out)" = "unset unset" &&
	grep "DEBUG: cray-pmi-bootstrap: there is no sealed record" err &&
	grep "DEBUG: workflow-token: there is no sealed record" err &&
	! grep -E "(WARN|ERROR): (workflow-token|dws_environment|cray-pmi-bootstrap): " err
'

test_expect_success 'the instance ends normally' 'instance_down'

test_done
