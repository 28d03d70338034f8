#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='A job submits jobs, and their jobspecs do not contain its token'

. "$(dirname "$0")/lib.sh"
need_flux
flux python -c 'import flux.cli.plugin' 2>/dev/null || skip "this Flux has no plugins for submission commands: 0.77 or newer is needed"

PLUGINS=$STAGE/libexec/flux/cli/plugins
test -e "$PLUGINS/workflow_token.py" || error "$PLUGINS/workflow_token.py is missing: run make stage"

# A broker passes the path of a batch script to a shell, so the path must not contain a space.
RUN=$base/run
cleanup 'rm -rf "$RUN"'

need_canaries
# Each case has its own token: some tokens are found intentionally.
for name in bare inner site nested rules explicit bypass; do
	token_file "$canaries/$name" >/dev/null
done
# rules: prints one rule for each token.
rules() {
	for name in bare inner nested bypass site; do
		printf '[[workflow-token.rule]]\nattribute = "system.%s"\nsource = "file"\npath = "%s"\n' $name "$canaries/$name"
	done
	echo 'variable = "SITE_TOKEN"'
}
rules | table

# Prints the variables that an inner job, or the initial program of an inner instance, finds in its environment.
program report <<-EOF
	#!/bin/sh
	echo "other=\$OTHER token=\${DW_WORKFLOW_TOKEN:+set} site=\${SITE_TOKEN:+set} names=\${WORKFLOW_TOKEN_VARIABLES:+set}"
EOF
echo "other=1 token= site= names=" >expected

# submit-all NAME: submits a job with each command, and waits for them.
program submit-all <<-EOF
	#!/bin/sh
	set -e
	test -n "\$DW_WORKFLOW_TOKEN"
	flux submit --quiet --wait --job-name=\$1-submit --output=\$1-submit.out ./report
	flux run --job-name=\$1-run ./report >\$1-run.out
	flux bulksubmit --quiet --wait --job-name=\$1-{} --output=\$1-{}.out ./report ::: bulksubmit
	flux alloc -n1 --job-name=\$1-alloc ./report >\$1-alloc.out
	id=\$(flux batch -n1 --job-name=\$1-batch --output=\$1-batch.out --wrap ./report)
	flux job wait-event -q -t 60 \$id clean
EOF
program submit-site <<-EOF
	#!/bin/sh
	set -e
	test -n "\$SITE_TOKEN"
	flux run --job-name=site-run ./report >site-run.out
EOF
commands="submit run bulksubmit alloc batch"

# Inner instances load the job shell plugins from the path of the outer one. (The test's own path contains a space.)
ln -s "$SHARNESS_TRASH_DIRECTORY" "$base/trash"
cleanup 'rm -f "$base/trash"'
BROKER=(--broker-opts=-Sconf.shell_pluginpath="$STAGE/lib/flux/shell/plugins"
	--broker-opts=-Sconf.shell_initrc="$base/trash/initrc.lua")

# outer NAME COMMAND OPTION…: runs a job with the token NAME, whose submission commands have the plugin.
outer() {
	local name=$1 command=$2
	shift 2
	FLUX_CLI_PLUGINPATH_OVERRIDE='' flux "$command" --setattr=system.$name=1 --env=OTHER=1 \
		--env=FLUX_CLI_PLUGINPATH="$PLUGINS" --env=FLUX_CLI_PLUGINPATH_OVERRIDE="$PLUGINS" "$@"
}

# dry_run FILE OPTION…: writes the jobspec that a job with the token `rules` submits to FILE.
dry_run() {
	local file=$1
	shift
	DW_WORKFLOW_TOKEN=$(cat "$canaries/rules") WORKFLOW_TOKEN_VARIABLES=DW_WORKFLOW_TOKEN OTHER=1 \
	FLUX_CLI_PLUGINPATH=$PLUGINS FLUX_CLI_PLUGINPATH_OVERRIDE=$PLUGINS \
		flux submit --dry-run "$@" true >"$file" &&
		grep -q '"environment"' "$file"
}

# jobspecs NAME…: writes the signed jobspecs of the jobs with these names, each to J.NAME.
jobspecs() {
	local name id
	for name; do
		id=$(flux jobs -a -no "{name} {id.dec}" | awk -v name="$name" '$1 == name { print $2 }') &&
			flux job info "$id" J >"J.$name" || return
	done
}

# environment FILE: prints the environment of a signed jobspec, whose second part is the jobspec in base64.
environment() {
	python3 -c '
import base64, json, sys
payload = open(sys.argv[1]).read().split(".")[1]
spec = json.loads(base64.b64decode(payload + "=" * (-len(payload) % 4)))
for item in spec["attributes"]["system"]["environment"].items():
    print("=".join(item))' "$1"
}

# has NAME FILE…: succeeds if each file contains the token.
has() {
	local file name=$1
	shift
	for file; do
		"$TESTS/search.py" "$canaries/$name" "$file" || return
	done
}

# has_no NAME FILE…: succeeds if none contains it, and all were searched.
has_no() {
	local name=$1
	shift
	"$TESTS/search.py" "$canaries/$name" "$@"
	test $? = 1
}

test_expect_success 'an instance loads the plugin' '
	munge_up &&
	FLUX_CLI_PLUGINPATH=$PLUGINS FLUX_CLI_PLUGINPATH_OVERRIDE=$PLUGINS instance_up 1 &&
	load
'

test_expect_success 'without the plugin for commands, the token is in each inner jobspec' '
	outer bare run --env=FLUX_CLI_PLUGINPATH= --env=FLUX_CLI_PLUGINPATH_OVERRIDE= ./submit-all bare &&
	jobspecs $(printf "bare-%s " $commands) &&
	has bare J.bare-* &&
	for command in $commands; do grep "other=1 token=set" bare-$command.out || return; done
'

test_expect_success 'and in the KVS and the content store' '
	mkdir -p gathered/bare &&
	kvs primary gathered/bare &&
	flux kvs put --sync checkpoint=1 &&
	has bare gathered/bare/values.primary &&
	"$TESTS/search.py" "$canaries/bare" state >found &&
	grep "content.sqlite: blob" found
'

test_expect_success 'with the plugin, the token is in no inner jobspec, and other variables are in all' '
	outer inner run ./submit-all inner &&
	jobspecs $(printf "inner-%s " $commands) &&
	has_no inner J.inner-* &&
	for command in $commands; do
		environment J.inner-$command >variables &&
		grep -x OTHER=1 variables &&
		grep ^PATH= variables &&
		! grep "^DW_WORKFLOW_TOKEN=\|^WORKFLOW_TOKEN_VARIABLES=" variables || return
	done
'

test_expect_success 'inner jobs and initial programs run without the token' '
	for command in $commands; do test_cmp expected inner-$command.out || return; done
'

test_expect_success 'a variable of another name is removed, because the job shell lists it' '
	outer site run ./submit-site &&
	jobspecs site-run &&
	has_no site J.site-run &&
	environment J.site-run | grep -x OTHER=1 &&
	test_cmp expected site-run.out
'

test_expect_success 'an unlisted variable stays, except the path of the token file' '
	BEARER_TOKEN_FILE=/bearer DW_WORKFLOW_TOKEN_FILE=/token dry_run unlisted &&
	grep -q BEARER_TOKEN_FILE unlisted &&
	! grep DW_WORKFLOW_TOKEN_FILE unlisted
'

# Prints a digest of the token, because the KVS stores output.
program sum <<-EOF
	#!/bin/sh
	printf %s "\$DW_WORKFLOW_TOKEN" | sha256sum
EOF

# The initial program of an instance with a token submits these jobs, also to a nested instance.
program nested <<-EOF
	#!/bin/sh
	set -e
	./report >nested-initial.out
	flux run ./sum >nested-run.out
	flux job info \$(flux job last) J >J.nested
	flux run -o workflow-token=0 ./report >nested-none.out
	flux alloc -n1 $(printf "%s " "${BROKER[@]}") flux run ./sum >nested-twice.out
	flux dump --quiet nested.tar
EOF

test_expect_success 'jobs of an instance with a token receive it at any depth, and the KVS does not' '
	outer nested alloc -n1 "${BROKER[@]}" ./nested </dev/null &&
	grep token=set nested-initial.out &&
	tr -d "\n" <"$canaries/nested" | sha256sum >sum.expected &&
	for copy in run twice; do test_cmp sum.expected nested-$copy.out || return; done &&
	test_cmp expected nested-none.out &&
	environment J.nested | grep -x OTHER=1 &&
	tar -tf nested.tar | grep "/J$" &&
	has_no nested J.nested nested.tar
'

test_expect_success '--env rules that copy variables from the environment skip the token' '
	printf "%s\n" "-*" "DW_*" "*" >patterns &&
	dry_run all --env="*" &&
	dry_run again --env="-*" --env="DW_*" --env=OTHER &&
	dry_run file --env-file=patterns &&
	dry_run removed --env-remove="DW_*" &&
	dry_run template --env="DW_WORKFLOW_TOKEN={{id}}" &&
	for file in all again file removed template; do grep -q "\"OTHER\": \"1\"" $file || return; done &&
	has_no rules all again file removed template
'

test_expect_success 'nor does a file of rules with all variables of the job' '
	printf "DW_WORKFLOW_TOKEN=%s\nCOPIED=1\n" "$(cat "$canaries/rules")" >"$canaries/environ" &&
	dry_run copied --env-file="$canaries/environ" &&
	grep -q COPIED copied &&
	has_no rules copied
'

test_expect_success 'a value that --env sets is kept, with a warning that does not show it' '
	for name in explicit rules; do
		dry_run "$canaries/kept" --env=DW_WORKFLOW_TOKEN="$(cat "$canaries/$name")" 2>warning &&
		has $name "$canaries/kept" &&
		grep "flux submit: warning: DW_WORKFLOW_TOKEN " warning &&
		test "$(wc -l <warning)" = 1 &&
		has_no $name warning || return
	done
'

test_expect_success 'without the option there is no warning' '
	dry_run silent 2>warning &&
	test_must_be_empty warning
'

cat >build.py <<-EOF
	import os
	from flux.job import JobspecV1

	print(JobspecV1.from_submit(["true"]).dumps())
	spec = JobspecV1.from_command(["true"])
	spec.environment = os.environ
	print(spec.apply_options(prog="submit").dumps())
	assert "DW_WORKFLOW_TOKEN" in os.environ
EOF
! flux python -c 'from flux.job import JobspecV1; JobspecV1.from_submit' 2>/dev/null || test_set_prereq FROM_SUBMIT

test_expect_success FROM_SUBMIT 'a Python program that builds a jobspec like a command keeps its own token' '
	DW_WORKFLOW_TOKEN=$(cat "$canaries/rules") OTHER=1 FLUX_CLI_PLUGINPATH_OVERRIDE=$PLUGINS flux python build.py >built &&
	test "$(grep -c "\"OTHER\": \"1\"" built)" = 2 &&
	has_no rules built
'

# Submits a jobspec with the whole environment, without a submission command.
cat >bypass.py <<-EOF
	import os, flux
	from flux.job import JobspecV1

	spec = JobspecV1.from_command(["true"])
	spec.environment = dict(os.environ)
	print(spec.dumps())
EOF
program bypass <<-EOF
	#!/bin/sh
	set -e
	flux python bypass.py >"$canaries/jobspec"
	flux job submit "$canaries/jobspec" >bypass.id
	flux job wait-event -q -t 60 \$(cat bypass.id) clean
EOF

test_expect_success 'the jobspec of flux job submit is stored unchanged' '
	outer bypass run ./bypass &&
	flux job info "$(cat bypass.id)" J >J.bypass &&
	has bypass J.bypass
'

test_expect_success 'the instance reports this, or rejects the job, and does not repeat the token' '
	flux dmesg >dmesg &&
	grep "workflow-token: the jobspec contains DW_WORKFLOW_TOKEN.* of the enclosing job" dmesg &&
	{ echo "inner-jobs = \"reject\"" && rules; } | table &&
	test_must_fail outer bypass run ./bypass 2>rejected &&
	grep "DW_WORKFLOW_TOKEN, DW_WORKFLOW_TOKEN_FILE of the enclosing job .*: remove them and WORKFLOW_TOKEN_VARIABLES" rejected &&
	has_no bypass rejected dmesg
'

test_expect_success 'no other token is in the KVS, eventlogs, content store, output or processes' '
	ids=$(flux jobs -a -no "{id} {name}" | awk "\$2 ~ /^(inner|site)-/ { print \$1 }") &&
	test "$(echo "$ids" | wc -l)" = 6 &&
	tasks= &&
	gather ended workflow-token.so &&
	grep "\.J$" gathered/ended/keys.primary &&
	flux kvs put --sync checkpoint=2 &&
	everywhere inner site nested rules &&
	test "$(cat status)" = 1 &&
	for name in inner site nested rules; do has_no $name "$RUN" || return; done
'

test_expect_success 'nor after the instance ends' '
	instance_down &&
	everywhere inner site nested rules &&
	test "$(cat status)" = 1 &&
	test -e state/content.sqlite
'

test_done
