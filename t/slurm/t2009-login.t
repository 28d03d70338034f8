#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='Slurm: users log in to the token service at an OpenID provider, and clients and proxies of others use the service'

. "$(dirname "$0")/lib.sh"
need_slurm
CLI=$STAGE/bin/workflow-token
test -x "$STAGE/sbin/workflow-tokend" || error "$STAGE/sbin/workflow-tokend is missing: run make stage"
PACKAGES=$(dirname "$STAGE")/login
command -v openssl >/dev/null || skip "no openssl found: install it"
command -v node >/dev/null || skip "no node found: install it"
test -e "$PACKAGES/installed" || skip "packages of npm are missing in $PACKAGES: run scripts/deps.sh check"
export LOGIN_CHROMIUM LOGIN_SCREENSHOTS=${WORKFLOW_TOKEN_SCREENSHOTS:-$PWD/screenshots}
LOGIN_CHROMIUM=$(command -v chromium) || skip "no chromium found: install it"

# The service has a user of its own, who is neither that of the agent nor the owner of a job.
SERVICE=$CONTROLLER
test "$(id -u)" -ne 0 || SERVICE=${WORKFLOW_TOKEN_TEST_OTHER:-daemon}
# Two users of the cluster, who run nothing here.
export LOGIN_ALICE=$ALICE LOGIN_BOB=${BOB:-nobody}

# login PROGRAM TEST: one of the tests of t/login.
login() {
	timeout -k 5 300 node login/run.mjs "$@" 8>&- 9>&-
}

# provider_up: Sets LOGIN_PROVIDER.
provider_up() {
	mkfifo provider.ready && exec 6<>provider.ready &&
		{
			node login/provider.mjs provider.json >&6 2>>provider.log 6>&- 8>&- 9>&- &
			BESIDE+=($!)
		} &&
		read -r -t 60 LOGIN_PROVIDER <&6 && export LOGIN_PROVIDER
}

is_ready() {
	login sessions ready >ready.out
}

# service_up: returns when it has the keys.
service_up() {
	(become "$SERVICE" "$PWD/bin/workflow-tokend" --config="$PWD/service/tokend.toml") >>service.log 2>&1 6>&- 8>&- 9>&- &
	TOKEND=$!
	BESIDE+=("$TOKEND")
	eventually is_ready
}

# users_log_in MAX_SESSION: the configuration of the agent.
users_log_in() {
	site <<-EOT &&
		revocations = "$PWD/agent/revocations"

		[workflow-token.service]
		socket = "$PWD/run/service"
		user = "$SERVICE"

		[workflow-token.service.login]
		from = "site"
		client-id = "portal"
		client-secret = "$PWD/keys/portal"
		scope = "openid profile email"
		user-claim = "preferred_username"
		max-session = "$1"

		[workflow-token.trust.site]
		issuer = "$LOGIN_PROVIDER"
		audience = "portal"

		[[workflow-token.service.grant]]
		from = "site"
		audience = ["copy-offload"]
		workspaces = ["hydro"]

		[[workflow-token.service.grant]]
		from = "client"
		clients = ["copy"]
		audience = ["copy-offload"]
		workspaces = ["hydro"]

		[workflow-token.issuer]
		keys = "$PWD/keys/issuer"
		name = "$LOGIN_ISSUER"
		audience = ["copy-offload"]

		[[workflow-token.rule]]
		source = "issuer"
		workspace = "hydro"
	EOT
		sed -i "/^revocations = /d; s,^\\[workflow-token\\],&\nrevocations = \"$PWD/agent/revocations\"," "$SITE"
}

# certificate: an authority for this test, and a certificate of it for the service.
certificate() {
	local ec="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
	# shellcheck disable=SC2086
	openssl req -x509 $ec -days 2 -subj "/CN=test authority" -keyout ca.key -out ca.pem 2>/dev/null &&
		openssl req $ec -subj /CN=localhost -keyout service/key.pem -out service.csr 2>/dev/null &&
		printf 'subjectAltName=DNS:localhost\nbasicConstraints=critical,CA:FALSE\n' >service.ext &&
		openssl x509 -req -in service.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile service.ext \
			-out service/cert.pem 2>/dev/null && rm ca.key && chmod 0600 service/key.pem && chmod 0644 ca.pem service/cert.pem
}

test_expect_success 'a provider, an agent and a service start' '
	cluster_prepare && mkdir -p shared service run login keys "$LOGIN_SCREENSHOTS" && chmod 1777 shared &&
	chown "$CONTROLLER" run && chmod 0755 run service &&
	read -r PORT APACHE ECHO < <(free_ports 3) && export LOGIN_ISSUER=https://localhost:$PORT &&
	cp "$TESTS"/login/*.mjs login/ && ln -s "$PACKAGES/node_modules" login/node_modules &&
	cp "$STAGE/sbin/workflow-tokend" "$CLI" bin/ && chmod 0755 bin/* && certificate && export NODE_EXTRA_CA_CERTS=$PWD/ca.pem &&
	(umask 077 && for name in service/secret service/state.key keys/portal; do openssl rand -hex 32 >$name || exit; done) &&
	LOGIN_SECRET=$(cat service/secret) && export LOGIN_SECRET &&
	"$CLI" keygen "$PWD/keys/issuer" >/dev/null && chown -R "$CONTROLLER" keys &&
	(umask 077 && jq -n --arg issuer "$LOGIN_ISSUER" --arg alice "$LOGIN_ALICE" --arg bob "$LOGIN_BOB" --rawfile secret keys/portal "{
		port: 0,
		clients: [{
			client_id: \"portal\", client_secret: (\$secret | rtrimstr(\"\\n\")), grant_types: [\"authorization_code\", \"refresh_token\"],
			redirect_uris: [\"\\(\$issuer)/callback\"], post_logout_redirect_uris: [\"\\(\$issuer)/logged-out\"],
			backchannel_logout_uri: \"\\(\$issuer)/backchannel-logout\", backchannel_logout_session_required: true
		}],
		users: {
			alice: {preferred_username: \$alice, name: \"Alice\", email: \"alice@example.org\", groups: [\"hydro\"]},
			bob: {preferred_username: \$bob, name: \"Bob\", email: \"bob@example.org\", groups: []},
			eve: {preferred_username: \$bob, name: \"<img src=x onerror=attacked()>\", email: \"\\\"><img src=x onerror=attacked()>\"},
			ghost: {preferred_username: \"no-such-user\", name: \"Ghost\"}
		}
	}" >provider.json) &&
	cat >service/tokend.toml <<-EOT &&
		issuer = "$LOGIN_ISSUER"
		agent = "$PWD/run/service"
		agent-user = "$CONTROLLER"

		[[listen]]
		address = "127.0.0.1:$PORT"
		certificate = "$PWD/service/cert.pem"
		key = "$PWD/service/key.pem"

		[state]
		database = "sqlite://$PWD/service/state.db"
		key-file = "$PWD/service/state.key"

		[[client]]
		id = "copy"
		secret-file = "$PWD/service/secret"
		audience = ["copy-offload"]
		may = ["introspect", "revoke"]

		[[client]]
		id = "cli"
		public = true
		redirect-uris = ["http://127.0.0.1/callback"]
		audience = ["copy-offload"]
	EOT
	chown -R "$SERVICE" service && provider_up && users_log_in 1m &&
	munge_up && agent_up && cluster_up && service_up
'

# It is looked at again at the end.
test_expect_success 'a session of a minute begins' '
	login attacks short_session >short
'

test_expect_success 'no login begins while the agent knows nothing of the provider' '
	login trouble break_discovery && agent_down && users_log_in 8h && agent_up && eventually is_ready &&
	login trouble discovery_is_broken
'

test_expect_success 'a user logs in and out in a browser' '
	login sessions login_and_logout
'

test_expect_success 'two users in two browsers are two users' '
	login sessions two_users
'

test_expect_success 'deleted and tampered cookies are no session' '
	login sessions cookies_deleted_and_tampered && login attacks login_cookies_are_not_changed
'

test_expect_success 'the provider ends sessions by the back channel' '
	login sessions back_channel_logout
'

test_expect_success 'whom the cluster does not know, does not log in' '
	login sessions unknown_user
'

test_expect_success 'names and parameters are text, not scripts' '
	login sessions names_are_text
'

test_expect_success 'a login leads to no other site' '
	login attacks open_redirects
'

test_expect_success 'repeated parameters are refused' '
	login attacks duplicate_parameters
'

test_expect_success 'a login is bound to its browser by state, nonce and PKCE, and is finished once' '
	login attacks requests_are_bound && login attacks state_is_of_this_browser && login attacks callbacks_are_not_replayed &&
	login attacks codes_are_not_swapped && login attacks pkce_and_nonce_are_required && login trouble wrong_nonce
'

test_expect_success 'nobody fixes the session of another' '
	login attacks session_fixation
'

test_expect_success 'no other site sends forms' '
	login attacks forgery && login attacks foreign_page
'

test_expect_success 'a provider that is down, slow, or sends 10 MB fails one login, and nothing else' '
	login trouble down && login trouble slow && login trouble huge && login trouble sessions_outlive_the_provider
'

test_expect_success 'the provider rotates its keys during a login' '
	login trouble keys_are_rotated && login trouble keys_cannot_be_fetched
'

test_expect_success 'openid-client: the device flow, which a user approves in a browser' '
	login clients device_flow && login clients device_codes_are_good_once
'

test_expect_success 'openid-client: a user sees whose device login is approved, and denies it' '
	login clients device_login_of_another
'

test_expect_success 'openid-client: the code flow with PKCE, and a confirmation' '
	login clients code_flow && login clients authorize_is_strict
'

test_expect_success 'openid-client: refresh tokens rotate, and reuse ends all of them' '
	login clients refresh && login clients refresh_tokens_are_revoked
'

test_expect_success 'openid-client: a session is exchanged for a token, which is exchanged, introspected and revoked' '
	login clients exchange_introspection_and_revocation
'

export LOGIN_PYTHON=python3 LOGIN_AUTHLIB=$TESTS/login/authlib_client.py
PYTHONPATH=$PACKAGES/python python3 -c 'import authlib, requests' 2>/dev/null && test_set_prereq AUTHLIB

test_expect_success AUTHLIB 'Authlib: discovery, client credentials, the code flow, introspection and revocation' '
	PYTHONPATH=$PACKAGES/python login clients authlib
'

job_is_inactive() {
	LOGIN_TOKEN=shared/token login clients is_active >claims && jq -e ".active == false" claims
}

test_expect_success 'openid-client: the token of a job is active while the job is' '
	mkfifo shared/go && chmod 0666 shared/go &&
	program holder <<-EOF &&
		#!/bin/sh
		umask 022
		printenv DW_WORKFLOW_TOKEN >"$PWD/shared/token.new" && mv "$PWD/shared/token.new" "$PWD/shared/token"
		read go <"$PWD/shared/go"
	EOF
	id=$(batch "$ALICE" -o /dev/null "$PWD/holder") && eventually test -s shared/token &&
	LOGIN_TOKEN=shared/token login clients is_active >claims && jq -e ".active and .slurm.jobid == \"$id\"" claims &&
	echo >shared/go && eventually finished "$id" && eventually job_is_inactive
'

MODULES=/usr/lib/apache2/modules
command -v apache2 >/dev/null && test -e $MODULES/mod_auth_openidc.so && test_set_prereq APACHE

# answers STATUS ARGUMENT…: of Apache.
answers() {
	"$TESTS/request.py" "http://127.0.0.1:$APACHE$2" "${@:3}" >answer && test "$(head -n 1 answer)" = "$1" ||
		{
			head -n 1 answer
			return 1
		}
}

test_expect_success APACHE 'mod_auth_openidc introspects tokens for Apache, and says whose they are' '
	mkdir -p apache && login clients session_token >of-session &&
	{ "$TESTS/slurm/echo.py" "$ECHO" 6>&- 8>&- 9>&- & BESIDE+=($!); } &&
	cat >apache/httpd.conf <<-EOT &&
		ServerName localhost
		Listen 127.0.0.1:$APACHE
		PidFile $PWD/apache/pid
		DefaultRuntimeDir $PWD/apache
		Mutex file:$PWD/apache default
		ErrorLog $PWD/apache/error.log
		$(test "$(id -u)" -ne 0 || printf "User $ALICE\nGroup $(id -gn "$ALICE")")
		$(for name in mpm_event authn_core authz_core authz_user proxy proxy_http auth_openidc; do
			echo "LoadModule ${name}_module $MODULES/mod_$name.so"
		done)
		OIDCCryptoPassphrase unused
		OIDCCABundlePath $PWD/ca.pem
		OIDCOAuthIntrospectionEndpoint $LOGIN_ISSUER/introspect
		OIDCOAuthIntrospectionEndpointAuth client_secret_basic
		OIDCOAuthClientID copy
		OIDCOAuthClientSecret $LOGIN_SECRET
		OIDCOAuthRemoteUserClaim sub
		<Location />
			AuthType oauth20
			OIDCOAuthTokenIntrospectionInterval -1
			OIDCAuthNHeader X-User
			Require claim aud:copy-offload
			ProxyPass http://127.0.0.1:$ECHO/
		</Location>
	EOT
	chown -R "$ALICE" apache &&
	{ apache2 -f "$PWD/apache/httpd.conf" -D FOREGROUND 2>>apache/out 6>&- 8>&- 9>&- & BESIDE+=($!); } &&
	eventually answers 401 / && answers 200 /a --token of-session --header "X-User: root" --header "OIDC_CLAIM_sub: root" &&
	tail -n 1 answer >seen && jq -e --arg user "$LOGIN_ALICE" ".headers[\"x-user\"] == \$user" seen &&
	! grep root seen && cp shared/token ended && answers 401 / --token ended &&
	echo bad >bad && answers 401 / --token bad
'

# own WORKFLOW_TOKEN_COMMAND…: as the user of the cluster that alice is.
own() {
	as "$LOGIN_ALICE" "$PWD/bin/workflow-token" "$@" --config "$SITE" --ca-file "$PWD/ca.pem"
}

export LOGIN_SITE=$SITE LOGIN_AS
test_expect_success 'a job whose owner has not logged in fails, and says what to do' '
	if test "$(id -un)" = "$LOGIN_ALICE"; then set --; else
		set -- setpriv --reuid="$LOGIN_ALICE" --regid="$(id -g "$LOGIN_ALICE")" --clear-groups
	fi &&
	LOGIN_AS=$(python3 -c "import json, sys; print(json.dumps(sys.argv[1:]))" "$@" "$PWD/bin/workflow-token") &&
	agent_down && sed -i "s,^max-session = .*,&\nstore = \"$PWD/agent/logins\"," "$SITE" &&
	cat >>"$SITE" <<-EOT &&

		[[workflow-token.rule]]
		name = "own"
		user = "$LOGIN_ALICE"
		source = "login"
		variable = "OWN_TOKEN"
		check = "none"
	EOT
	agent_up && eventually is_ready &&
	test_expect_code 1 own status >out && grep "No login" out &&
	test_must_fail as "$LOGIN_ALICE" timeout 60 srun true 2>err && grep "workflow-token login" err
'

test_expect_success 'a user logs in for jobs in a browser, and jobs get tokens of that user' '
	login jobs login && own status && grep -q . agent/logins/login-* &&
	for job in 1 2; do
		as "$LOGIN_ALICE" timeout 60 srun printenv OWN_TOKEN >token-own && LOGIN_TOKEN=$(cat token-own) login jobs token_of &&
			test "$(cat token-of)" = "$LOGIN_ALICE" || return 1
	done &&
	test_expect_code 1 grep -r -F -e "$(cat token-own)" -e eyJ agent/logins agent.log service.log
'

test_expect_success 'the projects of a job owner are those of the login' '
	agent_down && cat >>"$SITE" <<-EOT &&

		[workflow-token.identity]
		from = "login"
		claim = "groups"

		[[workflow-token.project]]
		name = "water"
		claims = ["hydro"]

		[[workflow-token.project]]
		name = "air"
		claims = ["aero"]

		[[workflow-token.rule]]
		name = "water"
		project = "water"
		source = "issuer"
		workspace = "water"
		variable = "WATER_TOKEN"

		[[workflow-token.rule]]
		name = "air"
		project = "air"
		source = "issuer"
		workspace = "air"
		variable = "AIR_TOKEN"
	EOT
	agent_up && eventually is_ready &&
	as "$LOGIN_ALICE" timeout 60 srun printenv WATER_TOKEN >token-water &&
	"$CLI" inspect - <token-water >shown && grep "\"workspace\": \"water\"" shown &&
	test_must_fail as "$LOGIN_ALICE" timeout 60 srun printenv AIR_TOKEN >token-air && test_must_be_empty token-air &&
	if test -n "$BOB"; then
		test_must_fail as "$LOGIN_BOB" timeout 60 srun printenv WATER_TOKEN >token-water && test_must_be_empty token-water
	fi
'

test_expect_success 'nobody else finishes the login of a user for jobs' '
	login jobs login_of_another
'

# provider_is FAULT: how the provider answers requests for tokens from now on, in JSON.
provider_is() {
	node -e "fetch(process.argv[1] + \"/control\", { method: \"POST\", body: process.argv[2] })" \
		"$LOGIN_PROVIDER" "{\"path\": \"/token\", \"fault\": $1}"
}

is_in_use() {
	compgen -G "agent/logins/*.new" >/dev/null
}

test_expect_success 'a logout while a delivery uses the login changes nothing, and says so' '
	provider_is "\"slow\"" && { as "$LOGIN_ALICE" timeout 100 srun printenv OWN_TOKEN >token-own 8>&- 9>&- & job=$!; } &&
	eventually is_in_use && test_must_fail own logout && eventually grep "a delivery uses it" service.log &&
	own status && provider_is null && wait "$job" && test -s token-own && own status
'

test_expect_success 'a login for jobs ends' '
	own logout && test -z "$(ls agent/logins | grep -v lock)" && test_expect_code 1 own status && test_must_fail as "$LOGIN_ALICE" timeout 60 srun true
'

test_expect_success 'the session of a minute has ended' '
	LONGEST=120 eventually login attacks session_has_ended
'

test_expect_success 'no log has a token, a secret or a cookie' '
	test_expect_code 1 grep -F -e "$LOGIN_SECRET" -e "$(cat keys/portal)" -e "$(cut -d" " -f2 short)" -e eyJ service.log agent.log
'

test_done
