#!/usr/bin/env bash
test_description='A record that is not the own one of its job, sealed by the instance owner, is refused'

. "$(dirname "$0")/lib.sh"
need_flux

if test "$(id -u)" = 0 && getent passwd nobody >/dev/null; then
	test_set_prereq ROOT_AND_NOBODY
	# nobody is to reach the socket of munged.
	chmod 0711 "$base"
fi

# The plugin is not loaded in the job manager: each job finds what the test put under its key.
me=$(id -u)
token_file token >/dev/null

# hold [OPTION…]: submits a job that may not run yet. Sets id, dec, and key.
hold() {
	rm -f started
	id=$(flux submit --urgency=hold -o workflow-token "$@" sh -c 'touch started; printenv DW_WORKFLOW_TOKEN') &&
		dec=$(flux job id --to=dec "$id") &&
		key=$(flux job id --to=kvs "$id").workflow-token
}

# seal [OPTION…]: a credential for the job that is held, as munge makes it with these options: by default as the plugin
# would. What is to be otherwise in the payload stands in variables of the same names, and in `open` for whom it is.
seal() {
	printf '{"version":%s,"jobid":%s,"uid":%s,"variables":{"DW_WORKFLOW_TOKEN":"%s"}}' \
		"${version:-1}" "${jobid:-$dec}" "${uid:-$me}" "$(cat token)" |
		munge --socket "$MUNGE_SOCKET" --cipher aes256 --zip none ${open-"--restrict-uid=$me"} "$@"
}

# frame CREDENTIAL: a record around it.
frame() {
	printf '{"version":%s,"jobid":%s,"uid":%s,"sealer":%s,"variables":["DW_WORKFLOW_TOKEN"],"sealed-at":1.5,"credential":"%s"}' \
		"${record_version:-1}" "$dec" "$me" "$me" "$1"
}

# put TEXT: puts it where the record would be, and lets the job go.
put() {
	printf '%s' "$1" | flux kvs put --raw "$key=-" &&
		flux job urgency "$id" default
}

# refused TEXT: the job is, and nothing of it was started.
refused() {
	is_refused "$id" exec "$1" && ! test -e started
}

# accepted: it has its token.
accepted() {
	flux job attach "$id" >out && test_cmp token out
}

# flipped CREDENTIAL AT: with one bit changed in its AT-th byte, from the end where negative.
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

test_expect_success 'no record: a job that is to have a token is refused, and is told why' '
	hold &&
	flux job urgency "$id" default &&
	refused "the plugin workflow-token.so is not loaded in the job manager"
'

test_expect_success 'no record: a job that need not have one starts' '
	flux run sh -c "! printenv DW_WORKFLOW_TOKEN" &&
	flux run -o workflow-token=0 sh -c "! printenv DW_WORKFLOW_TOKEN"
'

test_expect_success 'a record as the plugin makes it is accepted' '
	hold && put "$(frame "$(seal)")" && accepted
'

test_expect_success 'so is one whose credential has expired: the token has its own time' '
	hold &&
	expiring=$(seal --ttl 1) &&
	eventually sh -c "echo \"\$1\" | unmunge --socket \"\$2\" 2>&1 | grep -i expired" - "$expiring" "$MUNGE_SOCKET" &&
	put "$(frame "$expiring")" &&
	accepted
'

test_expect_success 'of another job: refused' '
	hold && put "$(frame "$(jobid=$((dec + 1)) seal)")" && refused "belongs to job"
'

test_expect_success 'of a former job, taken as it was: refused' '
	hold &&
	former=$(frame "$(seal)") &&
	flux cancel "$id" &&
	hold &&
	put "$former" &&
	refused "belongs to job"
'

test_expect_success 'of another uid: refused' '
	hold && put "$(frame "$(uid=$((me + 1)) seal)")" && refused "belongs to job"
'

test_expect_success 'restricted to another uid: refused' '
	hold && put "$(frame "$(open=--restrict-uid=$((me + 1)) seal)")" && refused "could not open"
'

test_expect_success ROOT_AND_NOBODY 'by another sealer: refused' '
	hold && put "$(frame "$(seal --uid nobody)")" && refused "was sealed by uid $(id -u nobody)"
'

test_expect_success 'not restricted: refused' '
	hold && put "$(frame "$(open= seal)")" && refused "not restricted"
'

test_expect_success 'not encrypted: refused' '
	hold && put "$(frame "$(seal --cipher none)")" && refused "not encrypted"
'

test_expect_success 'by a munged of another key: refused' '
	hold &&
	(
		mkdir other && cd other && SHARNESS_TRASH_DIRECTORY=$PWD MUNGE_SOCKET=$PWD/munge.socket && MUNGED= &&
		test_when_finished munge_kill && munge_up && seal >../foreign && munge_kill
	) &&
	put "$(frame "$(cat foreign)")" &&
	refused "could not open"
'

test_expect_success 'truncated: refused' '
	hold && record=$(frame "$(seal)") && put "${record%??????????}" && refused "malformed"
'

test_expect_success 'with a truncated credential: refused' '
	hold && credential=$(seal) && put "$(frame "${credential%??????????}")" && refused "could not open"
'

for at in 0 12 -40 -1; do
	test_expect_success "with a bit flipped in byte $at of the credential: refused" '
		hold && put "$(frame "$(flipped "$(seal)" '"$at"')")" && refused "could not open"
	'
done

test_expect_success 'from a newer version: refused, and the user is told to update' '
	hold && put "$(record_version=2 frame "$(seal)")" && refused "version 2" &&
	grep "update the plugin" exceptions
'

test_expect_success 'with a payload from a newer version: refused' '
	hold && put "$(frame "$(version=2 seal)")" && refused "version 2"
'

test_expect_success 'not JSON: refused' '
	hold && put "$(cat token)" && refused "malformed" &&
	! grep -Fe "$(cut -d. -f3 token)" exceptions
'

test_expect_success 'empty: refused' '
	hold && put "" && refused "sealed record"
'

test_expect_success 'JSON of another kind: refused' '
	hold && put "[1, 2]" && refused "malformed"
'

test_expect_success 'a bad record is refused as well where the job did not ask for one' '
	rm -f started &&
	id=$(flux submit --urgency=hold touch started) &&
	key=$(flux job id --to=kvs "$id").workflow-token &&
	put "{" &&
	refused "malformed"
'

test_expect_success 'the instance ends well' 'instance_down'

test_done
