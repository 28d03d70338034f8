#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='The secret for Cray PMI is found only in the environment of its tasks'

. "$(dirname "$0")/lib.sh"
need_flux
command -v "${CC:-cc}" >/dev/null || skip "no C compiler found: install gcc"

PMI=$STAGE/lib/flux/job-manager/plugins/cray-pmi-bootstrap.so
PMI_SHELL=$STAGE/lib/flux/shell/plugins/cray-pmi-bootstrap.so
mkdir -m 0700 "$base/canaries"
canaries=$base/canaries
cleanup 'rm -rf "$canaries"'

# A plugin that reads the shell option like cray_pals.so, and exports it.
"${CC:-cc}" -shared -fPIC -o pals.so "$TESTS/../tests/support/pals.c" || error "pals.c does not compile"
cat >initrc.lua <<-EOF
	plugin.load { file = "$PMI_SHELL", conf = { ["munge-socket"] = "$MUNGE_SOCKET" } }
	plugin.load { file = "$PWD/pals.so" }
EOF
# A task that consists of one process and prints only its process id, to another place.
quiet_program

# sealed ID: prints the payload of the job's record, as its owner can read it.
sealed() {
	flux job info "$1" cray-pmi-bootstrap | jq -re .credential | unmunge --socket "$MUNGE_SOCKET" --metadata=/dev/null
}

test_expect_success 'an instance of two brokers loads the plugin' '
	munge_up &&
	table </dev/null &&
	instance_up 2 &&
	flux jobtap load "$PMI"
'

test_expect_success 'planted secrets of the real form are found' '
	echo 1234567890123456789 >"$canaries/planted" &&
	flux kvs put --sync planted="{\"secret\":1234567890123456789}" &&
	flux kvs get -l --raw planted >gathered &&
	"$TESTS/search.py" "$canaries/planted" "$PWD" >found &&
	grep /gathered found &&
	grep "content.sqlite: blob" found &&
	flux kvs unlink planted
'

test_expect_success 'the secret is in the environment of the tasks, and nowhere else' '
	id=$(flux submit -N2 -n2 -o verbose=2 "$PWD/quiet") &&
	tasks=$(for n in 1 2; do read -r -t 60 pid && echo "$pid"; done <>pids | paste -sd,) &&
	# As text, because jq would round it.
	secret=$(sealed "$id" | jq -re .variables.PMI_SHARED_SECRET) &&
	for pid in $(echo "$tasks" | tr , " "); do
		tr "\0" "\n" <"/proc/$pid/environ" >"$canaries/environ" &&
		grep -x "PMI_SHARED_SECRET=$secret" "$canaries/environ" || return
	done &&
	# Unsigned and signed. One secret in two thousand has too few digits to be unmistakable.
	python3 -c "import sys; n = int(sys.argv[1]); print(n, abs(n - (n >> 63 << 64)))" "$secret" >"$canaries/secrets" &&
	if grep -Eq "\b[0-9]{1,15}\b" "$canaries/secrets"; then echo 1234567890123456789 >"$canaries/secrets"; fi &&
	mkdir running &&
	flux job eventlog "$id" >running/eventlog &&
	flux job eventlog -p guest.exec.eventlog "$id" >running/guest-eventlog &&
	flux job info "$id" guest.output >running/output &&
	flux job info "$id" cray-pmi-bootstrap >running/record &&
	flux dmesg >running/dmesg &&
	flux jobtap query cray-pmi-bootstrap.so >running/query &&
	flux kvs put --sync checkpoint=1 &&
	test_expect_code 1 "$TESTS/search.py" "$canaries/secrets" "$PWD" "proc:$tasks" &&
	grep "set cray-pals.pmi-bootstrap" running/output &&
	grep MUNGE: running/record &&
	grep cray-pmi-bootstrap running/eventlog
'

test_expect_success 'nor is it after the job, whose record is removed' '
	flux cancel "$id" &&
	await clean "$id" &&
	is_unlinked() { ! flux job info "$id" cray-pmi-bootstrap 2>/dev/null; } &&
	eventually is_unlinked &&
	flux kvs put --sync checkpoint=2 &&
	test_expect_code 1 "$TESTS/search.py" "$canaries/secrets" "$PWD"
'

test_expect_success 'the log contains no error of the plugin' '
	flux dmesg >dmesg &&
	! grep "\.err\[0\]: cray-pmi-bootstrap: " dmesg
'

test_expect_success 'the instance ends normally' 'instance_down'

test_done
