#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='The instance mints tokens, its keys rotate without a restart, and tokens are verified before delivery'

. "$(dirname "$0")/lib.sh"
need_flux
need_canaries

me=$(id -un)
# Keys and minted tokens are secrets, so they are stored where nothing is searched.
keys=$canaries/keys
other=$canaries/other-keys
minted=$canaries/minted
mkdir "$minted"
issuer=https://hpc.example.org
export WORKFLOW_TOKEN_TEST_KEYS=$canaries

token_tool() {
	timeout 60 "$STAGE/libexec/flux/cmd/flux-workflow-token" "$@"
}

# verify FILE [OPTION…]: verifies a token that must be valid.
verify() {
	local file=$1
	shift
	token_tool verify --keys="$keys" --issuer=$issuer --audience=service "$@" "$file"
}

# claim NAME: prints a claim from the output of verify --json, on standard input.
claim() {
	member "claims.$1"
}

# A task that prints only its token, where it is not searched.
program keep <<-EOF
	#!/bin/sh
	umask 077
	file=$minted/\$1.\$FLUX_JOB_ID
	printenv DW_WORKFLOW_TOKEN >"\$file.new" && mv "\$file.new" "\$file"
EOF

# mint NAME OPTION…: runs a job to its end, and prints the path of its token.
mint() {
	local name=$1 id
	shift
	id=$(flux submit --setattr=system.mint=1 "$@" "$PWD/keep" "$name") &&
		await clean "$id" >&2 &&
		of "$name" "$id"
}

# of NAME ID: prints the path of the token of a job.
of() {
	echo "$minted/$1.$2"
}

# lifetime FILE: prints the lifetime of a token, in seconds.
lifetime() {
	verify "$1" --json >claims && echo $(($(claim exp <claims) - $(claim iat <claims)))
}

# issue FILE OPTION…: writes a token issued by the command to a file.
issue() {
	local file=$1
	shift
	(umask 077 && token_tool issue --sub=alice --issuer=$issuer "$@" >"$file")
}

the_table() {
	cat <<-EOF
		[workflow-token.issuer]
		keys = "\${WORKFLOW_TOKEN_TEST_KEYS}/keys"
		name = "$issuer"
		audience = "service"
		margin = "10m"
		max-lifetime = "12h"

		[workflow-token.trust.own]
		keys = "$keys"
		issuer = "$issuer"
		audience = "service"

		[[workflow-token.rule]]
		attribute = "system.mint"
		source = "issuer"
		workspace = "u-{uid}"
		check = "verify"
		trust = "own"

		[[workflow-token.rule]]
		attribute = "system.given"
		source = "file"
		path = "$canaries/given"
		check = "verify"
		trust = "own"
	EOF
}

test_expect_success 'keygen makes a key directory, whose private key nobody else can read' '
	kid=$(token_tool keygen "$keys") &&
	token_tool keygen --algorithm=ES256 "$other" &&
	test "$(stat -c %a "$keys/signing" "$keys/signing/$kid.pem" | paste -sd,)" = 700,600 &&
	token_tool jwks "$keys" | grep "$kid"
'

test_expect_success 'an instance loads the plugin' '
	the_table | table &&
	munge_up &&
	instance_up 2 -Slog-level=7 -Slog-stderr-level=7 -Slog-stderr-mode=local &&
	load
'

test_expect_success 'a job receives a token that is bound to it, and that the command verifies' '
	file=$(mint first -t 30m) &&
	verify "$file" &&
	verify "$file" --json >claims &&
	id=${file##*.} &&
	test "$(claim sub <claims)" = "$me" &&
	test "$(claim workspace <claims)" = "u-$(id -u)" &&
	test "$(claim flux.jobid <claims)" = "$(flux job id --to=f58plain "$id")" &&
	test "$(claim flux.uid <claims)" = "$(id -u)" &&
	test "$(claim flux.instance <claims)" = "$(flux getattr hostname)" &&
	test "$(claim scope <claims)" = session
'

test_expect_success 'the token is valid for the time limit of the job and a margin, up to a maximum' '
	test "$(lifetime "$file")" = $((40 * 60)) &&
	file=$(mint unlimited) &&
	test "$(lifetime "$file")" = $((12 * 3600)) &&
	file=$(mint long -t 3d) &&
	test "$(lifetime "$file")" = $((12 * 3600))
'

test_expect_success 'an update of the time limit while the job waits takes effect' '
	id=$(flux submit --setattr=system.mint=1 --urgency=hold -t 30m "$PWD/keep" updated) &&
	flux update "$id" duration=2h &&
	flux job urgency "$id" default &&
	await clean "$id" &&
	test "$(lifetime "$(of updated "$id")")" = $((130 * 60))
'

test_expect_success 'a token that was altered, or has another issuer or audience, does not verify' '
	(umask 077 && printf "%s.%s\n" "$(cut -d. -f1,2 "$file")" "$(cut -d. -f3 "$(of updated "$id")")" >"$canaries/altered") &&
	test_expect_code 1 verify "$canaries/altered" 2>err &&
	grep "refused: the token.s signature is wrong" err &&
	test_expect_code 1 token_tool verify --keys="$other" --any-issuer --any-audience "$file" &&
	test_expect_code 1 token_tool verify --keys="$keys" --any-issuer --audience=x "$file" &&
	test_expect_code 2 token_tool verify --keys="$PWD/none" --any-issuer --any-audience "$file"
'

# rotation ROUND ALGORITHM: rotates keys while jobs arrive. Each token verifies until its key is
# retired.
rotation() {
	local round=$1 old new step id file ids=
	old=$(cat "$keys/active") || return
	for step in before added promoted; do
		case $step in
		added) new=$(token_tool rotate add --algorithm="$2" "$keys") || return ;;
		promoted) token_tool rotate promote "$keys" "$new" || return ;;
		esac
		flux submit --cc=1-10 --setattr=system.mint=1 "$PWD/keep" "$step-$round" >ids || return
		ids+="$(paste -sd" " ids) "
	done
	for id in $ids; do await clean "$id" || return; done
	for step in before added promoted; do
		test "$(find "$minted" -name "$step-$round.*" | wc -l)" = 10 || return
		for file in "$minted/$step-$round".*; do verify "$file" >/dev/null || return; done
	done
	file=$(mint "last-$round") &&
		test "$(verify "$file" --json | member kid)" = "$new" &&
		token_tool rotate retire "$keys" "$old" &&
		verify "$file" &&
		for file in "$minted/before-$round".*; do test_expect_code 1 verify "$file" || return; done
}

test_expect_success 'the key rotates three times under load, and no token is rejected before its key is retired' '
	before=$(counter delivered) &&
	rotation 1 ES256 &&
	rotation 2 HS256 &&
	rotation 3 EdDSA &&
	test "$(counter failed)" = 0 &&
	test "$(counter delivered)" = $((before + 3 * 31)) &&
	token_tool rotate list "$keys" >list &&
	cat list &&
	test "$(wc -l <list)" = 1
'

# given TEXT: checks that a job that receives the token in that file fails for this reason.
given() {
	id=$(flux submit --setattr=system.given=1 true) && is_failed_delivery "$id" "$1"
}

test_expect_success 'a token from elsewhere is verified before it is delivered' '
	issue "$canaries/given" --keys="$keys" --audience=service --scope=cluster &&
	flux run --setattr=system.given=1 sh -c "test -n \"\$DW_WORKFLOW_TOKEN\"" &&
	issue "$canaries/given" --keys="$other" --audience=service --scope=cluster &&
	given "the token is signed with the key" &&
	issue "$canaries/given" --keys="$keys" --audience=x --scope=cluster &&
	given "and not for this service" &&
	cp -p "$(mint another)" "$canaries/given" &&
	given "it is the token of another job" &&
	flux dmesg >dmesg &&
	grep -F "$id: no workflow token was delivered: rule 1, source file: " dmesg
'

test_expect_success 'an unreadable change is reported once, and jobs still receive their tokens' '
	echo "no key" >"$keys/broken.pem" &&
	for n in 1 2 3; do file=$(mint broken-$n) || return; done &&
	flux dmesg | grep "remain in use: .*broken.pem" >told &&
	cat told &&
	rm "$keys/broken.pem" &&
	test "$(wc -l <told)" = 1 &&
	verify "$file"
'

test_expect_success 'a private key that others can read is rejected, and the note reveals no path' '
	unload &&
	load &&
	chmod 0644 "$keys"/signing/*.pem &&
	id=$(flux submit --setattr=system.mint=1 true) &&
	is_failed_delivery "$id" "there is no key to sign it with" &&
	! grep -F "$canaries" exceptions &&
	flux dmesg >dmesg &&
	grep -F "$id: no workflow token was delivered: " dmesg | grep "chmod 0600" &&
	chmod 0600 "$keys"/signing/*.pem &&
	file=$(mint mended) &&
	verify "$file"
'

test_expect_success 'a path with a variable that the agent lacks fails jobs, and is logged' '
	cp config/workflow-token.toml former.toml &&
	sed "s/WORKFLOW_TOKEN_TEST_KEYS/WORKFLOW_TOKEN_NOT_SET/" former.toml >config/workflow-token.toml &&
	flux config reload &&
	id=$(flux submit --setattr=system.mint=1 true) &&
	is_failed_delivery "$id" "[agent-configuration]" &&
	flux dmesg >dmesg &&
	grep "workflow-token.issuer.keys: .*WORKFLOW_TOKEN_NOT_SET is not set" dmesg &&
	cp former.toml config/workflow-token.toml &&
	flux config reload &&
	file=$(mint former) &&
	verify "$file"
'

# Prints the secret part of the signing key, in the form that search.py accepts: a token with a claim
# that contains it.
private_key() {
	local line
	line=$(grep -v "^-" "$keys"/signing/*.pem | tr -d '\n') && new_token "k=${line:24}"
}

test_expect_success 'neither a minted token nor the private key is anywhere else' '
	cat "$minted"/* >"$canaries/tokens" &&
	test "$(wc -l <"$canaries/tokens")" -ge 100 &&
	private_key >"$canaries/private" &&
	"$TESTS/search.py" "$canaries/private" "$keys" >planted &&
	cat planted &&
	grep signing planted &&
	ids=$id &&
	gather ended workflow-token.so &&
	flux kvs put --sync checkpoint=1 &&
	everywhere tokens private &&
	test "$(cat status)" = 1 &&
	instance_down &&
	everywhere tokens private &&
	test "$(cat status)" = 1 &&
	test -e state/content.sqlite
'

test_done
