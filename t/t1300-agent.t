#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='The agent is killed, stopped, missing, changed by others, or exits immediately: jobs receive their tokens, or fail in time'

. "$(dirname "$0")/lib.sh"
need_flux

# The plugin looks for a missing program in the tree that contains the plugin.
cp -R "$STAGE" stage || error "the stage could not be copied"
STAGE=$PWD/stage
JOBTAP=$STAGE/lib/flux/job-manager/plugins/workflow-token.so
SHELL_PLUGIN=$STAGE/lib/flux/shell/plugins/workflow-token.so
test "$(id -u)" != 0 || test_set_prereq ROOT
test -e /usr/libexec/workflow-token-agent || test_set_prereq NONE_INSTALLED
! command -v gcore >/dev/null || test_set_prereq GCORE
SECONDS_STOPPED=${WORKFLOW_TOKEN_AGENT_STOPPED:-60}

JOBS=${WORKFLOW_TOKEN_AGENT_JOBS:-2000}
KILLS=${WORKFLOW_TOKEN_AGENT_KILLS:-200}
token_file token >/dev/null
program prints <<-EOF
	#!/bin/sh
	test "\$DW_WORKFLOW_TOKEN" = "\$(cat "$PWD/token")" && echo good >>"$PWD/out"
EOF
rules() {
	cat <<-EOF
		[[workflow-token.rule]]
		attribute = "system.workflow"
		source = "file"
		path = "$PWD/token"
	EOF
}
rules | table

# agents: prints the processes of this test's agents.
agents() {
	pgrep -f "^/.*/workflow-token-agent --socket $RUN/"
}

one_agent() {
	test "$(agents | wc -l)" = 1
}

broker() {
	echo "${BROKERS%% *}"
}

# holdings: prints the threads and descriptors of the broker.
holdings() {
	echo "$(ls "/proc/$(broker)/task" | wc -l) $(ls "/proc/$(broker)/fd" | wc -l)"
}

# used: prints the CPU time of the broker, in hundredths of a second.
used() {
	sed "s/.*) //" "/proc/$(broker)/stat" | { read -ra fields && echo $((fields[11] + fields[12])); }
}

log_has() {
	flux dmesg >dmesg && grep -F -e "$1" dmesg
}

# gets_token: succeeds if the next job has its token.
gets_token() {
	rm -f out && id=$(submit "$PWD/prints") && await clean "$id" && test "$(cat out)" = good
}

test_expect_success 'an instance loads the plugin, and the plugin starts an agent' '
	munge_up &&
	instance_up 1 &&
	load &&
	gets_token &&
	one_agent
'

test_expect_success 'the agent leaves no core image, and inherits no descriptor of the broker' '
	pid=$(agents) &&
	grep "^Max core file size *0 *0 " /proc/$pid/limits &&
	ls -l /proc/$pid/fd >fds && cat fds &&
	! grep -e "/local-0" -e "content.sqlite" fds
'

test_expect_success "no thread of the plugin is in the broker" '
	cat /proc/$(broker)/task/*/comm >threads && test -s threads &&
	! grep workflow-token threads
'

test_expect_success "the agent is killed repeatedly while $JOBS jobs run: each has its token" '
	rm -f out enough && holdings >before && echo 0 >killed &&
	{
		count=0
		while test $count -lt $KILLS && ! test -e enough; do
			sleep "0.$((RANDOM % 2))$((RANDOM % 10))"
			pid=$(agents) && kill -KILL $pid && count=$((count + 1))
			echo $count >killed
		done
	} &
	killer=$! &&
	LIMIT=500 submit --cc=1-$JOBS -o cpu-affinity=off "$PWD/prints" >ids &&
	LIMIT=500 flux queue idle --quiet --timeout=490s &&
	touch enough && wait $killer
	cat killed &&
	flux jobs -a -c $((JOBS + 100)) -no "{id.dec} {result} {exception.note}" >results &&
	test "$(wc -l <results)" -gt $JOBS &&
	! grep -v " COMPLETED " results &&
	test "$(wc -l <out)" = $JOBS
'

test_expect_success "and until it was killed $KILLS times" '
	while test "$(cat killed)" -lt $KILLS; do
		id=$(submit "$PWD/prints") && { pid=$(agents) && kill -KILL $pid; true; } &&
			echo $(($(cat killed) + 1)) >killed && await clean "$id" &&
			test "$(flux jobs -no "{result}" $id)" = COMPLETED || return
	done
'

# as_before: succeeds if the numbers of threads and descriptors are as before.
as_before() {
	holdings >after && cat before after && test_cmp before after
}

test_expect_success 'the broker has as many threads and descriptors as before' '
	gets_token && eventually one_agent && eventually as_before
'

test_expect_success 'while the agent is stopped, jobs that need it fail in time and others run' '
	{ echo "timeout = \"2s\"" && rules; } | table && gets_token &&
	pid=$(agents) && kill -STOP $pid &&
	id=$(submit "$PWD/prints") &&
	for n in $(seq 5); do flux run true || return; done &&
	is_failed_delivery "$id" "[agent-timeout]"
'

test_expect_success 'a new agent serves the next job' '
	gets_token && eventually one_agent && test "$(agents)" != "$pid"
'

# others: prints the time of 50 jobs without a token, and the CPU time of the broker for them, in hundredths of a
# second.
others() {
	local start before
	start=$(date +%s%2N) before=$(used)
	LIMIT=300 flux submit --cc=1-50 -o cpu-affinity=off --wait --quiet true || return
	echo $(($(date +%s%2N) - start)) $(($(used) - before))
}

test_expect_success "the agent is stopped for $SECONDS_STOPPED seconds: other jobs run while deliveries wait for it" '
	{ echo "timeout = \"${SECONDS_STOPPED}s\"" && rules; } | table && gets_token &&
	pid=$(agents) && kill -STOP $pid &&
	submit --cc=1-4 -o cpu-affinity=off "$PWD/prints" >waiting &&
	for id in $(cat waiting); do await prolog-start $id || return; done &&
	others >took &&
	for id in $(cat waiting); do
		has_no_event prolog-finish $id && has_no_event exception $id || return
	done
'

# The first delivery makes the plugin replace the agent, so the others may receive their tokens just in time.
test_expect_success 'and the deliveries fail at their timeout' '
	for id in $(cat waiting); do
		LIMIT=$((SECONDS_STOPPED + 60)) flux job wait-event -q -t $((SECONDS_STOPPED + 60)) $id clean &&
		{ test "$(flux jobs -no "{result}" $id)" = COMPLETED ||
			is_failed_delivery $id "it took longer than $SECONDS_STOPPED s"; } || return
		events exception $id >>timeouts
	done &&
	grep -F "[agent-timeout]" timeouts
'

test_expect_success 'a new agent serves the next job' '
	gets_token && eventually one_agent && test "$(agents)" != "$pid"
'

test_expect_success 'without the plugin, the other jobs cost the broker as much' '
	unload && others >without && load && gets_token &&
	echo "# hundredths of a second for 50 other jobs, and of the broker: agent stopped $(cat took), no plugin $(cat without)" >&5 &&
	read -r _ took <took && read -r _ without <without &&
	test "$took" -lt $((2 * without + 20))
'

# fails_closed TABLE TEXT: checks that with this key, jobs fail in time, one line of the log contains the text, and the
# broker uses little CPU time.
fails_closed() {
	local before start
	before=$(used) start=$(date +%s%2N) &&
		fails_closed_busily "$@" &&
		echo "the broker ran for $(($(used) - before)) of $(($(date +%s%2N) - start)) hundredths of a second" &&
		test $((2 * ($(used) - before))) -lt $(($(date +%s%2N) - start))
}

fails_closed_busily() {
	{ echo "timeout = \"1s\"" && echo "$1" && rules; } | table &&
		{
			pid=$(agents) && kill -KILL $pid
			true
		} &&
		for _ in 1 2 3; do
			id=$(submit true) && is_failed_delivery "$id" "[agent-unavailable]" || return
		done &&
		log_has "$2" >lines && cat lines && test "$(wc -l <lines)" = 1
}

AGENT=$STAGE/libexec/workflow-token-agent

test_expect_success 'the plugin does not run an agent that others can change' '
	cp "$AGENT" changed && chmod 0777 changed &&
	fails_closed "agent-program = \"$PWD/changed\"" "$PWD/changed is not run"
'

test_expect_success ROOT 'nor an agent of another user' '
	cp "$AGENT" foreign && chmod 0755 foreign && chown daemon foreign &&
	fails_closed "agent-program = \"$PWD/foreign\"" "$PWD/foreign is not run"
'

test_expect_success NONE_INSTALLED 'the log names a missing agent' '
	mv "$AGENT" "$AGENT.away" &&
	fails_closed "agent-program = \"$PWD/missing\"" "its program was not found (tried $PWD/missing, $AGENT, "
	result=$?
	mv "$AGENT.away" "$AGENT" && return $result
'

test_expect_success 'the plugin does not run an agent in a directory that others can change' '
	mkdir -p open && cp "$AGENT" open/agent && chmod 0777 open &&
	fails_closed "agent-program = \"$PWD/open/agent\"" "$PWD/open/agent is not run"
'

test_expect_success 'an agent that exits immediately is restarted with backoff' '
	printf "#!/bin/sh\necho x >>\"$PWD/started\"\nexit 3\n" | program ends &&
	fails_closed "agent-program = \"$PWD/ends\"" "it ended at once" &&
	test "$(wc -l <started)" -lt 30
'

test_expect_success 'a configured socket without a listener' '
	fails_closed "agent = \"$PWD/nobody\"" "the agent at $PWD/nobody cannot be used"
'

test_expect_success 'once the agent runs again, jobs receive tokens' '
	rules | table && gets_token && log_has "the agent answers again"
'

test_expect_success 'an agent started by others serves, and the plugin starts none' '
	{ "$AGENT" --stay --socket "$PWD/own" 2>agent.err & } &&
	own=$! &&
	eventually test -S own &&
	{ echo "agent = \"$PWD/own\"" && rules; } | table &&
	{ pid=$(agents) && kill -KILL $pid; true; } &&
	gets_token && ! agents &&
	kill $own && rules | table && gets_token
'

# Prints the writable memory of a process, as in a core image.
program memory <<-'EOF'
	#!/usr/bin/env python3
	import re, sys
	pid, secret = sys.argv[1], open(sys.argv[2], "rb").read().strip()
	found = 0
	with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
	    for line in maps:
	        start, end, mode = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+)", line).groups()
	        if mode.startswith("rw"):
	            memory.seek(int(start, 16))
	            try:
	                found += memory.read(int(end, 16) - int(start, 16)).count(secret)
	            except (OSError, ValueError):
	                pass
	print(found)
EOF

test_expect_success 'the memory of the broker contains no token while 100 jobs receive theirs' '
	LIMIT=200 submit --cc=1-100 true >ids &&
	for n in $(seq 10); do
		"$PWD/memory" "$(broker)" token >found && cat found && test "$(cat found)" = 0 || return
	done &&
	flux queue idle --quiet --timeout=60s
'

# image PID: makes a core image of a process, as after a crash, but the process continues.
image() {
	rm -f core.* && timeout -k 5 120 gcore -a -o core "$1" >gcore.log 2>&1 && test -s "core.$1" || {
		cat gcore.log
		return 1
	}
}

test_expect_success GCORE 'a core image of the broker during deliveries contains no token' '
	{ echo "timeout = \"120s\"" && rules; } | table && gets_token &&
	munge_signal STOP &&
	submit --cc=1-8 "$PWD/prints" >ids &&
	for id in $(cat ids); do await prolog-start $id || return; done &&
	test "$(counter in-flight)" = 8 &&
	image "$(broker)" && ! grep -aFq -f token "core.$(broker)" &&
	munge_signal CONT && flux queue idle --quiet --timeout=60s &&
	for id in $(cat ids); do test "$(flux jobs -no "{result}" $id)" = COMPLETED || return; done
'

test_expect_success 'the same search finds a token in a process that has it' '
	mkfifo held never2 &&
	{ python3 -c "secret = open(\"token\").read(); open(\"held\", \"w\").write(\"x\"); open(\"never2\").read()" & } &&
	holder=$! &&
	cat held &&
	"$PWD/memory" $holder token >found && test "$(cat found)" -gt 0
'

test_expect_success GCORE 'and so does a core image' '
	image $holder && grep -aFq -f token core.$holder; result=$?; kill $holder; return $result
'

test_expect_success 'the agent ends after the broker' '
	pid=$(agents) && instance_down && eventually is_gone $pid
'

test_done
