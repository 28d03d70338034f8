#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='A token is valid until its job ends or it is revoked, and the agent reports which'

. "$(dirname "$0")/lib.sh"
need_flux
need_canaries

ISSUER=https://hpc.example.org
KEYS=$base/canaries/keys

tool() {
	flux workflow-token "$@"
}

# site: writes the configuration, with a rule that issues tokens.
site() {
	cat <<-EOF
		revocations = "$PWD/revocations"
		[workflow-token.issuer]
		keys = "$KEYS"
		name = "$ISSUER"
		audience = "service"
		[[workflow-token.rule]]
		source = "issuer"
		workspace = "w"
		renew = 0.1
		renew-signal = "SIGURG"
		audiences = ["archive"]
		max-lifetime = "1h"
	EOF
}

# verify NAME: verifies a token with the agent. The output is in the file out.
verify() {
	tool verify --agent --keys "$KEYS" --issuer "$ISSUER" --audience service - <"$canaries/$1" >out 2>&1
}

# refused NAME TEXT: succeeds if the token is rejected for this reason.
refused() {
	test_expect_code 1 verify "$1" && grep "refused: $2" out
}

is_refused_as_ended() {
	refused "$1" "its job has ended" >/dev/null
}

# unknown NAME
unknown() {
	test_expect_code 2 verify "$1" && grep "could not report whether the token was revoked or its job has ended" out
}

test_expect_success 'an instance issues tokens' '
	tool keygen "$KEYS" >/dev/null &&
	site | table && munge_up && instance_up 1 && load
'

test_expect_success 'the token of a running job is valid' '
	one=$(holder one) && two=$(holder two) && verify one && verify two
'

test_expect_success 'but not once the job has ended, although it has not expired' '
	flux cancel "$one" && flux job wait-event -t 60 "$one" clean && eventually is_refused_as_ended one && verify two &&
	at=$(flux job eventlog "$one" | sed -n "s/^\([0-9]*\)[.0-9]* clean.*/\1/p") && test -n "$at" &&
	refused one "its job has ended, at $(date -u -d "@$at" +%FT%TZ)"
'

test_expect_success 'without the option, it is valid until it expires' '
	tool verify --keys "$KEYS" --issuer "$ISSUER" --audience service - <"$canaries/one"
'

test_expect_success 'without the plugin, the end of the job is unknown, and with it known again' '
	unload && unknown one && unknown two && load && eventually verify two && refused one "its job has ended"
'

test_expect_success 'a restarted agent knows it again, and never treats a running job as ended' '
	pkill -KILL -f "workflow-token-agent .*$RUN" && { verify two || unknown two; } && eventually verify two
'

test_expect_success 'the tokens of a job are revoked, and it receives no others' '
	three=$(holder three) && tool revoke "$three" && refused three "it was revoked" && verify two &&
	test -s revocations/revocations && test "$(stat -c %a revocations)" = 700
'

test_expect_success 'the revocation outlives the agent and the plugin' '
	pkill -KILL -f "workflow-token-agent .*$RUN" && unload && load &&
	eventually verify two && refused three "it was revoked"
'

test_expect_success 'a single token is revoked' '
	jti=$(tool inspect --json - <"$canaries/two" | member claims.jti) &&
	tool revoke --jti="$jti" && refused two "it was revoked" &&
	four=$(holder four) && verify four
'

test_expect_success 'the tokens of a user are revoked, and later ones are valid' '
	tool revoke --user "$(id -un)" && refused four "it was revoked" &&
	later() { rm -f "$canaries/five" && five=$(holder five) && verify five; } && eventually later
'

test_expect_success 'a user requests another audience and a shorter lifetime, but nothing that is not allowed' '
	flux run -S token.default.audience=archive -S token.default.lifetime=5m sh -c "umask 077
		printf %s \"\$DW_WORKFLOW_TOKEN\" >\"$canaries/requested\"" &&
	tool verify --keys "$KEYS" --issuer "$ISSUER" --audience archive --json - <"$canaries/requested" >claims &&
	test $(($(member claims.exp <claims) - $(member claims.iat <claims))) -eq 300 &&
	test_must_fail flux submit -S token.default.audience=bank true 2>err &&
	grep "token.default.audience: .bank. is not allowed: choose from service, archive" err &&
	test_must_fail flux submit -S token.default.lifetime=2h true 2>err && grep "at most 3600 s" err &&
	test_must_fail flux submit -S token.other.scope=x true 2>err && grep "gets no such token, only default" err
'

test_expect_success 'a revocation that cannot be stored is an error' '
	mv revocations away && : >revocations &&
	test_must_fail tool revoke --jti x 2>err && grep "nothing was revoked: .*revocations" err &&
	unknown five && rm revocations && mv away revocations && verify five
'

test_expect_success 'without a place for revocations, the command says what to do' '
	site | sed "/^revocations/d" | table && test_must_fail tool revoke --jti x 2>err &&
	grep "set the key revocations" err && eventually verify five
'

test_expect_success 'other users receive no response' '
	test "$(id -u)" -ne 0 || ! setpriv --reuid=nobody --clear-groups true || {
		socket=$(find "$RUN" -name workflow-token-agent -type s) && test -n "$socket" &&
		python3 - "$socket" <<-\EOF
			import os, socket, sys
			os.setuid(65534)
			peer = socket.socket(socket.AF_UNIX)
			try:
			    peer.connect(sys.argv[1])
			except PermissionError:
			    sys.exit(0)
			peer.sendall(b"\x08\0\0\0" + bytes(8))
			reply = peer.recv(1000)
			assert b"not" not in reply and len(reply) < 40, reply
		EOF
	}
'

test_expect_success 'the end' '
	flux cancel --all && unload && instance_down
'

test_done
