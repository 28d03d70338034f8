#!/usr/bin/env bash
test_description='A bad day: munged, sources, the configuration and the plugin itself fail at random, and each job is accounted for

WORKFLOW_TOKEN_SOAK is for how many seconds (30), WORKFLOW_TOKEN_SEED the seed of an earlier one.'

. "$(dirname "$0")/lib.sh"
need_flux
need_canaries

seconds=${WORKFLOW_TOKEN_SOAK:-30}
seed=${WORKFLOW_TOKEN_SEED:-$RANDOM$RANDOM}
echo "# soak: $seconds s, WORKFLOW_TOKEN_SEED=$seed"

day=$base/canaries/day
mkdir -m 0700 "$day"
for name in file command; do
	token_file "$canaries/$name" >/dev/null
	printf '%s %s\n' $name "$(printf %s "$(cat "$canaries/$name")" | sha256sum | cut -d' ' -f1)" >>"$day/expected"
done
cp "$canaries/file" "$day/file"
echo good >"$day/mode"
program source <<-EOF
	#!/bin/sh
	case \$(cat "$day/mode") in
	fail) echo nothing to be had >&2; exit 3 ;;
	hang) sleep 600 ;;
	slow) sleep 0.3 ;;
	garbage) head -c 300 /dev/urandom; exit 0 ;;
	empty) exit 0 ;;
	huge) head -c 3000000 /dev/zero | tr '\0' x; exit 0 ;;
	killed) kill -9 \$\$ ;;
	esac
	cat "$canaries/command"
EOF
mv source "$day/source"
program keep <<-EOF
	#!/bin/sh
	printf %s "\$DW_WORKFLOW_TOKEN" | sha256sum >"$day/out/\$(flux job id --to=dec "\$FLUX_JOB_ID")"
EOF
mv keep "$day/keep"
table <<-EOF
	[[workflow-token.rule]]
	attribute = "system.file"
	source = "file"
	path = "$day/file"

	[[workflow-token.rule]]
	attribute = "system.command"
	source = "command"
	command = ["$day/source"]
EOF
# Without its record a job does not start, whether or not the plugin was there when it was allocated.
initrc initrc.lua "config=$CONFIG" "munge-socket=$MUNGE_SOCKET"

test_expect_success 'an instance takes the plugin' '
	munge_up &&
	instance_up 1 &&
	load &&
	munge_kill
'

MUNGED_COMMAND="munged --foreground --force --key-file='$SHARNESS_TRASH_DIRECTORY/munge.key' --socket='$MUNGE_SOCKET' \
--pid-file='$SHARNESS_TRASH_DIRECTORY/munged.pid' --log-file='$SHARNESS_TRASH_DIRECTORY/munged.log' \
--seed-file='$SHARNESS_TRASH_DIRECTORY/munged.seed'"

test_expect_success 'each job had its token or one clear exception, none is stuck, and nothing has leaked' '
	MUNGED=$MUNGED_COMMAND MUNGE_SOCKET=$MUNGE_SOCKET JOBTAP=$JOBTAP CONFIG=$CONFIG PATH=$PATH:/usr/sbin \
		LIMIT=$((seconds + 600)) flux python "$TESTS/soak.py" "$seconds" "$seed" "$day" >report 2>wrong
	result=$?
	MUNGED=$(cat munged.pid 2>/dev/null)
	cat report wrong
	test $result = 0
'
sed -n '/^#/p' report

test_expect_success 'no secret is anywhere' '
	ids= &&
	gather soak workflow-token.so &&
	flux kvs put --sync checkpoint=1 &&
	tasks= &&
	everywhere file command &&
	test "$(cat status)" = 1
'

test_expect_success 'the instance ends well' '
	instance_down
'

test_done
