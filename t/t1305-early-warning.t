#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='A job that may outlast its token is reported or rejected when it is submitted'

. "$(dirname "$0")/lib.sh"
need_flux
need_canaries

KEYS=$base/canaries/keys
IDENTITY=$base/canaries/identity
LOGIN=https://login.example.org

tool() {
	flux workflow-token "$@"
}

# site LINE…: writes the configuration, with more lines of its rule. Its timeout in seconds is the length of the file of
# that name, in bytes.
site() {
	cat <<-EOF
		timeout = $(wc -c <timeout)
		[workflow-token.issuer]
		keys = "$KEYS"
		name = "https://hpc.example.org"
		audience = "service"
		[workflow-token.trust.login]
		issuer = "$LOGIN"
		audience = "hpc"
		keys = "$KEYS"
		leeway = "1s"
		[workflow-token.identity]
		token = "$IDENTITY/{uid}.jwt"
		trust = "login"
		claim = "workspace"
		[[workflow-token.project]]
		name = "fusion"
		claims = ["fusion-team"]
		[[workflow-token.project]]
		name = "hydro"
		users = ["$(id -un)"]
		[[workflow-token.rule]]
		source = "issuer"
		max-lifetime = "1h"
	EOF
	printf '%s\n' "$@"
}

# login DURATION: writes an identity token with this lifetime, and changes the configuration, so that it is read
# immediately.
login() {
	(umask 077 && tool issue --keys "$KEYS" --issuer "$LOGIN" --audience hpc --sub "$(id -un)" --scope workspace \
		--workspace fusion-team --lifetime "$1" >"$IDENTITY/$(id -u).new") &&
		mv "$IDENTITY/$(id -u).new" "$IDENTITY/$(id -u).jwt" && printf . >>timeout && site "on-shortfall = \"reject\"" | table
}

SHORT="token.default: it lasts 1h and is not renewed, but this job may run 2h: set a time limit of at most 1h"

# submission FILE ARGUMENT…: writes the error of a rejected job, or its exceptions.
submission() {
	local file=$1 id
	shift
	if id=$(flux submit "$@" true 2>"$file"); then
		flux job wait-event -t 60 "$id" clean >/dev/null && flux job eventlog "$id" | grep " exception " >"$file"
	fi
	cat "$file"
}

test_expect_success 'an instance whose tokens last an hour and are not renewed' '
	tool keygen "$KEYS" >/dev/null && mkdir -m 0700 "$IDENTITY" && printf %060d 0 >timeout &&
	site "renew = false" | table && munge_up && instance_up 1 && load
'

test_expect_success 'the user of a job with a longer time limit is warned, and the job runs' '
	flux run -S project=hydro -t 2h printenv DW_WORKFLOW_TOKEN >out 2>err && test -s out &&
	grep "job.exception .* type=workflow-token severity=4 $SHORT" err && test $(grep -c job.exception err) -eq 1
'

test_expect_success 'and sees the warning later' '
	flux jobs -a -n -o "{exception.note}" >notes && grep "$SHORT" notes
'

test_expect_success 'jobs of an hour are not reported' '
	flux run -S project=hydro -t 1h true 2>err && ! grep exception err
'

test_expect_success 'a rule rejects such jobs, and those without a time limit' '
	site "renew = false" "on-shortfall = \"reject\"" | table &&
	test_must_fail flux submit -S project=hydro -t 2h true 2>err && grep "$SHORT" err &&
	test_must_fail flux submit -S project=hydro true 2>err && grep "but this job has no time limit: set" err &&
	flux run -S project=hydro -t 1h true
'

test_expect_success 'a token that is renewed covers any time limit' '
	site "on-shortfall = \"reject\"" | table && flux run -S project=hydro true && flux run -S project=hydro -t 100d true
'

test_expect_success 'a job whose renewals outlast the identity token of its owner is rejected' '
	login 30m &&
	submission err -S project=fusion -t 2h &&
	grep "your identity token for project fusion expires in \(29\|30\)m, and renewals need it, but this job may run 2h" err &&
	flux run -S project=fusion -t 30m true
'

test_expect_success 'and one that starts after it has expired' '
	submission err -S project=fusion -t 1m --begin-time=+1h &&
	grep "your identity token for project fusion expires in \(29\|30\)m, and this job starts in [56][0-9]m at the earliest" err
'

test_expect_success 'after another login it is accepted' '
	login 8h && flux run -S project=fusion -t 2h true 2>err && ! grep exception err
'

test_expect_success 'the token of a command is compared when the job starts' '
	program give <<-EOF &&
		#!/bin/sh
		exec cat "$IDENTITY/$(id -u).jwt"
	EOF
	login 10m &&
	sed -e "s|^source = \"issuer\"|source = \"command\"\ncommand = [\"$PWD/give\"]\nrenew = false|" \
		-e "/^max-lifetime/d" "$CONFIG/workflow-token.toml" >command.toml &&
	test_must_fail grep -q "^source = \"issuer\"" command.toml &&
	sed -e 1,2d command.toml | table &&
	submission err -S project=hydro -t 2h && grep "severity.*it lasts [0-9]*m and is not renewed.*token-shortfall" err &&
	flux run -S project=hydro -t 1m true
'

test_expect_success 'the end' '
	unload && instance_down
'

test_done
