#!/usr/bin/env bash
test_description='The agent is killed, stopped, missing, changed by others, or ends at once: jobs get their tokens, or fail in time'

. "$(dirname "$0")/lib.sh"
need_flux

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

# agents: the processes of agents of this test.
agents() {
	pgrep -f "^[^ ]*workflow-token-agent --socket $RUN/"
}

one_agent() {
	test "$(agents | wc -l)" = 1
}

broker() {
	echo "${BROKERS%% *}"
}

# holdings: the threads and descriptors of the broker.
holdings() {
	echo "$(ls "/proc/$(broker)/task" | wc -l) $(ls "/proc/$(broker)/fd" | wc -l)"
}

log_has() {
	flux dmesg >dmesg && grep -F -e "$1" dmesg
}

# gets_token: the next job has its token.
gets_token() {
	rm -f out && id=$(submit "$PWD/prints") && await clean "$id" && test "$(cat out)" = good
}

test_expect_success 'an instance takes the plugin, and the plugin starts an agent' '
	munge_up &&
	instance_up 1 &&
	load &&
	gets_token &&
	one_agent
'

test_expect_success 'the agent leaves no core image, and has no descriptor of the broker' '
	pid=$(agents) &&
	grep "^Max core file size *0 *0 " /proc/$pid/limits &&
	ls -l /proc/$pid/fd >fds && cat fds &&
	! grep -e "/local-0" -e "content.sqlite" fds
'

test_expect_success "no thread of ours is in the broker" '
	cat /proc/$(broker)/task/*/comm >threads && test -s threads &&
	! grep workflow-token threads
'

test_expect_success "the agent is killed again and again while $JOBS jobs run: each has its token" '
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

test_expect_success "and on until it has been killed $KILLS times" '
	while test "$(cat killed)" -lt $KILLS; do
		id=$(submit "$PWD/prints") && { pid=$(agents) && kill -KILL $pid; true; } &&
			echo $(($(cat killed) + 1)) >killed && await clean "$id" &&
			test "$(flux jobs -no "{result}" $id)" = COMPLETED || return
	done
'

# as_before: so many threads and descriptors as before.
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

# fails_closed TABLE TEXT: with this key, jobs fail in time, and one line of the log has the text.
fails_closed() {
	{ echo "timeout = \"1s\"" && echo "$1" && rules; } | table &&
		{ pid=$(agents) && kill -KILL $pid; true; } &&
		for _ in 1 2 3; do
			id=$(submit true) && is_failed_delivery "$id" "[agent-unavailable]" || return
		done &&
		log_has "$2" >lines && cat lines && test "$(wc -l <lines)" = 1
}

AGENT=$STAGE/libexec/workflow-token-agent

test_expect_success 'an agent that others can change is not run' '
	cp "$AGENT" changed && chmod 0777 changed &&
	fails_closed "agent-program = \"$PWD/changed\"" "$PWD/changed is not run"
'

test_expect_success 'nor one in a directory that others can change' '
	mkdir -p open && cp "$AGENT" open/agent && chmod 0777 open &&
	fails_closed "agent-program = \"$PWD/open/agent\"" "$PWD/open/agent is not run"
'

test_expect_success 'an agent that ends at once is started again with growing pauses' '
	printf "#!/bin/sh\necho x >>\"$PWD/started\"\nexit 3\n" | program ends &&
	fails_closed "agent-program = \"$PWD/ends\"" "it ended at once" &&
	test "$(wc -l <started)" -lt 30
'

test_expect_success 'a configured socket to which nobody listens' '
	fails_closed "agent = \"$PWD/nobody\"" "the agent at $PWD/nobody cannot be used"
'

test_expect_success 'when the agent is there again, so are the tokens' '
	rules | table && gets_token && log_has "the agent answers again"
'

test_expect_success 'an agent that others have started serves, and none is started' '
	{ "$AGENT" --stay --socket "$PWD/own" 2>agent.err & } &&
	own=$! &&
	eventually test -S own &&
	{ echo "agent = \"$PWD/own\"" && rules; } | table &&
	{ pid=$(agents) && kill -KILL $pid; true; } &&
	gets_token && ! agents &&
	kill $own && rules | table && gets_token
'

# The writable memory of a process, as a core image has it.
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

test_expect_success 'the memory of the broker has no token while 100 jobs get theirs' '
	LIMIT=200 submit --cc=1-100 true >ids &&
	for n in $(seq 10); do
		"$PWD/memory" "$(broker)" token >found && cat found && test "$(cat found)" = 0 || return
	done &&
	flux queue idle --quiet --timeout=60s
'

test_expect_success 'the same search finds a token in a process that has it' '
	mkfifo held never2 &&
	{ python3 -c "secret = open(\"token\").read(); open(\"held\", \"w\").write(\"x\"); open(\"never2\").read()" & } &&
	holder=$! &&
	cat held &&
	"$PWD/memory" $holder token >found; kill $holder; test "$(cat found)" -gt 0
'

test_expect_success 'the agent ends when the broker has' '
	pid=$(agents) && instance_down && eventually is_gone $pid
'

test_done
