#!/usr/bin/env bash
test_description='A job that a rule matches finds its token in its environment, and others are left alone'

. "$(dirname "$0")/lib.sh"
need_flux

me=$(id -un)
gid=$(id -g)
for rule in bank project user group queue; do
	token_file token.$rule >/dev/null
done
token_file token >/dev/null
mkfifo go
token_file "token.$me-$(id -u)" >/dev/null

mkdir config
cat >config/queues.toml <<-EOF
	[policy]
	jobspec.defaults.system.queue = "batch"
	[queues.batch]
	[queues.debug]
EOF
program mint <<-EOF
	#!/bin/sh
	"$TESTS/new-token.py" "args=\$*" "env=\$FLUX_JOB_ID \$FLUX_JOB_USERID" | tee "$PWD/minted.\$2"
EOF
table <<-EOF
	[[workflow-token.rule]]
	bank = "b"
	source = "file"
	path = "$PWD/token.bank"

	[[workflow-token.rule]]
	project = "p"
	source = "file"
	path = "$PWD/token.project"

	[[workflow-token.rule]]
	attribute = "system.user"
	user = "nobody-of-this-name"
	source = "file"
	path = "$PWD/missing"

	[[workflow-token.rule]]
	attribute = "system.user"
	user = "$me"
	source = "file"
	path = "$PWD/token.user"

	[[workflow-token.rule]]
	attribute = "system.group"
	group = $gid
	source = "file"
	path = "$PWD/token.group"

	[[workflow-token.rule]]
	queue = "debug"
	source = "file"
	path = "$PWD/token.queue"

	[[workflow-token.rule]]
	attribute = "system.f58"
	source = "file"
	path = "$PWD/{jobid}.f58"

	[[workflow-token.rule]]
	attribute = "system.plain"
	source = "file"
	path = "$PWD/{jobid.f58plain}.plain"

	[[workflow-token.rule]]
	attribute = "system.dec"
	source = "file"
	path = "$PWD/{jobid.dec}.dec"

	[[workflow-token.rule]]
	attribute = "system.whose"
	source = "file"
	path = "$PWD/token.{user}-{uid}"

	[[workflow-token.rule]]
	attribute = "system.mint"
	source = "command"
	command = ["$PWD/mint", "{jobid}", "{jobid.dec}", "{jobid.f58plain}", "{user}", "{uid}"]

	[[workflow-token.rule]]
	attribute = "system.variable"
	source = "file"
	path = "$PWD/token"
	variable = "MY_TOKEN"

	[[workflow-token.rule]]
	attribute = "system.workflow"
	source = "file"
	path = "$PWD/token"
EOF

# gets FILE OPTION…: a job with these options has the token of FILE.
gets() {
	local file=$1
	shift
	flux run "$@" printenv DW_WORKFLOW_TOKEN >out && test_cmp "$file" out
}

# by_id KIND NAME: a job whose file has its id in its name. The file is there before the job may run.
by_id() {
	local id file
	id=$(flux submit --urgency=hold --setattr=system.$1=1 printenv DW_WORKFLOW_TOKEN) &&
		file=$(LC_ALL=${3:-C.UTF-8} flux job id --to="$2" "$id").$1 &&
		token_file "$file" &&
		flux job urgency "$id" default &&
		flux job attach "$id" >out &&
		test_cmp "$file" out
}

test_expect_success 'an instance of four brokers takes the plugin' '
	munge_up &&
	instance_up 4 &&
	flux queue start --all &&
	load &&
	flux jobtap list | grep workflow-token.so
'

test_expect_success 'every task of a job in several shells has the token, without the newline at its end' '
	flux run -N4 -n8 -l --setattr=system.workflow=1 printenv DW_WORKFLOW_TOKEN >out &&
	for rank in 0 1 2 3 4 5 6 7; do echo "$rank: $(cat token)" || return; done >expected &&
	sort out >sorted &&
	test_cmp expected sorted
'

test_expect_success 'a job without its rule is left alone: no prolog, no variable, no record' '
	id=$(flux submit sh -c "! printenv DW_WORKFLOW_TOKEN") &&
	flux job attach "$id" &&
	has_no_event prolog-start "$id" &&
	has_no_record "$id"
'

test_expect_success 'a job is held in its prolog until its token is delivered' '
	id=$(submit true) &&
	await clean "$id" &&
	flux job eventlog "$id" >eventlog &&
	grep -n "prolog-start description=\"workflow-token\"" eventlog &&
	grep -n "prolog-finish description=\"workflow-token\" status=0" eventlog &&
	test "$(sed -n "s/^[^ ]* \(prolog-finish\|start\)\( .*\)\?$/\1/p" eventlog | tr "\n" " ")" = "prolog-finish start "
'

test_expect_success 'rules tell jobs apart by bank' 'gets token.bank --setattr=system.bank=b'
test_expect_success 'rules tell jobs apart by project' 'gets token.project --setattr=system.project=p'
test_expect_success 'rules tell jobs apart by user' 'gets token.user --setattr=system.user=1'
test_expect_success 'rules tell jobs apart by group' 'gets token.group --setattr=system.group=1'
test_expect_success 'rules tell jobs apart by queue' 'gets token.queue --queue=debug'
test_expect_success 'the first rule that matches wins' '
	gets token.bank --setattr=system.bank=b --setattr=system.project=p --queue=debug
'
test_expect_success 'a bank of another name is not matched' '
	flux run --setattr=system.bank=c sh -c "! printenv DW_WORKFLOW_TOKEN"
'

test_expect_success 'a file may be named by {jobid}' 'by_id f58 f58'
test_expect_success 'a file may be named by {jobid.f58plain}' 'by_id plain f58plain'
test_expect_success 'a file may be named by {jobid.dec}' 'by_id dec dec'
test_expect_success 'a file may be named by {user} and {uid}' '
	gets "token.$me-$(id -u)" --setattr=system.whose=1
'

test_expect_success 'a command is told of the job and its output is the token' '
	id=$(flux submit --setattr=system.mint=1 printenv DW_WORKFLOW_TOKEN) &&
	flux job attach "$id" >out &&
	dec=$(flux job id --to=dec "$id") &&
	test_cmp "minted.$dec" out &&
	flux workflow-token inspect <out >claims &&
	plain=$(flux job id --to=f58plain "$id") &&
	grep -F "$id $dec $plain $me $(id -u)" claims &&
	grep -F "$id $(id -u)" claims
'

test_expect_success 'a rule may name another variable' '
	flux run --setattr=system.variable=1 sh -c "printenv MY_TOKEN && ! printenv DW_WORKFLOW_TOKEN" >out &&
	test_cmp token out
'

test_expect_success 'the record names the variables and is gone after the job' '
	id=$(submit sh -c "read line <go") &&
	await start "$id" &&
	record "$id" >record &&
	python3 - "$(flux job id --to=dec "$id")" "$(id -u)" <<-EOF &&
	import json, sys
	record, token = json.load(open("record")), open("token").read().strip()
	assert record.pop("credential").startswith("MUNGE:"), record
	assert record.pop("sealed-at") > 0, record
	jobid, uid = int(sys.argv[1]), int(sys.argv[2])
	expected = {"version": 1, "jobid": jobid, "uid": uid, "sealer": uid, "variables": ["DW_WORKFLOW_TOKEN"]}
	assert record == expected, record
	EOF
	release go &&
	await clean "$id" &&
	eventually has_no_record "$id"
'

test_expect_success 'flux workflow-token show prints names and no value' '
	id=$(submit sh -c "read line <go") &&
	await start "$id" &&
	flux workflow-token show "$id" >shown &&
	cat shown &&
	grep DW_WORKFLOW_TOKEN shown &&
	grep "sealed by .*$me" shown &&
	! grep -Fe "$(cut -d. -f2 token)" shown &&
	! grep -F MUNGE: shown &&
	release go &&
	await clean "$id"
'

test_expect_success 'the record stays where unlink is false' '
	cp config/workflow-token.toml former.toml &&
	sed "s/^munge-socket.*/&\nunlink = false/" former.toml >config/workflow-token.toml &&
	flux config reload &&
	kept=$(submit true) &&
	await clean "$kept" &&
	cp former.toml config/workflow-token.toml &&
	flux config reload &&
	id=$(submit true) &&
	await clean "$id" &&
	eventually has_no_record "$id" &&
	record "$kept"
'

test_expect_success 'loading it a second time is refused, and harmless' '
	test_must_fail load 2>err &&
	cat err &&
	grep -i "already" err &&
	gets token --setattr=system.workflow=1
'

test_expect_success 'loading it under another file name is refused, and harmless' '
	cp "$JOBTAP" another.so &&
	test_must_fail flux jobtap load "$PWD/another.so" 2>err &&
	cat err &&
	grep "already loaded" err &&
	test "$(flux jobtap list | grep -c "workflow-token\|another")" = 1 &&
	gets token --setattr=system.workflow=1
'

test_expect_success 'the plugin counts what it did, and tells no secret' '
	before=$(counter delivered) &&
	gets token --setattr=system.workflow=1 &&
	gets token.bank --setattr=system.bank=b &&
	flux run true &&
	test "$(counter delivered)" = $((before + 2)) &&
	test "$(counter failed)" = 0 &&
	test "$(counter in-flight)" = 0 &&
	test "$(counter rules)" = 13 &&
	flux jobtap query workflow-token.so >query &&
	! grep -Fe "$(cut -d. -f2 token)" query
'

test_expect_success 'the log has no complaint of the plugin' '
	flux dmesg >dmesg &&
	test -s dmesg &&
	! grep "\.\(err\|warning\)\[0\]: workflow-token: " dmesg
'

test_expect_success 'removed, it leaves jobs alone' '
	unload &&
	! flux jobtap list | grep workflow-token &&
	flux run --setattr=system.workflow=1 sh -c "! printenv DW_WORKFLOW_TOKEN"
'

test_expect_success 'the instance ends well' 'instance_down'

test_done
