#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='A record is rejected unless it belongs to the job and the instance owner sealed it'

. "$(dirname "$0")/lib.sh"
need_flux

if test "$(id -u)" = 0 && getent passwd nobody >/dev/null; then
	test_set_prereq ROOT_AND_NOBODY
	# Nobody must be able to connect to the socket of munged.
	chmod 0711 "$base"
fi

# The job manager has not loaded the plugin: each job finds the record that the test stored under its key.
me=$(id -u)
token_file token >/dev/null

# hold [OPTION…]: submits a job that may not run yet. Sets id, dec, and key.
hold() {
	rm -f started
	id=$(flux submit --urgency=hold -o workflow-token "$@" sh -c 'touch started; printenv DW_WORKFLOW_TOKEN') &&
		dec=$(flux job id --to=dec "$id") &&
		key=$(flux job id --to=kvs "$id").workflow-token
}

# seal [OPTION…]: prints a credential for the held job, made by munge with these options, by default like the plugin's.
# Variables with the names of payload members replace their values, and `open` is the uid that can open it.
seal() {
	printf '{"version":%s,"jobid":%s,"uid":%s,"variables":{"DW_WORKFLOW_TOKEN":"%s"}}' \
		"${version:-1}" "${jobid:-$dec}" "${uid:-$me}" "$(cat token)" |
		munge --socket "$MUNGE_SOCKET" --cipher aes256 --zip none ${open-"--restrict-uid=$me"} "$@"
}

# frame CREDENTIAL: prints a record that contains the credential.
frame() {
	printf '{"version":%s,"jobid":%s,"uid":%s,"sealer":%s,"variables":["DW_WORKFLOW_TOKEN"],"sealed-at":1.5,"credential":"%s"}' \
		"${record_version:-1}" "$dec" "$me" "$me" "$1"
}

# put TEXT: stores TEXT in place of the record, and releases the job.
put() {
	printf '%s' "$1" | flux kvs put --raw "$key=-" &&
		flux job urgency "$id" default
}

# refused TEXT: succeeds if the job was rejected, and nothing of it started.
refused() {
	is_refused "$id" exec "$1" && ! test -e started
}

# accepted: succeeds if the job has its token.
accepted() {
	flux job attach "$id" >out && test_cmp token out
}

# flipped CREDENTIAL AT: prints the credential with one bit changed in its AT-th byte, counted from the end if
# negative.
flipped() {
	python3 - "$1" "$2" <<-EOF
		import base64, sys
		data = bytearray(base64.b64decode(sys.argv[1][6:-1]))
		data[int(sys.argv[2])] ^= 1
		print("MUNGE:" + base64.b64encode(data).decode() + ":")
	EOF
}

test_expect_success 'an instance without the plugin in its job manager' '
	munge_up &&
	instance_up 1
'

test_expect_success 'no record: a job that needs a token fails, with the reason' '
	hold &&
	flux job urgency "$id" default &&
	refused "the plugin workflow-token.so is not loaded in the job manager"
'

test_expect_success 'no record: a job that needs none starts' '
	flux run sh -c "! printenv DW_WORKFLOW_TOKEN" &&
	flux run -o workflow-token=0 sh -c "! printenv DW_WORKFLOW_TOKEN"
'

test_expect_success 'a record like the plugin makes is accepted' '
	hold && put "$(frame "$(seal)")" && accepted
'

test_expect_success 'so is one with an expired credential: the token has its own lifetime' '
	hold &&
	expiring=$(seal --ttl 1) &&
	eventually sh -c "echo \"\$1\" | unmunge --socket \"\$2\" 2>&1 | grep -i expired" - "$expiring" "$MUNGE_SOCKET" &&
	put "$(frame "$expiring")" &&
	accepted
'

test_expect_success 'of another job: rejected' '
	hold && put "$(frame "$(jobid=$((dec + 1)) seal)")" && refused "belongs to job"
'

test_expect_success 'copied unchanged from an earlier job: rejected' '
	hold &&
	former=$(frame "$(seal)") &&
	flux cancel "$id" &&
	hold &&
	put "$former" &&
	refused "belongs to job"
'

test_expect_success 'of another uid: rejected' '
	hold && put "$(frame "$(uid=$((me + 1)) seal)")" && refused "belongs to job"
'

test_expect_success 'restricted to another uid: rejected' '
	hold && put "$(frame "$(open=--restrict-uid=$((me + 1)) seal)")" && refused "could not open"
'

test_expect_success ROOT_AND_NOBODY 'by another sealer: rejected' '
	hold && put "$(frame "$(seal --uid nobody)")" && refused "was sealed by uid $(id -u nobody)"
'

test_expect_success 'not restricted: rejected' '
	hold && put "$(frame "$(open= seal)")" && refused "not restricted"
'

test_expect_success 'not encrypted: rejected' '
	hold && put "$(frame "$(seal --cipher none)")" && refused "not encrypted"
'

test_expect_success 'by a munged with another key: rejected' '
	hold &&
	(
		mkdir other && cd other && SHARNESS_TRASH_DIRECTORY=$PWD MUNGE_SOCKET=$PWD/munge.socket && MUNGED= &&
		test_when_finished munge_kill && munge_up && seal >../foreign && munge_kill
	) &&
	put "$(frame "$(cat foreign)")" &&
	refused "could not open"
'

test_expect_success 'truncated: rejected' '
	hold && record=$(frame "$(seal)") && put "${record%??????????}" && refused "malformed"
'

test_expect_success 'with a truncated credential: rejected' '
	hold && credential=$(seal) && put "$(frame "${credential%??????????}")" && refused "could not open"
'

for at in 0 12 -40 -1; do
	test_expect_success "with a bit flipped in byte $at of the credential: rejected" '
		hold && put "$(frame "$(flipped "$(seal)" '"$at"')")" && refused "could not open"
	'
done

test_expect_success 'from a newer version: rejected, and the note says to update' '
	hold && put "$(record_version=2 frame "$(seal)")" && refused "version 2" &&
	grep "update the plugin" exceptions
'

test_expect_success 'with a payload from a newer version: rejected' '
	hold && put "$(frame "$(version=2 seal)")" && refused "version 2"
'

test_expect_success 'not JSON: rejected' '
	hold && put "$(cat token)" && refused "malformed" &&
	! grep -Fe "$(cut -d. -f3 token)" exceptions
'

test_expect_success 'empty: rejected' '
	hold && put "" && refused "sealed record"
'

test_expect_success 'other JSON: rejected' '
	hold && put "[1, 2]" && refused "malformed"
'

test_expect_success 'an invalid record is also rejected for a job that did not request one' '
	rm -f started &&
	id=$(flux submit --urgency=hold touch started) &&
	key=$(flux job id --to=kvs "$id").workflow-token &&
	put "{" &&
	refused "malformed"
'

test_expect_success 'the instance ends normally' 'instance_down'

test_done
