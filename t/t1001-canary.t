#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='A token is found only in the environment of its job'

. "$(dirname "$0")/lib.sh"
need_flux

need_canaries
for name in file command stderr expired late; do
	token_file "$canaries/$name" >/dev/null
done
token_file "$canaries/expired" exp=1000000000 >/dev/null
token_file "$base/canaries/planted" >/dev/null

program print-command <<-EOF
	#!/bin/sh
	exec cat "$canaries/command"
EOF
program print-stderr <<-EOF
	#!/bin/sh
	cat "$canaries/stderr"
	cat "$canaries/stderr" >&2
	exit 1
EOF
# Its output is on the way when the job is canceled.
program print-late <<-EOF
	#!/bin/sh
	cat "$canaries/late"
	echo printed >"$PWD/late"
	exec sleep 1000
EOF
{
	for name in file expired; do
		printf '[[workflow-token.rule]]\nattribute = "system.%s"\nsource = "file"\npath = "%s"\n' \
			$name "$canaries/$name"
	done
	for name in command stderr late; do
		printf '[[workflow-token.rule]]\nattribute = "system.%s"\nsource = "command"\ncommand = ["%s"]\n' \
			$name "$PWD/print-$name"
		printf 'log-stderr = true\n'
	done
} | table
mkfifo late

# A task that consists of one process and prints only its process id, to another place.
quiet_program

test_expect_success 'an instance loads the plugin' '
	munge_up &&
	instance_up 2 -Slog-level=7 -Slog-stderr-level=7 -Slog-stderr-mode=local &&
	load
'

test_expect_success 'planted secrets are found: in the KVS, the log, files, arguments and environments' '
	tasks= &&
	planted=$(cat "$canaries/planted") &&
	part=$(cut -d. -f2 "$canaries/planted") &&
	flux kvs put planted.short="$part" &&
	flux kvs put planted.long="$(printf "%0300d" 0)$planted" &&
	flux kvs put planted.base64="x$(printf "xx%s" "$planted" | base64 -w0)" &&
	flux kvs put --sync planted.hex="$(printf %s "$planted" | od -An -tx1 | tr -d " \n")" &&
	flux logger "planted $part" &&
	printf "%s" "$planted" | cut -d. -f3 | cut -c 5-30 >fragment &&
	{ python3 -c "import time; time.sleep(1000)" "$planted" & argument=$!; } &&
	{ PLANTED=$planted python3 -c "import time; time.sleep(1000)" & environment=$!; } &&
	test_when_finished "kill $argument $environment" &&
	ids= &&
	gather planted workflow-token.so &&
	everywhere planted &&
	grep "/gathered/planted/values.primary" found &&
	grep "/gathered/planted/dmesg" found &&
	grep "/instance.log" found &&
	grep "/fragment" found &&
	grep "/proc/$argument/cmdline" found &&
	grep "/proc/$environment/environ" found &&
	grep "content.sqlite: blob" found >blobs &&
	test "$(wc -l <blobs)" -ge 4
'

test_expect_success 'jobs receive their tokens, or fail' '
	a=$(flux submit -N2 -n2 -o verbose=2 --setattr=system.file=1 "$PWD/quiet" file) &&
	b=$(flux submit -o verbose=2 --setattr=system.command=1 "$PWD/quiet" command) &&
	c=$(flux submit -o verbose=2 --setattr=system.stderr=1 true) &&
	d=$(flux submit -o verbose=2 --setattr=system.expired=1 true) &&
	e=$(flux submit -o verbose=2 --setattr=system.late=1 true) &&
	ids="$a $b $c $d $e" &&
	timeout 60 cat late &&
	flux cancel "$e" &&
	for id in $c $d $e; do await clean "$id" && events exception "$id" || return; done &&
	tasks=$(for n in 1 2 3; do read -r -t 60 pid && echo "$pid"; done <>pids | paste -sd,) &&
	echo "$tasks"
'

test_expect_success 'while the jobs run, the tokens are in the environment of their tasks' '
	record "$a" &&
	record "$b" &&
	cat "$canaries/file" "$canaries/command" >"$canaries/secrets" &&
	for pid in $(echo "$tasks" | tr , " "); do cat /proc/$pid/environ || return; done >"$base/canaries/environ" &&
	"$TESTS/search.py" "$canaries/secrets" "$canaries/environ" >both &&
	grep "secret 1" both &&
	grep "secret 2" both
'

test_expect_success 'and nowhere else, including the commands that show records' '
	mkdir -p gathered &&
	flux workflow-token show "$a" >gathered/shown &&
	cat gathered/shown &&
	grep DW_WORKFLOW_TOKEN gathered/shown &&
	grep "sealed by .*$(id -un)" gathered/shown &&
	! grep -F MUNGE: gathered/shown &&
	gather running workflow-token.so &&
	flux kvs put --sync checkpoint=1 &&
	everywhere file command stderr expired late &&
	test "$(cat status)" = 1
'

test_expect_success 'all expected places were searched' '
	grep workflow-token gathered/running/keys.primary &&
	grep MUNGE: gathered/running/values.primary &&
	test "$(grep -l "exported DW_WORKFLOW_TOKEN" gathered/running/output.* | wc -l)" = 2 &&
	grep "no workflow token was delivered" gathered/running/dmesg &&
	grep "\[redacted\]" gathered/running/dmesg &&
	grep shell.start gathered/running/guest-eventlog.* &&
	grep delivered gathered/running/query
'

test_expect_success 'after the jobs the tokens are found nowhere' '
	flux cancel $a $b &&
	for id in $ids; do await clean "$id" || return; done &&
	tasks= &&
	gather ended workflow-token.so &&
	grep "workflow-token: exported DW_WORKFLOW_TOKEN" gathered/ended/attach.* &&
	flux kvs put --sync checkpoint=2 &&
	everywhere file command stderr expired late &&
	test "$(cat status)" = 1
'

test_expect_success 'nor after the instance ends' '
	instance_down &&
	everywhere file command stderr expired late &&
	test "$(cat status)" = 1 &&
	test -e state/content.sqlite
'

test_done
