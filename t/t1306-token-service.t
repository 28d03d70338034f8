#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='The token service reports whether the tokens of jobs are valid, and issues tokens to users'

. "$(dirname "$0")/lib.sh"
need_flux
need_canaries
test -x "$STAGE/sbin/workflow-tokend" || error "$STAGE/sbin/workflow-tokend is missing: run make stage"

KEYS=$base/canaries/keys
SECRET=$base/canaries/secret
PORT=$(python3 -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
ISSUER=http://127.0.0.1:$PORT

site() {
	cat <<-EOF
		revocations = "$PWD/revocations"
		[workflow-token.service]
		socket = "$base/service"
		user = $(id -u)
		[[workflow-token.service.grant]]
		from = "munge"
		audience = "service"
		workspaces = ["${1:-w}"]
		[workflow-token.issuer]
		keys = "$KEYS"
		name = "$ISSUER"
		audience = "service"
		[[workflow-token.rule]]
		source = "issuer"
		workspace = "w"
	EOF
}

# introspect NAME: sends a request. The response is in the file answer.
introspect() {
	timeout 60 "$TESTS/request.py" "$ISSUER/introspect" --client "copy:$SECRET" --form "token=@$canaries/$1" >answer 2>&1
}

is_active() {
	introspect "$1" && grep -q "\"active\":true" answer
}

is_inactive() {
	introspect "$1" && grep -qx "{\"active\":false}" answer
}

is_ready() {
	timeout 60 "$TESTS/request.py" "$ISSUER/readyz" 2>&1 | head -n 1 | grep -qx 200
}

tokend_up() {
	"$STAGE/sbin/workflow-tokend" --config="$PWD/tokend.toml" >>tokend.log 2>&1 8>&- 9>&- &
	TOKEND=$!
	eventually is_ready
}

tokend_down() {
	test -z "$TOKEND" || { kill "$TOKEND" && wait "$TOKEND"; }
	TOKEND=
}
cleanup tokend_down

test_expect_success 'an instance issues tokens, and the service connects to its agent' '
	flux workflow-token keygen "$KEYS" >/dev/null &&
	(umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d " \n" >"$SECRET") &&
	cat >tokend.toml <<-EOF &&
		issuer = "$ISSUER"
		agent = "$base/service"
		[[listen]]
		address = "127.0.0.1:$PORT"
		[[client]]
		id = "copy"
		secret-file = "$SECRET"
		audience = ["service"]
		may = ["introspect", "revoke"]
	EOF
	site | table && munge_up && instance_up 1 && load && tokend_up
'

test_expect_success 'the token of a job is active as long as the job' '
	one=$(holder one) && two=$(holder two) && is_active one && is_active two &&
	flux cancel "$one" && flux job wait-event -t 60 "$one" clean && eventually is_inactive one && is_active two
'

test_expect_success 'through a reload of the plugin, the end of the agent, and other grants' '
	unload && load && eventually is_active two &&
	pkill -KILL -f "^/.*/workflow-token-agent --socket $(flux getattr rundir)/" && eventually is_active two && is_inactive one &&
	site fusion | table && flux config reload && eventually is_active two &&
	flux workflow-token token >"$canaries/user" && is_active user && grep "\"workspace\":\"fusion\"" answer
'

test_expect_success 'a token that the service revokes is rejected by the agent, too' '
	timeout 60 "$TESTS/request.py" "$ISSUER/revoke" --client "copy:$SECRET" --form "token=@$canaries/two" >answer &&
	is_inactive two && test_expect_code 1 flux workflow-token verify --agent --keys "$KEYS" --issuer "$ISSUER" --audience service - \
		<"$canaries/two" >out 2>&1 && grep "it was revoked" out && flux cancel "$two"
'

test_expect_success 'no log of the service contains a token or secret' '
	for name in one two user; do cat "$canaries/$name" && echo || return; done >"$canaries/all" && test_expect_code 1 "$TESTS/search.py" "$canaries/all" tokend.log &&
	test_expect_code 1 grep -F -f "$SECRET" tokend.log
'

test_expect_success 'without its table, the service receives no response' '
	site | sed "/service\\]/,/^workspaces/d" | table && flux config reload && eventually test ! -e "$base/service"
'

test_done
