#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='source = "oauth2": jobs have tokens of an authorization server, which are verified with its keys'

. "$(dirname "$0")/lib.sh"
need_flux
need_oidc

need_canaries
# The server accepts any client secret, and the search knows this form.
token_file "$canaries/client" >/dev/null
token_file "$canaries/wrong" >/dev/null
mkdir -m 0700 "$canaries/subjects"
token_file "$canaries/subjects/$(id -u).jwt" >/dev/null

# Stores its token where it is not searched.
program keep <<-EOF
	#!/bin/sh
	umask 077
	printenv DW_WORKFLOW_TOKEN >"$canaries/token"
EOF
quiet_program

clients() {
	python3 -c '
import json, sys
print(json.dumps([{
    "client_id": "flux", "client_secret": sys.stdin.read().strip(), "redirect_uris": [], "response_types": [],
    "scope": "data:read data:write",
    "grant_types": ["client_credentials", "urn:ietf:params:oauth:grant-type:token-exchange"],
}]))' <"$canaries/client" >"$OIDC/clients.json"
}

# subjects USER: sets the user of the token that can be exchanged.
subjects() {
	python3 -c 'import json, sys; print(json.dumps({sys.stdin.read().strip(): sys.argv[1]}))' "$1" \
		<"$canaries/subjects/$(id -u).jwt" >"$OIDC/subjects.json"
}

# rule [LINE…]: writes the table with one rule for this source. The arguments are further lines
# of the rule.
rule() {
	table <<-EOF
		timeout = "${timeout:-30s}"
		[workflow-token.trust.login]
		issuer = "$ISSUER"
		audience = "${audience:-copy-offload}"
		typ = "at+jwt"
		[[workflow-token.rule]]
		attribute = "system.workflow"
		source = "oauth2"
		issuer = "$ISSUER"
		client-id = "flux"
		client-secret = "${secret:-$canaries/client}"
		resource = "https://copy-offload.example.org"
		check = "verify"
		trust = "login"
		$(printf '%s\n' "$@")
	EOF
}

exchange() {
	rule 'grant = "token-exchange"' 'subject-token-type = "jwt"' "subject-token = \"$canaries/subjects/{uid}.jwt\""
}

# gets_token [OPTION…]: runs a job, and stores its token.
gets_token() {
	rm -f "$canaries/token"
	id=$(submit "$@" "$PWD/keep") &&
		await clean "$id" &&
		events finish "$id" | grep status=0 &&
		test -s "$canaries/token"
}

# header NAME, claim NAME: print parts of the stored token.
header() {
	flux workflow-token inspect --json "$canaries/token" | member "header.$1"
}
claim() {
	flux workflow-token inspect --json "$canaries/token" | member "claims.$1"
}

test_expect_success 'an instance loads the plugin' '
	munge_up &&
	clients &&
	subjects alice &&
	oidc_key &&
	oidc_up &&
	rule "scope = \"data:read\"" &&
	instance_up 1 -Slog-level=7 -Slog-stderr-level=7 -Slog-stderr-mode=local &&
	load
'

test_expect_success 'doctor finds the server, its keys, and the secret of the client' '
	flux workflow-token doctor >doctor
	cat doctor &&
	grep "^ok .*oauth2 .*closed to others" doctor &&
	grep "^ok .*oauth2 .*$ISSUER answers, its metadata is valid" doctor &&
	grep "^ok .*trust .*$ISSUER.* 1 usable key" doctor &&
	! grep "^\(warn\|fail\) .*\(oauth2\|trust\)" doctor
'

test_expect_success 'a job has a token of the server, with the permissions of the client' '
	gets_token &&
	test "$(claim iss)" = "$ISSUER" &&
	test "$(claim sub)" = flux &&
	test "$(claim scope)" = data:read
'

test_expect_success 'the next one has another' '
	cp "$canaries/token" "$canaries/former" &&
	gets_token &&
	! cmp "$canaries/token" "$canaries/former"
'

test_expect_success 'jobs share a token if the rule says so' '
	rule "share = true" &&
	gets_token &&
	cp "$canaries/token" "$canaries/former" &&
	gets_token &&
	cmp "$canaries/token" "$canaries/former"
'

test_expect_success 'the token of a user is exchanged for one of the same user' '
	exchange &&
	gets_token &&
	test "$(claim sub)" = alice
'

test_expect_success 'if the server rejects the token, the operator learns the cause, and the user a summary' '
	echo "{}" >"$OIDC/subjects.json" &&
	oidc_again &&
	id=$(submit true) &&
	is_failed_delivery "$id" "the authorization server that its token comes from refused it" &&
	flux dmesg | grep "invalid_grant (400).*check that the subject token or refresh token is valid"
'

test_expect_success 'a new key of the server is fetched, and no job fails' '
	rule &&
	gets_token &&
	former=$(header kid) &&
	oidc_key &&
	oidc_again &&
	gets_token &&
	test "$(header kid)" != "$former"
'

test_expect_success 'a token that is not for this audience is not delivered' '
	audience=another rule &&
	id=$(submit true) &&
	is_failed_delivery "$id" "the token that its source gave was refused"
'

test_expect_success 'an error about an unknown client secret does not contain it' '
	secret=$canaries/wrong rule &&
	id=$(submit true) &&
	is_failed_delivery "$id" "access to the authorization server that its token comes from is not set up" &&
	flux dmesg | grep "invalid_client (401).*check that client-id"
'

test_expect_success 'while the server is down, jobs fail with one line' '
	timeout=2s rule &&
	oidc_kill &&
	id=$(submit true) &&
	is_failed_delivery "$id" "the authorization server that its token comes from could not be reached" &&
	flux dmesg | grep "client flux at $ISSUER.*refused the connection: check that the server runs"
'

test_expect_success 'a job that waits meanwhile starts when the server is back, with another key' '
	timeout=60s rule &&
	rm -f "$canaries/token" &&
	id=$(submit "$PWD/keep") &&
	await prolog-start "$id" &&
	oidc_key &&
	oidc_up &&
	await clean "$id" &&
	events finish "$id" | grep status=0 &&
	test "$(claim iss)" = "$ISSUER" &&
	test "$(events prolog-finish "$id" | wc -l)" = 1
'

test_expect_success 'neither the token nor the secrets are found anywhere' '
	subjects alice &&
	oidc_again &&
	exchange &&
	id=$(submit -o verbose=2 "$PWD/quiet") &&
	read -r -t 60 tasks <>pids &&
	tr "\0" "\n" </proc/$tasks/environ | sed -n "s/^DW_WORKFLOW_TOKEN=//p" >"$canaries/job" &&
	test -s "$canaries/job" &&
	ids=$id &&
	gather oauth2 workflow-token.so &&
	flux kvs put --sync checkpoint=3 &&
	everywhere job token former client wrong "subjects/$(id -u).jwt" &&
	test "$(cat status)" = 1 &&
	flux cancel "$id" &&
	await clean "$id"
'

test_expect_success 'the instance ends normally' '
	oidc_kill &&
	instance_down
'

test_done
