#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='The copy-offload server accepts only jobs that have its token'

. "$(dirname "$0")/lib.sh"
need_flux
need_kube
test -n "$COPY_OFFLOAD" ||
	skip "COPY_OFFLOAD is not set: set it to a directory of nnf-dm where its copy-offload server and the tester of libcopyoffload are built"
SERVER=$COPY_OFFLOAD/bin/nnf-copy-offload
TESTER=$COPY_OFFLOAD/daemons/lib-copy-offload/tester
for file in "$SERVER" "$TESTER"; do
	test -x "$file" || skip "$file is not there: build it, or set COPY_OFFLOAD to another directory"
done
why=$(why_no_dws_service)
if test -z "$why"; then
	test_set_prereq SERVICE
else
	echo "# without the service of flux-coral2: $why"
fi

need_canaries
for name in its another; do
	openssl ecparam -name prime256v1 -genkey -noout -out "$canaries/$name.pem"
	chmod 0600 "$canaries/$name.pem"
done
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost \
	-addext subjectAltName=DNS:localhost -keyout "$canaries/server.key" -out server.pem 2>server.err

mkdir -p config
cat >config/rabbit.toml <<-EOF
	[rabbit]
	kubeconfig = "$KUBE/flux-dws.kubeconfig"
EOF
initrc token.lua "munge-socket=$MUNGE_SOCKET"
dws_initrc
cat token.lua >>initrc.lua

port=$(python3 -c 'import socket; s = socket.create_server(("localhost", 0)); print(s.getsockname()[1])')

# server_up: starts the server, and returns when it accepts connections.
server_up() {
	NNF_NODE_NAME=rabbit0 ENVIRONMENT=test DW_WORKFLOW_NAME=test DW_WORKFLOW_NAMESPACE=default \
		"$SERVER" -addr "localhost:$port" -mock -cert server.pem -cakey "$canaries/server.key" \
		-tokenkey "$canaries/its.pem" >server.log 2>&1 8>&- 9>&- &
	SERVER_PID=$!
	eventually server_answers_or_is_gone && ! is_gone "$SERVER_PID" || {
		cat server.log
		return 1
	}
}

server_answers_or_is_gone() {
	is_gone "$SERVER_PID" || python3 -c 'import socket, sys; socket.create_connection(("localhost", int(sys.argv[1])))' "$port" 2>/dev/null
}

# The address of the server, for jobs without a Workflow.
where="--env=NNF_CONTAINER_LAUNCHER=localhost --env=NNF_CONTAINER_PORTS=$port"

# The job uses only its environment.
program hello <<-EOF
	#!/bin/sh
	exec "$TESTER" -v -x "$PWD/server.pem" -H
EOF
program copy <<-EOF
	#!/bin/sh
	exec "$TESTER" -x "$PWD/server.pem" -o -S /mnt/nnf/results -D /lus/results
EOF

# issued NAME: writes a token to a file, signed with the server's key or
# another.
issued() {
	(umask 077 && flux workflow-token issue --key "$canaries/$1.pem" --sub user-container >"$canaries/$1.jwt")
}

# lets_in COMMAND…: succeeds if the server accepts the submitted job.
lets_in() {
	id=$("$@" "$PWD/hello") && flux job attach "$id" >out 2>err && cat out && grep "^hello back at ya$" out
}

# keeps_out TEXT COMMAND…: succeeds if the server rejects the job with the
# status 401.
keeps_out() {
	id=$("${@:2}" "$PWD/hello") && test_must_fail flux job attach "$id" >out 2>err
	cat out err
	grep "http_code 401" out err && grep "$1" out err && ! grep "hello back" out
}

# rabbit_with_workflow …: like rabbit, with a Workflow that has completed
# PreRun.
rabbit_with_workflow() {
	local id
	id=$(rabbit --urgency=hold "$@") && await depend "$id" && make_workflow "$id" PreRun >&2 &&
		flux job urgency "$id" default >&2 && echo "$id"
}

test_expect_success 'an instance loads the plugin, and the server starts' '
	munge_up &&
	server_up &&
	issued its &&
	issued another &&
	table <<-EOF &&
	[[workflow-token.rule]]
	attribute = "system.workflow"
	source = "file"
	path = "$canaries/its.jwt"

	[[workflow-token.rule]]
	attribute = "system.foreign"
	source = "file"
	path = "$canaries/another.jwt"
	EOF
	instance_up 2 &&
	load
'

test_expect_success 'the server accepts a job with a token of its own key' '
	lets_in submit $where &&
	id=$(submit $where "$PWD/copy") &&
	flux job attach "$id" >out &&
	grep "nnf-copy-offload-node-" out
'

test_expect_success 'but not with a token of another key' '
	keeps_out "signature is invalid" flux submit --setattr=system.foreign=1 $where
'

test_expect_success 'nor without a token' '
	keeps_out unauthorized flux submit $where
'

test_expect_success 'a rabbit job has the token of its Workflow, and is accepted' '
	unload &&
	table <<-EOF &&
	[workflow-token.dws]
	source = "kubernetes"
	kubeconfig = "$KUBE/flux-workflow-token.kubeconfig"
	EOF
	kube_up rabbit0=node0,node1 &&
	kube_key "$canaries/its.pem" &&
	kube_set "{\"env\": {\"NNF_CONTAINER_LAUNCHER\": \"localhost\", \"NNF_CONTAINER_PORTS\": \"$port\"}, \"watch-for\": 0.2}" &&
	flux jobtap load "$DWS_JOBTAP" &&
	echo {} >variables &&
	service_up variables &&
	lets_in rabbit_with_workflow
'

test_expect_success 'but not with a token of another key' '
	kube_key "$canaries/another.pem" &&
	keeps_out "signature is invalid" rabbit_with_workflow &&
	dws_kill
'

test_expect_success SERVICE 'the same with the unmodified service of flux-coral2' '
	table </dev/null &&
	kube_key "$canaries/its.pem" &&
	dws_up &&
	DW="$DW requires=copy-offload" lets_in rabbit &&
	await clean "$id" &&
	eventually workflow_is_gone "$id"
'

test_expect_success SERVICE 'with a token of another key, or none' '
	kube_key "$canaries/another.pem" &&
	DW="$DW requires=copy-offload" keeps_out "signature is invalid" rabbit &&
	keeps_out unauthorized rabbit &&
	dws_kill
'

test_expect_success 'the server has logged the accepted requests' '
	grep "copy-offload.Hello" server.log
'

test_expect_success 'the instance ends normally' 'instance_down'

test_done
