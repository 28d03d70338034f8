#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='In a multi-user instance only the job owner has the token'

. "$(dirname "$0")/lib.sh"
need_flux
need_users

mkdir -m 0711 "$base/tokens"
tokens=$base/tokens
cleanup 'rm -rf "$tokens"'
# theirs NAME: writes a token file of the instance owner, who reads it. root keeps a copy for
# comparison.
theirs() {
	token_file "$tokens/$1" >/dev/null && chown "$OWNER" "$tokens/$1"
}
for name in "$GUEST" "$OTHER" "$OWNER" group secret; do
	theirs "$name"
done
guest=$(id -u "$GUEST")
mkfifo -m 0666 go pids
program wait-for-go <<-EOF
	#!/bin/sh
	echo \$\$ >"$PWD/pids"
	read line <"$PWD/go"
EOF
table <<-EOF
	[[workflow-token.rule]]
	attribute = "system.workflow"
	source = "file"
	path = "$tokens/{user}"

	[[workflow-token.rule]]
	attribute = "system.secret"
	source = "file"
	path = "$tokens/secret"

	[[workflow-token.rule]]
	attribute = "system.guest"
	user = "$GUEST"
	source = "file"
	path = "$tokens/{user}"

	[[workflow-token.rule]]
	attribute = "system.group"
	group = "$(id -gn "$GUEST")"
	source = "file"
	path = "$tokens/group"
EOF
# All processes use the munged of the system.
sed -i /munge-socket/d config/workflow-token.toml
initrc initrc.lua

instance_up 2 || skip "no instance of $OWNER could be started: $(tail -n 1 instance.log)"
as "$GUEST" flux run true 2>err || skip "the IMP does not run jobs of $GUEST for $OWNER: $(tr '\n' ' ' <err)"

# run USER OPTION…: runs a matching job of that user.
run() {
	local user=$1
	shift
	as "$user" flux run --setattr=system.workflow=1 "$@"
}

test_expect_success 'the instance loads the plugin' '
	load
'

test_expect_success 'the job of a guest runs as the guest and has the token' '
	run "$GUEST" sh -c "id -u; printenv DW_WORKFLOW_TOKEN" >out &&
	{ echo $guest && cat "$tokens/$GUEST"; } >expected &&
	test_cmp expected out
'

test_expect_success 'in several shells, whichever broker received the submission' '
	RANK=1 run "$GUEST" -N2 -n4 printenv DW_WORKFLOW_TOKEN >out &&
	for n in 1 2 3 4; do cat "$tokens/$GUEST" || return; done >expected &&
	test_cmp expected out
'

test_expect_success 'another guest has another token' '
	run "$OTHER" printenv DW_WORKFLOW_TOKEN >out &&
	test_cmp "$tokens/$OTHER" out
'

test_expect_success 'the instance owner has a token like others' '
	run "$OWNER" printenv DW_WORKFLOW_TOKEN >out &&
	test_cmp "$tokens/$OWNER" out
'

test_expect_success 'a rule for a user is for that user' '
	as "$GUEST" flux run --setattr=system.guest=1 printenv DW_WORKFLOW_TOKEN >out &&
	test_cmp "$tokens/$GUEST" out &&
	as "$OTHER" flux run --setattr=system.guest=1 sh -c "! printenv DW_WORKFLOW_TOKEN"
'

test_expect_success 'a rule for a group is for its members' '
	as "$GUEST" flux run --setattr=system.group=1 printenv DW_WORKFLOW_TOKEN >out &&
	test_cmp "$tokens/group" out &&
	as "$OTHER" flux run --setattr=system.group=1 sh -c "! printenv DW_WORKFLOW_TOKEN"
'

test_expect_success 'a job of the guest runs and waits' '
	id=$(as "$GUEST" flux submit --setattr=system.secret=1 "$PWD/wait-for-go") &&
	read -r -t 60 task <>pids &&
	key=$(flux job id --to=kvs "$id").workflow-token &&
	test "$(ps -o uid= -p $task | tr -d " ")" = $guest
'

test_expect_success 'the guest can read the record' '
	as "$GUEST" flux job info "$id" workflow-token >record &&
	python3 -c "import json; print(json.load(open(\"record\"))[\"credential\"], end=\"\")" >credential &&
	chmod 0644 credential
'

test_expect_success 'another user cannot: not through the job, and not in the KVS' '
	test_must_fail as "$OTHER" flux job info "$id" workflow-token 2>err &&
	cat err &&
	grep -i "restricted\|not permitted" err &&
	test_must_fail as "$OTHER" flux kvs get "$key" 2>err &&
	grep -i "not permitted" err &&
	test_must_fail as "$OTHER" flux workflow-token show "$id" 2>err &&
	cat err &&
	grep "only the job owner and the instance owner" err
'

test_expect_success 'the record opens for the guest' '
	as "$GUEST" unmunge --no-output --metadata=- --input "$PWD/credential" >metadata
	cat metadata &&
	grep "^UID_RESTRICTION:.*($guest)" metadata &&
	grep "^UID:.*($(id -u "$OWNER"))" metadata &&
	as "$GUEST" unmunge --metadata=/dev/null --input "$PWD/credential" >"$tokens/payload"
	grep -Fe "$(cut -d. -f3 "$tokens/secret")" "$tokens/payload"
'

for user in "$OTHER" root "$OWNER"; do
	test_expect_success "it does not open for $user, who has its text" '
		test_must_fail as '"$user"' unmunge --input "$PWD/credential" >opened 2>&1 &&
		cat opened &&
		grep "Unauthorized credential" opened &&
		! grep -Fe "$(cut -d. -f3 "$tokens/secret")" opened
	'
done

test_expect_success 'the instance owner sees names and no values, and the guest sees that the record is authentic' '
	as "$OWNER" flux workflow-token show "$id" >shown &&
	cat shown &&
	grep DW_WORKFLOW_TOKEN shown &&
	grep "only the job owner can open it" shown &&
	as "$GUEST" flux workflow-token show "$id" >shown &&
	grep "verified by MUNGE" shown
'

test_expect_success 'another user cannot read the environment of the task; the guest can' '
	as "$GUEST" cat /proc/$task/environ >"$tokens/environ" &&
	grep -Fe "$(cut -d. -f3 "$tokens/secret")" "$tokens/environ" &&
	test_must_fail as "$OTHER" cat /proc/$task/environ
'

test_expect_success 'nothing else on this node contains the token, including the raw content store' '
	flux dmesg >dmesg &&
	flux job eventlog "$id" >eventlog.main &&
	flux job eventlog -p guest.exec.eventlog "$id" >eventlog.guest &&
	flux jobtap query workflow-token.so >query &&
	flux kvs put --sync checkpoint=1 &&
	test_expect_code 1 "$TESTS/search.py" "$tokens/secret" "$PWD" proc:$task
'

test_expect_success 'a guest cannot write a record: the KVS rejects it' '
	test_must_fail as "$GUEST" flux kvs put "$key=1" 2>err &&
	cat err &&
	grep -i "not permitted" err
'

test_expect_success 'the job of the guest ends, and its record is removed' '
	release go &&
	await clean "$id" &&
	eventually has_no_record "$id"
'

test_expect_success 'a record in the namespace of the guest has no effect' '
	id=$(as "$GUEST" flux submit -o workflow-token sh -c "flux kvs put workflow-token=1") &&
	is_refused "$id" exec "there is no sealed record for it"
'

test_expect_success 'a record sealed by the guest is rejected, even if it is stored in the right place' '
	id=$(as "$GUEST" flux submit --urgency=hold sh -c "touch $PWD/go.started") &&
	printf "{\"version\":1,\"jobid\":%s,\"uid\":%s,\"variables\":{\"A\":\"b\"}}" "$(flux job id --to=dec "$id")" $guest |
		as "$GUEST" munge --restrict-uid $guest --cipher aes256 >spoof &&
	printf "{\"version\":1,\"jobid\":%s,\"uid\":%s,\"sealer\":%s,\"variables\":[\"A\"],\"sealed-at\":1,\"credential\":\"%s\"}" \
		"$(flux job id --to=dec "$id")" $guest "$(id -u "$OWNER")" "$(cat spoof)" |
		as "$OWNER" flux kvs put --raw "$(flux job id --to=kvs "$id").workflow-token=-" &&
	flux job urgency "$id" default &&
	is_refused "$id" exec "was sealed by uid $guest and only the instance owner"
'

test_expect_success 'a failed delivery reveals no path to the guest' '
	mv "$tokens/$GUEST" "$tokens/away" &&
	id=$(as "$GUEST" flux submit --setattr=system.workflow=1 true) &&
	is_failed_delivery "$id" "its file does not exist" &&
	! grep -F "$tokens" exceptions &&
	mv "$tokens/away" "$tokens/$GUEST" &&
	run "$GUEST" true
'

# The kernel names root as its peer, as with a systemd socket.
test_expect_success 'an agent that runs as root seals nothing, and the log states the reason' '
	cp config/workflow-token.toml former &&
	{ "$STAGE/libexec/workflow-token-agent" --stay --socket "$RUN/of-root" 2>agent.err & } &&
	roots=$! &&
	eventually test -S "$RUN/of-root" &&
	chown "$OWNER" "$RUN/of-root" &&
	sed -i "1a agent = \"$RUN/of-root\"\ntimeout = \"1s\"" config/workflow-token.toml &&
	flux config reload &&
	id=$(as "$GUEST" flux submit --setattr=system.workflow=1 true) &&
	is_failed_delivery "$id" "[agent-" &&
	flux dmesg >dmesg &&
	grep -F "it runs as uid 0, and job shells accept only what uid $(id -u "$OWNER") has sealed" dmesg
	result=$?
	kill $roots
	cat former >config/workflow-token.toml && flux config reload && run "$GUEST" true && return $result
'

test_expect_success 'the instance ends normally' 'instance_down'

test_done
