#!/usr/bin/env bash
test_description='A mistake in the configuration is refused by its key, and the former configuration stays in force'

. "$(dirname "$0")/lib.sh"
need_flux

token_file token >/dev/null
good="munge-socket = \"$MUNGE_SOCKET\""
rule="
[[workflow-token.rule]]
attribute = \"system.workflow\"
source = \"file\"
path = \"$PWD/token\""

# write TEXT: what the table is from now on; the job manager is not told.
write() {
	printf '%s\n' "$1" >config/new && mv config/new config/workflow-token.toml
}

# in_force: the configuration that was good serves a job.
in_force() {
	flux run --setattr=system.workflow=1 printenv DW_WORKFLOW_TOKEN >out && test_cmp token out
}

# names_key KEY FILE: the message begins with the key and goes on.
names_key() {
	cat "$2" && grep -F "$1: " "$2"
}

# is_refused_for KEY TEXT: a configuration with this mistake in it.
is_refused_for() {
	write "$2" &&
		test_must_fail flux config reload 2>err &&
		names_key "$1" err
}

test_expect_success 'an instance takes the plugin' '
	mkdir config &&
	write "[workflow-token]
$good
$rule" &&
	munge_up &&
	instance_up 1 &&
	load &&
	in_force
'

# Each line: the key, and what is wrong with it.
while read -r key line; do
	test_expect_success "$key is refused: $line" '
		is_refused_for "workflow-token.$key" "[workflow-token]
$line
$rule"
	'
done <<'EOF'
variable variable = 1
variable variable = "1A"
variable variable = "A B"
timeout timeout = true
timeout timeout = "soon"
timeout timeout = "0s"
timeout timeout = "-1s"
timeout timeout = "inf"
unlink unlink = "perhaps"
unlink unlink = 1
max-parallel max-parallel = 0
max-parallel max-parallel = "many"
helper helper = "flux-workflow-token"
munge-socket munge-socket = "munge.socket"
munge-socket munge-socket = 7
munge-cipher munge-cipher = "none"
munge-mac munge-mac = "md5"
munge-ttl munge-ttl = "2h"
munge-ttl munge-ttl = "1500ms"
tiemout tiemout = "60s"
EOF

while read -r key line; do
	test_expect_success "$key of a rule is refused: $line" '
		is_refused_for "workflow-token.rule[0].$key" "[workflow-token]
$good
$rule
$line"
	'
done <<'EOF'
queue queue = ""
bank bank = 1
project project = []
user user = -1
user user = 4294967295
group group = true
check check = "deep"
variable variable = "A-B"
timeout timeout = "1w"
command command = ["/bin/true"]
atribute atribute = "system.workflow"
EOF

while read -r key line; do
	test_expect_success "$key of a rule is refused: $line" '
		is_refused_for "workflow-token.rule[0].$key" "[workflow-token]
$good
rule = [ { $line } ]"
	'
done <<'EOF'
attribute attribute = "system..workflow", source = "file", path = "/t"
attribute attribute = 1, source = "file", path = "/t"
source path = "/t"
source source = "web"
path source = "file"
path source = "file", path = "t"
path source = "file", path = "/{job}"
path source = "file", path = "/{jobid"
command source = "command"
command source = "command", command = []
command source = "command", command = "/bin/true"
command source = "command", command = ["true"]
command source = "command", command = ["/{user}"]
command source = "command", command = [1]
EOF

# levels N: an array that is nested so deep.
levels() {
	printf '%*s' "$1" "" | tr " " "[" && printf 1 && printf '%*s' "$1" "" | tr " " "]"
}

test_expect_success 'a configuration that cannot be read is refused, and not taken for none' '
	write "[workflow-token]
$good
$rule

[deep]
deep = $(levels 140)" &&
	test_must_fail flux config reload 2>err &&
	cat err && grep "configuration of Flux cannot be read" err &&
	in_force
'

test_expect_success 'a duration that no clock can be added is refused' '
	is_refused_for workflow-token.timeout "[workflow-token]
$good
timeout = \"200000000000000d\"
$rule" &&
	in_force
'

test_expect_success 'a shell option that cannot be read ends the job, which is told so' '
	printf "{\"workflow-token\":%s}" "$(levels 600)" >deep.json &&
	! flux run --setattr=^system.shell.options=deep.json printenv DW_WORKFLOW_TOKEN >deep.out 2>deep.err &&
	cat deep.err && grep "the shell option workflow-token cannot be read" deep.err &&
	! test -s deep.out
'

test_expect_success 'a rule that is never reached is refused' '
	is_refused_for "workflow-token.rule[1]" "[workflow-token]
rule = [ { source = \"file\", path = \"/a\" }, { queue = \"q\", source = \"file\", path = \"/b\" } ]"
'
test_expect_success 'rules that are no array are refused' '
	is_refused_for "workflow-token.rule" "[workflow-token]
rule = 1"
'
test_expect_success 'a table that is none is refused' 'is_refused_for workflow-token "workflow-token = 1"'
test_expect_success 'what is no TOML is refused' '
	write "[workflow-token" &&
	test_must_fail flux config reload
'

test_expect_success 'after all of these the former configuration is in force' '
	in_force &&
	test "$(counter rules)" = 1
'

test_expect_success 'a good one replaces it' '
	write "[workflow-token]
$good
variable = \"MY_TOKEN\"
$rule" &&
	flux config reload &&
	flux run --setattr=system.workflow=1 printenv MY_TOKEN >out &&
	test_cmp token out
'

test_expect_success 'one without a table is good too: no job gets a token' '
	write "" &&
	flux config reload &&
	flux run --setattr=system.workflow=1 sh -c "! printenv DW_WORKFLOW_TOKEN"
'

test_expect_success 'with a mistake the plugin does not load, and the message names the key' '
	unload &&
	write "[workflow-token]
$good
tiemout = 1
$rule" &&
	flux config reload &&
	test_must_fail load 2>err &&
	names_key workflow-token.tiemout err &&
	! flux jobtap list | grep workflow-token
'

test_expect_success 'nor with a mistake among the keys given when it is loaded' '
	write "[workflow-token]
$good
$rule" &&
	flux config reload &&
	test_must_fail load tiemout=1s 2>err &&
	names_key workflow-token.tiemout err &&
	test_must_fail load timeout=soon 2>err &&
	names_key workflow-token.timeout err &&
	test_must_fail load unlink=perhaps 2>err &&
	names_key workflow-token.unlink err &&
	test_must_fail load munge-socket=munge.socket 2>err &&
	names_key workflow-token.munge-socket err &&
	! flux jobtap list | grep workflow-token
'

test_expect_success 'keys given when it is loaded go before those of the table' '
	load variable=MY_TOKEN unlink=false timeout=30s max-parallel=3 &&
	id=$(submit printenv MY_TOKEN) &&
	flux job attach "$id" >out &&
	test_cmp token out &&
	record "$id"
'

test_expect_success 'and still do after a reload' '
	flux config reload &&
	flux run --setattr=system.workflow=1 printenv MY_TOKEN >out &&
	test_cmp token out &&
	unload
'

test_expect_success 'the time that a delivery may take can be given so' '
	write "[workflow-token]
munge-socket = \"$PWD/no.socket\"
$rule" &&
	flux config reload &&
	load timeout=1s &&
	id=$(submit true) &&
	is_failed_delivery "$id" "longer than 1 s" &&
	unload
'

test_expect_success 'the instance ends well' 'instance_down'

test_done
