#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='Randomized fault injection for rabbit jobs and jobs of several nodes: munged, the service, the configuration and the plugins fail

WORKFLOW_TOKEN_SOAK is the duration in seconds (30). WORKFLOW_TOKEN_SEED is the seed of an earlier run.'

. "$(dirname "$0")/lib.sh"
need_flux
need_rabbits
command -v "${CC:-cc}" >/dev/null || skip "no C compiler found: install gcc"
need_canaries
soak_of rabbits

token_file "$canaries/rabbit" >/dev/null
printf '{"DW_JOB_a":"/mnt/nnf/a","DW_WORKFLOW_TOKEN":"%s"}' "$(cat "$canaries/rabbit")" >"$day/variables"
soak_expects rabbit
pals_initrc cray-pmi-bootstrap dws_environment
table <<-EOF
	timeout = "5s"
EOF

test_expect_success 'an instance of two brokers loads the plugins' '
	munge_up &&
	instance_up 2 &&
	flux jobtap load "$DWS_JOBTAP" &&
	flux jobtap load "${DWS_JOBTAP%/*}/cray-pmi-bootstrap.so" port-min=11000 port-max=12000 &&
	munge_kill
'

test_expect_success 'each job had its secrets or one clear exception, none is stuck, and nothing has leaked' '
	soak
'
soak_report

test_expect_success 'no secret is anywhere' '
	ids= &&
	gather soak dws-jobtap.so &&
	flux kvs put --sync checkpoint=1 &&
	tasks= &&
	everywhere rabbit &&
	test "$(cat status)" = 1
'

test_expect_success 'the instance ends normally' '
	instance_down
'

test_done
