#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='Slurm: the same shared object on other releases, each in a chroot of a Debian suite that packages it'

. "$(dirname "$0")/lib.sh"
SUITES=$WORKFLOW_TOKEN_TEST_SUITES
test -n "$SUITES" || skip "no suites are named: set WORKFLOW_TOKEN_TEST_SUITES, as in \"trixie sid\""
test "$(id -u)" -eq 0 || skip "not root: no chroot can be made"
command -v debootstrap >/dev/null || skip "no debootstrap found: install it"

# inside SUITE COMMAND: runs a command with mounts and processes that end with
# it.
inside() {
	# shellcheck disable=SC2016
	unshare --mount --pid --fork --kill-child sh -c '
		mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && mount -t tmpfs tmpfs "$1/tmp" || exit
		exec chroot "$1" /usr/bin/env -i HOME=/root USER=root LANG=C.UTF-8 WORKFLOW_TOKEN_STAGE=/root/stage \
			PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin sh -c "$2"
	' - "$PWD/$1" "$2"
}

packages=ca-certificates,munge,libmunge2,slurmctld,slurmd,slurm-client,sharness,python3,procps,perl
packages+=,slurmdbd,mariadb-server-core,mariadb-client,runc
for suite in $SUITES; do
	debootstrap --variant=minbase --include="$packages" "$suite" "$suite" http://deb.debian.org/debian >"$suite.log" 2>&1 || {
		test_expect_success "$suite # SKIP its archive cannot be used: $(tail -n 1 "$suite.log")" true
		continue
	}
	cp /etc/hosts /etc/resolv.conf "$suite/etc/"
	mkdir "$suite/root/tests" && cp -r "$TESTS" "$suite/root/tests/t" && cp -r "$STAGE" "$suite/root/stage"
	release=$(inside "$suite" "slurmctld -V")
	for test in t2000-jobs t2001-faults t2002-canaries t2003-operators t2004-failover t2005-accounting; do
		test_expect_success "$suite, $release: $test" '
			inside $suite "cd /root/tests/t/slurm && ./$test.t -v" >$test.log 2>&1 &&
			! grep "^1\.\.0" $test.log ||
			{ grep -B30 "^not ok" $test.log; tail -n 3 $test.log; false; }
		'
	done
done

test_done
