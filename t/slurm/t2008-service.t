#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='Slurm: the token service reports to proxies and services whether the tokens of jobs are valid'

. "$(dirname "$0")/lib.sh"
need_slurm
CLI=$STAGE/bin/workflow-token
test -x "$STAGE/sbin/workflow-tokend" || error "$STAGE/sbin/workflow-tokend is missing: run make stage"
# The service has its own user, who is neither the agent's nor a job owner.
SERVICE=$CONTROLLER
test "$(id -u)" -ne 0 || SERVICE=${WORKFLOW_TOKEN_TEST_OTHER:-daemon}
export PATH=$PATH:/usr/sbin

# http ARGUMENT…: sends a request. The first line of `answer` is the status.
http() {
	timeout 60 "$TESTS/request.py" "$@" >answer 2>&1
}

# answers STATUS ARGUMENT…
answers() {
	local status=$1
	shift
	http "$@"
	test "$(head -n 1 answer)" = "$status" || {
		head -n 1 answer
		return 1
	}
}

# introspect ARGUMENT…: sends a request to the service as the client copy.
introspect() {
	http "http://127.0.0.1:$PORT/introspect" --client "copy:$PWD/secret" --form "token=@$PWD/shared/token" "$@"
}

is_active() {
	introspect && grep -q '"active":true' answer
}

is_inactive() {
	introspect && grep -qx '{"active":false}' answer
}

# service_up: starts the service, and returns when it has the keys.
service_up() {
	(become "$SERVICE" "$PWD/bin/workflow-tokend" --config="$PWD/service/tokend.toml") >>service.log 2>&1 8>&- 9>&- &
	TOKEND=$!
	BESIDE+=("$TOKEND")
	eventually answers 200 "http://127.0.0.1:$PORT/readyz"
}

test_expect_success 'a cluster, an agent and a service start, each as its own user' '
	cluster_prepare && mkdir shared service run && chmod 1777 shared && chown "$CONTROLLER" run && chmod 0755 run service &&
	read -r PORT METRICS NGINX CADDY ECHO < <(free_ports 5) && ISSUER=http://127.0.0.1:$PORT &&
	cp "$STAGE/sbin/workflow-tokend" "$STAGE/bin/workflow-token" bin/ && chmod 0755 bin/* &&
	"$CLI" keygen "$PWD/keys" >/dev/null && chown -R "$CONTROLLER" keys &&
	"$CLI" keygen "$PWD/login" >/dev/null && "$CLI" jwks login >login.jwks && chown "$CONTROLLER" login.jwks &&
	site <<-EOF &&

		[workflow-token.service]
		socket = "$PWD/run/service"
		user = "$SERVICE"

		[[workflow-token.service.grant]]
		from = "munge"
		users = ["$ALICE"]
		audience = ["portal", "copy-offload"]
		workspaces = ["hydro", "fusion"]
		max-lifetime = "10m"

		[workflow-token.trust.site]
		issuer = "https://login.example.org"
		keys = "$PWD/login.jwks"
		audience = "tokens"

		[[workflow-token.service.grant]]
		from = "site"
		audience = ["portal"]
		workspaces = ["hydro"]

		[[workflow-token.service.grant]]
		from = "client"
		clients = ["copy"]
		audience = ["portal"]
		workspaces = ["hydro"]

		[workflow-token.issuer]
		keys = "$PWD/keys"
		name = "$ISSUER"
		audience = ["copy-offload"]
		status-list = "$PWD/agent/status"

		[[workflow-token.rule]]
		source = "issuer"
		workspace = "hydro"
	EOF
	sed -i "s,^\\[workflow-token\\],&\nrevocations = \"$PWD/agent/revocations\"," "$SITE" &&
	(umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d " \n" >secret && cp secret service/secret) &&
	cat >service/tokend.toml <<-EOF &&
		issuer = "$ISSUER"
		agent = "$PWD/run/service"
		agent-user = "$CONTROLLER"

		[[listen]]
		address = "127.0.0.1:$PORT"

		[[listen]]
		socket = "$PWD/service/http"

		[metrics]
		address = "127.0.0.1:$METRICS"

		[[client]]
		id = "copy"
		secret-file = "$PWD/service/secret"
		audience = ["copy-offload"]
		may = ["introspect", "revoke"]

		[[resource]]
		name = "copy-offload"
		url = "http://127.0.0.1:$NGINX"
		scopes = ["session"]
	EOF
	chown -R "$SERVICE" service && { "$TESTS/slurm/echo.py" "$ECHO" 8>&- 9>&- & BESIDE+=($!); } &&
	munge_up && agent_up && cluster_up && service_up &&
	as "$SERVICE" "$PWD/bin/workflow-tokend" --check --config="$PWD/service/tokend.toml" >checked &&
	grep "^$ISSUER: ok (tables: 2 listen, 1 client, 1 resource)$" checked
'

test_expect_success 'the token of a job is active as long as the job, through restarts of all parts' '
	mkfifo shared/go && chmod 0666 shared/go &&
	program holder <<-EOF &&
		#!/bin/sh
		umask 022
		printenv DW_WORKFLOW_TOKEN >"$PWD/shared/token.new" && mv "$PWD/shared/token.new" "$PWD/shared/token"
		read go <"$PWD/shared/go"
	EOF
	id=$(batch "$ALICE" -o /dev/null "$PWD/holder") && eventually test -s shared/token && is_active &&
	grep "\"jobid\":\"$id\"" answer && grep "\"username\":\"$ALICE\"" answer &&
	agent_down KILL && agent_up && eventually is_active &&
	kill -KILL "$TOKEND" && service_up && is_active &&
	slurmctld_down && slurmctld_up && eventually is_active
'

test_expect_success 'the metadata of the issuer lead to the keys that verify the token' '
	answers 200 "http://127.0.0.1:$PORT/.well-known/openid-configuration" && grep "\"jwks_uri\":\"$ISSUER/jwks\"" answer &&
	answers 200 "http://127.0.0.1:$PORT/jwks" && tail -n 1 answer >jwks.json &&
	"$CLI" verify --keys jwks.json --issuer "$ISSUER" --audience copy-offload - <shared/token
'

test_expect_success 'other users can access neither the agent nor the responses of the service' '
	answers 401 "http://127.0.0.1:$PORT/introspect" --form "token=@$PWD/shared/token" &&
	answers 401 "unix:$PWD/service/http:/introspect" --form "token=@$PWD/shared/token" &&
	{ test -z "$BOB" ||
		{ PATH=/usr/bin:$PATH as "$BOB" python3 -c "
import socket, sys
agent = socket.socket(socket.AF_UNIX)
agent.settimeout(60)
agent.connect(sys.argv[1])
assert agent.recv(1) == b\"\", \"the agent answers\"" "$PWD/run/service" &&
		eventually grep "a connection of uid $(id -u "$BOB") to the socket of the service was refused" agent.log; }; } &&
	{ test "$SERVICE" = "$CONTROLLER" || test_must_fail as "$SERVICE" test -w "$PWD/agent/socket"; }
'

# verify AUDIENCE FILE
verify() {
	"$CLI" verify --keys jwks.json --issuer "$ISSUER" --audience "$1" - <"$2"
}

test_expect_success 'a user obtains a token that belongs to no job' '
	as "$ALICE" "$PWD/bin/workflow-token" token --config "$SITE" --audience copy-offload >of-user && verify copy-offload of-user
'

# behind PROXY PORT: tests the behavior common to all proxies.
behind() {
	local at=http://127.0.0.1:$2
	eventually answers 401 "$at/" && grep "^www-authenticate: Bearer realm=\"$ISSUER\"" answer &&
		answers 200 "$at/a/b?aud=other" --token shared/token --header "X-Workflow-Token-Subject: root" &&
		tail -n 1 answer >seen && jq -e --arg user "$ALICE" --arg job "$id" \
		".headers[\"x-workflow-token-subject\"] == \$user and .headers[\"x-workflow-token-job\"] == \$job" seen &&
		answers 200 "$at/" --token of-user --header "X-Workflow-Token-Job: 4711" && tail -n 1 answer >seen &&
		jq -e --arg user "$ALICE" ".headers[\"x-workflow-token-subject\"] == \$user and
		(.headers[\"x-workflow-token-job\"] // \"\") == \"\"" seen &&
		echo bad >bad && answers 401 "$at/" --token bad &&
		for path in "/healthz" "/%2e%2e/readyz" "//jwks" "/?aud=copy-offload&scope="; do
			# nginx itself rejects a path above the root.
			answers 401 "$at$path" || grep -qx 400 answer || return
		done &&
		for header in "X-Original-URI: /livez" "X-Forwarded-Uri: /livez" "X-Forwarded-For: 127.0.0.1" "X-Workflow-Token-Subject: root" \
			"User-Agent: kube-probe/1.30"; do
			answers 401 "$at/" --header "$header" || return
		done
}

! command -v nginx >/dev/null || test_set_prereq NGINX
! command -v caddy >/dev/null || test_set_prereq CADDY

test_expect_success NGINX 'nginx passes requests with a valid token, and names their user' '
	mkdir -p nginx && cat >nginx/nginx.conf <<-EOF &&
		daemon off;
		user $ALICE;
		pid $PWD/nginx/pid;
		error_log $PWD/nginx/error.log;
		events {}
		http {
			access_log off;
			client_body_temp_path $PWD/nginx/body;
			proxy_temp_path $PWD/nginx/proxy;
			fastcgi_temp_path $PWD/nginx/fastcgi;
			uwsgi_temp_path $PWD/nginx/uwsgi;
			scgi_temp_path $PWD/nginx/scgi;
			server {
				listen 127.0.0.1:$NGINX;
				location / {
					auth_request /auth;
					auth_request_set \$subject \$upstream_http_x_workflow_token_subject;
					auth_request_set \$job \$upstream_http_x_workflow_token_job;
					proxy_set_header X-Workflow-Token-Subject \$subject;
					proxy_set_header X-Workflow-Token-Job \$job;
					proxy_pass http://127.0.0.1:$ECHO;
				}
				location = /auth {
					internal;
					proxy_pass http://127.0.0.1:$PORT/auth/nginx?aud=copy-offload;
					proxy_pass_request_body off;
					proxy_set_header Content-Length "";
				}
			}
		}
	EOF
	{ nginx -c "$PWD/nginx/nginx.conf" 2>>nginx/out 8>&- 9>&- & BESIDE+=($!); } && behind nginx "$NGINX"
'

test_expect_success CADDY 'so does Caddy' '
	mkdir -p caddy && cat >caddy/Caddyfile <<-EOF &&
		{
			admin off
			auto_https off
			storage file_system $PWD/caddy
		}
		http://127.0.0.1:$CADDY {
			bind 127.0.0.1
			route {
				request_header -X-Workflow-Token-*
				forward_auth 127.0.0.1:$PORT {
					uri /auth/caddy?aud=copy-offload
					copy_headers X-Workflow-Token-Subject X-Workflow-Token-Job
				}
				reverse_proxy 127.0.0.1:$ECHO
			}
		}
	EOF
	{ caddy run --config caddy/Caddyfile >>caddy/out 2>&1 8>&- 9>&- & BESIDE+=($!); } && behind caddy "$CADDY"
'

# clients NAME ARGUMENT…: twenty requests, whose statuses are in a file of this name.
clients() {
	local name=$1
	shift
	for _ in $(seq 20); do
		timeout 60 "$TESTS/request.py" "http://127.0.0.1:$NGINX/" "$@" | head -n 1
	done >"$name"
}

test_expect_success NGINX 'old and new clients are served at once during a migration, and none is rejected' '
	cp service/tokend.toml tokend.toml &&
	printf "\n[legacy]\nheader = \"X-Old-Token\"\ndeprecated = \"2026-01-01\"\n" >>service/tokend.toml && kill -HUP "$TOKEND" &&
	eventually answers 200 "http://127.0.0.1:$NGINX/" --header X-Old-Token:@of-user &&
	{ clients old --header X-Old-Token:@of-user 8>&- 9>&- & old=$!; } &&
	{ clients new --token of-user 8>&- 9>&- & new=$!; } && wait "$old" && wait "$new" &&
	test "$(sort old new | uniq -c | xargs)" = "40 200" &&
	http "http://127.0.0.1:$PORT/auth/nginx?aud=copy-offload" --header X-Old-Token:@of-user &&
	grep "^deprecation: @1767225600$" answer &&
	http "http://127.0.0.1:$PORT/auth/nginx?aud=copy-offload" --token of-user && test_expect_code 1 grep "^deprecation:" answer &&
	answers 200 "http://127.0.0.1:$METRICS/metrics" && count=$(sed -n "s/^workflow_tokend_legacy_requests_total //p" answer) &&
	test "$count" -ge 21 && cat tokend.toml >service/tokend.toml && kill -HUP "$TOKEND" &&
	eventually answers 401 "http://127.0.0.1:$NGINX/" --header X-Old-Token:@of-user &&
	answers 200 "http://127.0.0.1:$NGINX/" --token of-user
'

# exchange TYPE FILE [ARGUMENT…]
exchange() {
	http "$ISSUER/token" --form grant_type=urn:ietf:params:oauth:grant-type:token-exchange --form "subject_token_type=$1" \
		--form "subject_token=@$2" "${@:3}"
}

# says STATUS TEXT: checks the response.
says() {
	test "$(head -n 1 answer)" = "$1" && grep -qF "$2" answer || {
		head -n 1 answer
		grep error answer
		return 1
	}
}

JWT=urn:ietf:params:oauth:token-type:access_token

test_expect_success 'a user of the cluster obtains a token by MUNGE, and nobody else does' '
	as "$ALICE" "$PWD/bin/workflow-token" token --config "$SITE" --audience portal --project hydro --lifetime 60s >users &&
	verify portal users >shown && grep "^subject *$ALICE$" shown && grep "^workspace *hydro$" shown && grep "^scope *workspace$" shown &&
	grep "in [1-6]*[0-9]s" shown && grep "\"event\":\"exchange\",\"client\":null" service.log &&
	test_must_fail as "$ALICE" "$PWD/bin/workflow-token" token --config "$SITE" --audience other 2>err && grep "invalid_target" err &&
	test_must_fail as "$ALICE" "$PWD/bin/workflow-token" token --config "$SITE" --project other 2>err && grep "invalid_scope" err &&
	{ test -z "$BOB" || { test_must_fail as "$BOB" "$PWD/bin/workflow-token" token --config "$SITE" 2>err && grep "no grant is for this user" err; }; }
'

# credential PAYLOAD ARGUMENT…: prints a credential of the job owner.
credential() {
	printf %s "$1" | as "$ALICE" munge -S "$MUNGE_SOCKET" "${@:2}" >credential
}

test_expect_success 'a MUNGE credential is valid once, for this purpose and this agent' '
	purpose="workflow-token: a token of $ISSUER for the user who encodes this" && uid=$(id -u "$CONTROLLER") &&
	credential "$purpose" -u "$uid" && exchange urn:x-workflow-token:munge credential && says 200 access_token &&
	exchange urn:x-workflow-token:munge credential && says 400 "it was received before" &&
	credential "$purpose" && exchange urn:x-workflow-token:munge credential && says 400 "not restricted" &&
	credential "$purpose" -u 0 && exchange urn:x-workflow-token:munge credential && says 400 invalid_grant &&
	credential "a job of Slurm" -u "$uid" && exchange urn:x-workflow-token:munge credential && says 400 "another purpose" &&
	echo "MUNGE:x:" >credential && exchange urn:x-workflow-token:munge credential && says 400 invalid_grant
'

# identity NAME AUDIENCE LIFETIME: writes an identity token of the login server.
identity() {
	"$CLI" issue --keys login --issuer https://login.example.org --audience "$2" --sub "$1" --scope cluster --lifetime "$3" >identity
}

ID_TOKEN=urn:ietf:params:oauth:token-type:id_token

test_expect_success 'an identity token is exchanged for a token of the user it names, with no longer lifetime' '
	identity "$ALICE" tokens 100s && exchange "$ID_TOKEN" identity && says 200 "\"scope\":\"workspace\"" &&
	left=$(tail -n 1 answer | jq .expires_in) && test "$left" -le 100 && test "$left" -gt 0 &&
	tail -n 1 answer | jq -r .access_token >of-login && verify portal of-login >shown && grep "^subject *$ALICE$" shown &&
	exchange "$ID_TOKEN" identity --form scope=cluster && says 400 invalid_scope &&
	identity no-such-user tokens 100s && exchange "$ID_TOKEN" identity && says 400 "no user of this cluster" &&
	identity root other 100s && exchange "$ID_TOKEN" identity && says 400 "for another service" &&
	rm of-login
'

test_expect_success 'the token of a job is exchanged for a narrower one, as long as the job is active' '
	exchange "$JWT" shared/token --form audience=copy-offload && says 200 "\"scope\":\"session\"" &&
	exchange "$JWT" shared/token --form audience=portal && says 400 invalid_target &&
	exchange "$JWT" shared/token --form scope=cluster && says 400 invalid_scope &&
	exchange "$JWT" users --form project=fusion && says 400 invalid_scope &&
	http "$ISSUER/token" --client "copy:$PWD/secret" --form grant_type=client_credentials && says 200 "\"scope\":\"system\"" &&
	http "$ISSUER/token" --form grant_type=client_credentials && says 401 invalid_client
'

test_expect_success 'a token that a client revokes is rejected everywhere, also after a restart' '
	cp shared/token revoked && rm shared/token &&
	other=$(batch "$ALICE" -o /dev/null "$PWD/holder") && eventually test -s shared/token && is_active &&
	answers 200 "http://127.0.0.1:$PORT/revoke" --client "copy:$PWD/secret" --form "token=@$PWD/shared/token" &&
	is_inactive && agent_down && agent_up && eventually is_inactive &&
	test_expect_code 1 "$CLI" verify --agent --config "$SITE" --keys jwks.json --issuer "$ISSUER" --audience copy-offload - \
		<shared/token 2>err && grep "it was revoked" err &&
	eventually grep "\"event\":\"revoke\",\"client\":\"copy\"" service.log && scancel "$other" && eventually finished "$other"
'

test_expect_success 'the token of the first job is inactive once the job has ended' '
	mv revoked shared/token && eventually is_active && echo >shared/go && eventually finished "$id" && eventually is_inactive &&
	exchange "$JWT" shared/token && says 400 "the job of the token has ended" &&
	{ ! test_have_prereq NGINX || answers 401 "http://127.0.0.1:$NGINX/" --token shared/token; } &&
	{ ! test_have_prereq CADDY || answers 401 "http://127.0.0.1:$CADDY/" --token shared/token; }
'

# The last task of an array has the job id of the array, which denotes all tasks in Slurm commands.
test_expect_success 'the token of an array task is inactive once the task has ended' '
	mkfifo shared/go-1 shared/go-2 && chmod 0666 shared/go-1 shared/go-2 &&
	program task <<-EOF &&
		#!/bin/sh
		umask 022
		printenv DW_WORKFLOW_TOKEN >"$PWD/shared/task-\$SLURM_ARRAY_TASK_ID.new" &&
			mv "$PWD/shared/task-\$SLURM_ARRAY_TASK_ID.new" "$PWD/shared/task-\$SLURM_ARRAY_TASK_ID"
		read go <"$PWD/shared/go-\$SLURM_ARRAY_TASK_ID"
	EOF
	array=$(batch "$ALICE" --array=1-2 -o /dev/null "$PWD/task") &&
	eventually test -s shared/task-1 && eventually test -s shared/task-2 &&
	last=$(squeue --noheader --array --jobs="$array" --format="%A %K" | sed -n "s/^$array //p") && other=$((3 - last)) &&
	cp "shared/task-$last" shared/token && is_active && echo >"shared/go-$last" && eventually is_inactive &&
	cp "shared/task-$other" shared/token && is_active && echo >"shared/go-$other" && eventually is_inactive
'

# in_list FILE: prints the status of a token, 0 or 1, in the list that it names.
in_list() {
	local uri idx
	read -r uri idx < <(PATH=/usr/bin:$PATH "$TESTS/slurm/status.py" entry "$1") &&
		answers 200 "$uri" >&2 && grep -qx "content-type: application/statuslist+jwt" answer && tail -n 1 answer >list.jwt &&
		PATH=/usr/bin:$PATH "$TESTS/slurm/status.py" status list.jwt "$uri" "$idx" "$ISSUER"
}

# status_is STATUS FILE
status_is() {
	test "$(in_list "$2")" = "$1"
}

test_expect_success 'services learn from a status list that a job has ended, and that a token was revoked' '
	answers 200 "$ISSUER/status" && tail -n 1 answer | jq -e ".status_lists | length >= 1" &&
	rm -f shared/token && listed=$(batch "$ALICE" -o /dev/null "$PWD/holder") && eventually test -s shared/token &&
	cp shared/token ended && status_is 0 ended &&
	agent_down KILL && agent_up && eventually status_is 0 ended &&
	echo >shared/go && eventually finished "$listed" && eventually status_is 1 ended &&
	rm -f shared/token && listed=$(batch "$ALICE" -o /dev/null "$PWD/holder") && eventually test -s shared/token &&
	cp shared/token of-revoked && eventually status_is 0 of-revoked &&
	answers 200 "$ISSUER/revoke" --client "copy:$PWD/secret" --form "token=@$PWD/of-revoked" &&
	eventually status_is 1 of-revoked && status_is 1 ended &&
	answers 404 "$ISSUER/status/1" && scancel "$listed" && eventually finished "$listed"
'

test_expect_success 'metrics count the events, and no log contains a token or secret' '
	answers 200 "http://127.0.0.1:$METRICS/metrics" && grep "^workflow_tokend_requests_total{route=\"/introspect\",code=\"200\"}" answer &&
	test_expect_code 1 "$TESTS/search.py" shared/token service.log agent.log slurmctld.out answer &&
	test_expect_code 1 "$TESTS/search.py" users service.log agent.log slurmctld.out &&
	test_expect_code 1 grep -F -f secret service.log agent.log answer
'

test_done
