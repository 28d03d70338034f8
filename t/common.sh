# SPDX-License-Identifier: MIT OR Apache-2.0
# shellcheck shell=bash
# Code shared by tests and the demo: a private munged, tokens, and waiting.
#
# TESTS is the directory of this file.

#
# munged, with its own key and socket.
#

MUNGE_SOCKET=${SHARNESS_TRASH_DIRECTORY:-$PWD}/munge.socket

# munge_up: starts munged, and returns when it responds. Needs --force, because the directory is not acceptable for a
# daemon of root.
munge_up() {
	local dir=${MUNGE_SOCKET%/*}
	local key=$dir/munge.key
	test -e "$key" || (umask 077 && head -c 1024 /dev/urandom >"$key") || return
	munged --force --key-file="$key" --socket="$MUNGE_SOCKET" --pid-file="$dir/munged.pid" \
		--log-file="$dir/munged.log" --seed-file="$dir/munged.seed" 2>>"$dir/munged.err" 8>&- 9>&- || {
		echo "munged did not start:"
		cat "$dir/munged.err" "$dir/munged.log"
		return 1
	}
	MUNGED=$(cat "$dir/munged.pid")
}

# munge_signal SIGNAL
munge_signal() {
	kill -s "$1" "$MUNGED"
}

# munge_kill: kills munged as a crash would, so that its socket remains.
munge_kill() {
	test -n "$MUNGED" || return 0
	kill -KILL "$MUNGED" 2>/dev/null
	await_exit "$MUNGED"
	MUNGED=
}

# await_exit PID: waits for the end of a process, which need not be a child.
await_exit() {
	timeout 60 tail --pid="$1" -f /dev/null
}

#
# Tokens and waiting.
#

# new_token [CLAIM=VALUE…]: prints a new token.
new_token() {
	"$TESTS/new-token.py" "$@"
}

# token_file FILE [CLAIM=VALUE…]: writes a new token to a file that only its owner can read, and to standard output.
token_file() {
	local file=$1
	shift
	(umask 077 && rm -f "$file" && new_token "$@" >"$file") && cat "$file"
}

# mint_program DIRECTORY [TESTS]: makes the program `mint`. It prints a token that is valid for the number of seconds in
# the file `lifetime`, and stores it in DIRECTORY, unless the file `down` exists. TESTS is the directory where other
# users find new-token.py.
mint_program() {
	mkdir -p "$1" && : >"$1/minted" && program mint <<-EOF
		#!/bin/sh
		test ! -e "$PWD/down" || { echo "the source is down" >&2; exit 1; }
		token=\$("${2:-$TESTS}/new-token.py" exp=\$((\$(date +%s) + \$(cat "$PWD/lifetime")))) &&
		echo "\$token" >>"$1/minted" && echo "\$token"
	EOF
}

# readers_saw FILE TOKENS: succeeds if all tasks of read-token.py, whose output is in FILE, read at least this number of
# tokens, each complete and valid, and received one signal for each token but the first.
readers_saw() {
	cat "$1" && python3 - "$@" <<-\EOF
		import json, sys
		for line in open(sys.argv[1]):
		    seen = json.loads(line)
		    assert seen["first"] and seen["reads"] > 100, seen
		    assert not seen["incomplete"] and not seen["expired"], seen
		    assert seen["tokens"] >= int(sys.argv[2]) and seen["signals"] == seen["tokens"] - 1, seen
	EOF
}

# eventually COMMAND…: repeats the command until it succeeds, for conditions without an event. The limit is a minute, or
# LONGEST seconds.
eventually() {
	local limit=$((SECONDS + ${LONGEST:-60}))
	until "$@"; do
		test $SECONDS -lt $limit || return
		sleep 0.1
	done
}

# is_gone PID: succeeds if the process has ended, even if its parent has not reaped it.
is_gone() {
	! test -e "/proc/$1/stat" || grep -q ") [ZX] " "/proc/$1/stat"
}

# program FILE: makes a program from standard input.
program() {
	cat >"$1" && chmod 0755 "$1"
}
