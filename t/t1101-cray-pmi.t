#!/usr/bin/env bash
test_description='Jobs of several nodes get two ports and a secret for Cray PMI, which is sealed'

. "$(dirname "$0")/lib.sh"
need_flux
command -v "${CC:-cc}" >/dev/null || skip "no C compiler found: install gcc"

PMI=$STAGE/lib/flux/job-manager/plugins/cray-pmi-bootstrap.so
PMI_SHELL=$STAGE/lib/flux/shell/plugins/cray-pmi-bootstrap.so
mkdir -m 0700 "$base/canaries"
canaries=$base/canaries
cleanup 'rm -rf "$canaries"'

# What takes the shell option as cray_pals.so does, and exports it.
"${CC:-cc}" -shared -fPIC -o pals.so "$TESTS/../tests/support/pals.c" || error "pals.c does not compile"
cat >initrc.lua <<-EOF
	plugin.load { file = "$PMI_SHELL", conf = { ["munge-socket"] = "$MUNGE_SOCKET" } }
	plugin.load { file = "$PWD/pals.so" }
EOF
program show <<-EOF
	#!/bin/sh
	echo "\${PMI_CONTROL_PORT-unset} \${PMI_SHARED_SECRET-unset} \${PALS_NO_EDIT-unset}"
EOF
# A task that says nothing but its process id, and that elsewhere, and is one process only.
quiet_program

pmi_load() {
	flux jobtap load "$PMI" "$@"
}

pmi_counter() {
	flux jobtap query cray-pmi-bootstrap.so | python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"
}

# has_ports ID FIRST,SECOND: its one event tells these ports, and nothing else.
has_ports() {
	flux job eventlog --format=json "$1" | grep '"cray-pmi-bootstrap","context"' >event.json &&
		jq -ce .context event.json >context &&
		echo "{\"ports\":[$2]}" >expected &&
		test_cmp expected context
}

# sealed ID: the payload of its record, as its owner can read it.
sealed() {
	flux job info "$1" cray-pmi-bootstrap | jq -re .credential | unmunge --socket "$MUNGE_SOCKET" --metadata=/dev/null
}

test_expect_success 'an instance of four brokers' '
	munge_up &&
	table </dev/null &&
	FLUX_DISABLE_JOB_CLEANUP=t instance_up 4
'

test_expect_success 'ranges of ports that are none are refused' '
	test_expect_code 1 pmi_load port-min=0 port-max=12000 &&
	test_expect_code 1 pmi_load port-min=11000 port-max=120000 &&
	test_expect_code 1 pmi_load port-min=11000 port-max=11010 &&
	flux dmesg | grep "cray-pmi-bootstrap: cannot be loaded: not enough ports"
'

test_expect_success 'without ports given, it is loaded with the default, and says so' '
	pmi_load &&
	flux dmesg | grep "Using defaults of 11000 and 12000" &&
	test "$(pmi_counter ports-free)" = 1000
'

test_expect_success 'all tasks of a job have its ports and one secret' '
	id=$(flux submit -N3 -n6 -o cray-pals.no-edit-env=1 "$PWD/show") &&
	flux job attach "$id" >out &&
	test "$(wc -l <out)" = 6 &&
	test "$(sort -u out | wc -l)" = 1 &&
	grep -E "^11999,11998 [0-9]+ 1$" out &&
	has_ports "$id" 11999,11998 &&
	test "$(flux job eventlog "$id" | sed -n "s/^[^ ]* \(prolog-start\|cray-pmi-bootstrap\|prolog-finish\|start\)\( .*\)\?$/\1/p" | paste -sd " ")" \
		= "prolog-start cray-pmi-bootstrap prolog-finish start"
'

test_expect_success 'ports come back when a job has ended' '
	flux run -N2 true &&
	id=$(flux submit -N2 true) &&
	await clean "$id" &&
	{ has_ports "$id" 11999,11998 || has_ports "$id" 11998,11999; } &&
	test "$(pmi_counter ports-free)" = 1000
'

test_expect_success 'a job of one node is left alone' '
	id=$(flux submit -N1 -n2 "$PWD/show") &&
	flux job attach "$id" >out &&
	grep "^unset unset unset$" out &&
	has_no_event prolog-start "$id" &&
	has_no_event cray-pmi-bootstrap "$id"
'

test_expect_success 'what the user says stands' '
	flux run -N2 -o cray-pals.pmi-bootstrap=[1,2,3] "$PWD/show" >out &&
	test "$(sort -u out)" = "1,2 3 unset" &&
	flux run -N2 -o cray-pals.pmi-bootstrap=off "$PWD/show" >out &&
	test "$(sort -u out)" = "unset unset unset" &&
	flux run -N2 -o pmi=simple "$PWD/show" >out &&
	test "$(sort -u out)" = "unset unset unset" &&
	flux run -N2 -o pmi=simple,cray-pals "$PWD/show" >out &&
	grep -E "^1199[89],1199[89] [0-9]+ unset$" out
'

test_expect_success 'a job is held until its secret is sealed' '
	munge_signal STOP &&
	id=$(flux submit -N2 "$PWD/show") &&
	await prolog-start "$id" &&
	flux run true &&
	has_no_event start "$id" &&
	munge_signal CONT &&
	flux job attach "$id"
'

test_expect_success 'a job whose secret cannot be sealed gets one exception and does not start' '
	flux jobtap load --remove=cray-pmi-bootstrap.so "$PMI" timeout=1s &&
	munge_signal STOP &&
	test_when_finished "munge_signal CONT" &&
	id=$(flux submit -N2 true) &&
	is_refused "$id" cray-pmi-bootstrap "no secret for Cray PMI for this job: it took longer than 1 s" &&
	has_no_event start "$id" &&
	test "$(pmi_counter ports-free)" = 1000
'

test_expect_success 'what is planted is found, of the form that secrets have' '
	echo 1234567890123456789 >"$canaries/planted" &&
	flux kvs put --sync planted="{\"secret\":1234567890123456789}" &&
	flux kvs get -l --raw planted >gathered &&
	"$TESTS/search.py" "$canaries/planted" "$PWD" >found &&
	grep /gathered found &&
	grep "content.sqlite: blob" found &&
	flux kvs unlink planted
'

test_expect_success 'the secret is in the environment of the tasks, and nowhere else' '
	flux jobtap load --remove=cray-pmi-bootstrap.so "$PMI" &&
	id=$(flux submit -N2 -n2 -o verbose=2 "$PWD/quiet") &&
	tasks=$(for n in 1 2; do read -r -t 60 pid && echo "$pid"; done <>pids | paste -sd,) &&
	# As text, since jq would round it.
	secret=$(sealed "$id" | jq -re .variables.PMI_SHARED_SECRET) &&
	for pid in $(echo "$tasks" | tr , " "); do
		tr "\0" "\n" <"/proc/$pid/environ" >"$canaries/environ" &&
		grep -x "PMI_SHARED_SECRET=$secret" "$canaries/environ" || return
	done &&
	# Without and with its sign. One in two thousand has too few digits to be told from others.
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

test_expect_success 'ports of a job that runs are not given again after a reload, and come back' '
	has_ports "$id" 11999,11998 &&
	flux jobtap load --remove=cray-pmi-bootstrap.so "$PMI" &&
	test "$(pmi_counter ports-free)" = 998 &&
	other=$(flux submit -N2 true) &&
	await clean "$other" &&
	has_ports "$other" 11997,11996 &&
	flux cancel "$id" &&
	await clean "$id" &&
	flux dmesg >dmesg &&
	test "$(pmi_counter ports-free)" = 1000
'

test_expect_success 'after the job the record is removed' '
	is_unlinked() { ! flux job info "$id" cray-pmi-bootstrap 2>/dev/null; } &&
	eventually is_unlinked &&
	flux kvs put --sync checkpoint=2 &&
	test_expect_code 1 "$TESTS/search.py" "$canaries/secrets" "$PWD"
'

test_expect_success 'canceled while it is removed, with its delivery under way, a job ends when it is back' '
	munge_signal STOP &&
	id=$(flux submit -N2 true) &&
	await cray-pmi-bootstrap "$id" &&
	flux jobtap remove cray-pmi-bootstrap.so &&
	flux cancel "$id" &&
	await exception "$id" &&
	pmi_load &&
	await clean "$id" &&
	munge_signal CONT &&
	has_no_event start "$id" &&
	test "$(events prolog-finish "$id" | wc -l)" = 1 &&
	test "$(pmi_counter ports-free)" = 1000
'

test_expect_success 'the instance restarted with deliveries under way: they go on, with the same ports' '
	printf "[job-manager]\nplugins = [ { load = \"%s\" } ]\n" "$PMI" >config/job-manager.toml &&
	munge_signal STOP &&
	a=$(flux submit -N2 "$PWD/show") &&
	b=$(flux submit -N2 "$PWD/show") &&
	await cray-pmi-bootstrap "$a" &&
	await cray-pmi-bootstrap "$b" &&
	has_ports "$a" 11999,11998 &&
	has_ports "$b" 11997,11996 &&
	instance_down &&
	FLUX_DISABLE_JOB_CLEANUP=t instance_up 4 &&
	# Not before all brokers are there: Flux does not wait for them.
	munge_signal CONT &&
	c=$(flux submit -N2 "$PWD/show") &&
	for job in "$a" "$b" "$c"; do flux job attach "$job" || return; done >out &&
	has_ports "$a" 11999,11998 &&
	has_ports "$b" 11997,11996 &&
	grep "^11999,11998 [0-9]* unset$" out &&
	grep "^11997,11996 [0-9]* unset$" out &&
	test "$(pmi_counter resumed)" = 2 &&
	test "$(pmi_counter ports-free)" = 1000
'

test_expect_success 'without the plugin in the job manager, jobs go on without, and the shell says nothing' '
	flux jobtap remove cray-pmi-bootstrap.so &&
	flux run -N2 -o cpu-affinity=off "$PWD/show" >out 2>err &&
	test "$(sort -u out)" = "unset unset unset" &&
	test_must_be_empty err
'

test_expect_success 'the log has no complaint of the plugin' '
	flux dmesg >>dmesg &&
	! grep "\.err\[0\]: cray-pmi-bootstrap: " dmesg | grep -v "took longer than 1 s\|cannot be loaded"
'

test_expect_success 'the instance ends well' 'instance_down'

test_done
