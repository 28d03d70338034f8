#!/usr/bin/env bash
test_description='A thousand jobs submitted at once: each has its own token, and no other'

. "$(dirname "$0")/lib.sh"
need_flux

jobs=1000
mkdir out
head=$(new_token | cut -d. -f1)
tail=$(new_token | cut -d. -f3)
program own <<-EOF
	#!/bin/sh
	echo "$head.\$(printf '{"sub":"%s"}' "\$1" | base64 -w0 | tr '+/' '-_' | tr -d =).$tail"
EOF
# What a task was given is kept under the id of its job. The letter that the id begins with depends on the locale.
program keep <<-EOF
	#!/bin/sh
	echo "\$FLUX_JOB_ID \$DW_WORKFLOW_TOKEN" >"$PWD/out/\$FLUX_JOB_ID"
EOF
table <<-EOF
	[[workflow-token.rule]]
	attribute = "system.workflow"
	source = "command"
	command = ["$PWD/own", "{jobid.dec}"]
EOF

test_expect_success 'an instance takes the plugin' '
	munge_up &&
	instance_up 2 &&
	load timeout=600s
'

test_expect_success "$jobs jobs are submitted at once, and end" '
	LIMIT=300 submit --cc=1-$jobs -o cpu-affinity=off "$PWD/keep" >ids &&
	LIMIT=300 flux queue idle --quiet --timeout=290s &&
	test "$(wc -l <ids)" = $jobs
'

test_expect_success 'all of them ended well' '
	flux jobs -a -c $((jobs + 1)) -no "{id.dec} {result} {exception.note}" >results &&
	test "$(wc -l <results)" = $jobs &&
	! grep -v " COMPLETED " results
'

test_expect_success 'each had its own token and no other' '
	xargs flux job id --to=dec <ids >decs &&
	paste ids decs >pairs &&
	python3 - "$head" "$tail" $jobs <<-EOF
	import base64, os, sys
	dec = {f58[1:]: number for f58, number in (line.split() for line in open("pairs"))}
	seen = set()
	for name in os.listdir("out"):
	    job, token = open(f"out/{name}").read().split()
	    body = base64.urlsafe_b64encode(b"{\"sub\":\"%s\"}" % dec[job[1:]].encode()).rstrip(b"=").decode()
	    assert token == f"{sys.argv[1]}.{body}.{sys.argv[2]}", job
	    seen.add(job[1:])
	assert len(seen) == int(sys.argv[3]), len(seen)
	EOF
'

test_expect_success 'the plugin counted them, nothing is left, and no record is' '
	test "$(counter delivered)" = $jobs &&
	test "$(counter failed)" = 0 &&
	test "$(counter in-flight)" = 0 &&
	all_unlinked() { test "$(counter unlinked)" = $jobs; } &&
	eventually all_unlinked &&
	has_no_record "$(tail -n 1 ids)" &&
	has_no_record "$(head -n 1 ids)"
'

test_expect_success 'the instance ends well' 'instance_down'

test_done
