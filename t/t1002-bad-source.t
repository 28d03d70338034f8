#!/usr/bin/env bash
test_description='A source without a usable token: one clear exception, and the job does not start'

. "$(dirname "$0")/lib.sh"
need_flux

file_rule() {
	printf '[[workflow-token.rule]]\nattribute = "system.%s"\nsource = "file"\npath = "%s"\n%s\n' "$1" "$PWD/$1.jwt" "$2"
}

command_rule() {
	printf '[[workflow-token.rule]]\nattribute = "system.%s"\nsource = "command"\ncommand = ["%s"]\n%s\n' \
		"$1" "$PWD/$1" "$2"
}

umask 077
token_file good.jwt >/dev/null
token_file readable.jwt >/dev/null && chmod 0644 readable.jwt
token_file expired.jwt exp=1000000000 >/dev/null
token_file unsigned.jwt >/dev/null && sed -i 's/\.[^.]*$/./' unsigned.jwt
mkfifo fifo.jwt
truncate -s 1T huge.jwt
printf 'to\0ken' >nul.jwt
printf '%s\n' "$(cat good.jwt)" "$(cat good.jwt)" >lines.jwt
printf 'to\377ken' >latin.jwt
: >empty.jwt
echo "an opaque secret $(new_token | cut -d. -f3)" >opaque.jwt
cp opaque.jwt unchecked.jwt
stderr_token=$(new_token)

program failing <<-EOF
	#!/bin/sh
	echo "no token for you, said the service to $stderr_token" >&2
	cat "$PWD/good.jwt"
	exit 3
EOF
program chatty <<-EOF
	#!/bin/sh
	echo "all is well with $stderr_token" >&2
	cat "$PWD/good.jwt" >&2
	cat "$PWD/good.jwt"
EOF
program slow <<-EOF
	#!/bin/sh
	sleep 1000 &
	echo \$! >"$PWD/grandchild"
	wait
EOF
program flood <<-EOF
	#!/bin/sh
	exec cat /dev/zero
EOF
program killed <<-EOF
	#!/usr/bin/env python3
	import os, signal
	os.kill(os.getpid(), signal.SIGTERM)
EOF
program signals <<-EOF
	#!/usr/bin/env python3
	# Not a shell: some of them start with clearing their signal mask.
	status = open("/proc/self/status").readlines()
	open("$PWD/signals.out", "w").writelines(line for line in status if line.startswith("SigBlk:"))
	print(open("$PWD/good.jwt").read(), end="")
EOF
program silent <<-EOF
	#!/bin/sh
EOF
{
	for name in good missing readable fifo huge nul lines latin empty opaque expired unsigned; do
		file_rule $name
	done
	file_rule unchecked 'check = "none"'
	for name in signals flood killed silent absent; do
		command_rule $name
	done
	for name in failing chatty; do
		command_rule $name 'log-stderr = true'
	done
	command_rule slow 'timeout = "1s"'
} | table

# fails NAME TEXT CAUSE: a job of that rule is refused; its owner reads TEXT and no path, and the log has the CAUSE.
fails() {
	rm -f started.$1
	id=$(flux submit --setattr=system.$1=1 touch started.$1) &&
		is_failed_delivery "$id" "$2" &&
		! test -e started.$1 &&
		! grep -F "$PWD" exceptions &&
		flux dmesg >dmesg &&
		grep -F "$id: no workflow token was delivered:" dmesg >cause &&
		cat cause &&
		test "$(wc -l <cause)" = 1 &&
		grep -F "$3" cause
}

# says TEXT: the log has it, and none of the tokens.
says() {
	flux dmesg >dmesg &&
		grep -F "$1" dmesg &&
		! grep -Fe "$(cut -d. -f3 good.jwt)" dmesg &&
		! grep -Fe "$(echo $stderr_token | cut -d. -f3)" dmesg
}

test_expect_success 'an instance takes the plugin' '
	munge_up &&
	instance_up 1 &&
	load
'

test_expect_success 'a file that is missing' 'fails missing "does not exist" "$PWD/missing.jwt"'
test_expect_success 'a file that others can read' 'fails readable "was refused" "$PWD/readable.jwt: mode 0644"'
test_expect_success 'a file that is a FIFO, at once' 'fails fifo "was refused" "not a regular file"'
test_expect_success 'a file that is huge' 'fails huge "no usable value" "longer than"'
test_expect_success 'a value with a NUL' 'fails nul "no usable value" "NUL"'
test_expect_success 'a value of two lines' 'fails lines "no usable value" "more than one line"'
test_expect_success 'a value that is not UTF-8' 'fails latin "no usable value" "not UTF-8"'
test_expect_success 'an empty value' 'fails empty "no usable value" "empty"'
test_expect_success 'a value that is no JWT' 'fails opaque "was refused" "check = \"none\""'
test_expect_success 'a token that has expired' 'fails expired "the token expired" "2001-09-09"'
test_expect_success 'a token without a signature' 'fails unsigned "signature" "signature"'
test_expect_success 'a secret that is no JWT passes unchecked where the rule says so' '
	flux run --setattr=system.unchecked=1 printenv DW_WORKFLOW_TOKEN >out &&
	test_cmp unchecked.jwt out
'

test_expect_success 'a command that fails' '
	fails failing "exit code 3" "$PWD/failing" &&
	says "no token for you, said the service to [redacted]"
'
test_expect_success 'what a command says on its standard error is in the log, redacted, when it succeeds as well' '
	flux run --setattr=system.chatty=1 printenv DW_WORKFLOW_TOKEN >out &&
	test_cmp good.jwt out &&
	says "all is well with [redacted]"
'
test_expect_success 'a command that is slow is killed at its timeout, with what it started' '
	fails slow "took longer than 1 s" "killed with its process group" &&
	eventually is_gone $(cat grandchild)
'
test_expect_success 'a command that prints without an end' 'fails flood "no usable value" "$PWD/flood"'
test_expect_success 'a command that prints nothing' 'fails silent "no usable value" "empty"'
test_expect_success 'a command that is killed' 'fails killed "signal 15" "$PWD/killed"'
test_expect_success 'no signal is blocked in a command, which may rely on them' '
	flux run --setattr=system.signals=1 true &&
	cat signals.out &&
	grep "0000000000000000$" signals.out
'
test_expect_success 'a command that does not exist' 'fails absent "could not be started" "$PWD/absent"'

test_expect_success 'all were counted, and none is left' '
	flux jobtap query workflow-token.so &&
	test "$(counter failed)" = 17 &&
	test "$(counter in-flight)" = 0
'
test_expect_success 'the next job is served' '
	flux run --setattr=system.good=1 printenv DW_WORKFLOW_TOKEN >out &&
	test_cmp good.jwt out
'
test_expect_success 'the instance ends well' 'instance_down'

test_done
