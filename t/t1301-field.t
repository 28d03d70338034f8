#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='Field reports: names that are numbers, rules in two files, token files that arrive late'

. "$(dirname "$0")/lib.sh"
need_flux
command -v "${CC:-cc}" >/dev/null || skip "no C compiler found, for a name service of its own"
# LD_PRELOAD accepts no path with a space.
preload=$base/names.so
cleanup 'rm -f "$preload"'
"${CC:-cc}" -shared -fPIC -Wall -o "$preload" "$TESTS/../tests/support/names.c" || skip "the name service does not compile"

me=$(id -u)
group=$(id -g)

# names USER: gives the current user this name. Another user has the uid as a name, and a third has the name as a uid.
names() {
	printf 'user %s %s %s\n' "$1" "$me" "$group" "$me" 4000001 100 bob 12345 100 >names.new &&
		printf 'group %s %s %s\n' staff "$group" "" 777 5000 "$1" 5000 6000 bob >>names.new &&
		mv names.new names
}

# rule CONDITION: sets a rule with this condition.
rule() {
	cat <<-EOF
		[[workflow-token.rule]]
		$1
		source = "file"
		path = "$PWD/token"
	EOF
}

# gets_token CONDITION: succeeds if a job has the token of a rule with this condition.
gets_token() {
	rule "$1" | table && flux run printenv DW_WORKFLOW_TOKEN >out && test_cmp token out
}

# gets_none CONDITION: succeeds if a job runs without a token.
gets_none() {
	rule "$1" | table && flux run sh -c "printenv DW_WORKFLOW_TOKEN || echo none" >out &&
		echo none >expected && test_cmp expected out
}

# logged TEXT: succeeds if a line of the log contains it.
logged() {
	flux dmesg >dmesg && grep -F -e "$1" dmesg
}

token_file token >/dev/null
names alice
rule 'queue = "never"' | table

test_expect_success 'an instance with its own name service loads the plugin' '
	munge_up &&
	initrc initrc.lua "munge-socket=$MUNGE_SOCKET" &&
	FLUX_LOAD_WITH_DEEPBIND=0 LD_PRELOAD=$preload TEST_NAMES=$PWD/names instance_up 1 &&
	load
'

test_expect_success 'a string of digits is a name, here that of the job owner' '
	names 12345 &&
	gets_token "user = \"12345\""
'

test_expect_success 'it is not a uid, even if the job owner has that uid' '
	names alice &&
	gets_none "user = \"$me\"" &&
	gets_token "user = $me"
'

test_expect_success 'the same holds for groups' '
	gets_token "group = \"777\"" &&
	gets_token "group = 5000" &&
	gets_none "group = \"5000\""
'

test_expect_success 'an unknown name of digits is logged once' '
	gets_none "user = \"4123456\"" &&
	line="workflow-token.rule[0].user: no user has the name \"4123456\"" &&
	eventually logged "$line" &&
	gets_token "user = \"alice\"" &&
	logged "$line" &&
	test "$(grep -c -F -e "$line" dmesg)" = 1
'

# Flux merges the tables of several files, but replaces arrays.
test_expect_success 'rules in two files are logged: those of the first have no effect' '
	rule "user = \"alice\"" >"$CONFIG/a-site.toml" &&
	gets_none "queue = \"never\"" &&
	line="workflow-token.rule: the array in $CONFIG/workflow-token.toml replaces the one in $CONFIG/a-site.toml" &&
	eventually logged "$line"
'

test_expect_success 'doctor warns about them' '
	flux workflow-token doctor >doctor; cat doctor &&
	grep -F -e "$line" doctor >warned &&
	grep "^warn *config " warned &&
	flux workflow-token doctor --config "$CONFIG" >doctor; grep -F -e "$line" doctor
'

test_expect_success 'rules in a single file are in force, with keys of other files' '
	rm "$CONFIG/a-site.toml" &&
	printf "[workflow-token]\ntimeout = \"50s\"\n" >"$CONFIG/z-site.toml" &&
	gets_token "user = \"alice\"" &&
	rm "$CONFIG/z-site.toml"
'

# late WAIT: sets a rule for files that are named after their job.
late() {
	printf '[[workflow-token.rule]]\nsource = "file"\npath = "%s/{jobid.dec}.jwt"\n%s\n' "$PWD" "$1" | table
}

# The site writes the token while the job is in its prologs.
test_expect_success 'a delivery waits for a token file that is written after the job entered RUN' '
	late "wait = \"40s\"" &&
	for n in 1 2 3; do
		id=$(flux submit printenv DW_WORKFLOW_TOKEN) &&
		await prolog-start "$id" &&
		token_file "$(flux job id --to=dec "$id").jwt" >expected &&
		flux job attach "$id" >out &&
		test_cmp expected out || return
	done
'

test_expect_success 'without a wait, or at its end, the job fails, and the log states the remedy' '
	for wait in "wait = \"50ms\"" ""; do
		late "$wait" &&
		id=$(flux submit true) &&
		is_failed_delivery "$id" "its file does not exist" || return
	done &&
	logged "50 ms after the job requested it" &&
	logged "set the key wait if it is created later"
'

test_expect_success 'the instance ends normally' '
	instance_down
'

test_done
