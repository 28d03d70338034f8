# SPDX-License-Identifier: MIT OR Apache-2.0
# shellcheck shell=bash
# Code shared by the tests: a Flux instance and a munged of their own, jobs, and checks of the results.
#
# A test sets test_description, sources this file, calls need_flux, and ends with test_done. Its processes are ended
# however it ends. Every wait has a limit, and no wait depends on elapsed time.

sharness=${SHARNESS:-/usr/share/sharness/sharness.sh}
if ! test -r "$sharness"; then
	echo "1..0 # SKIP sharness is not installed: install the package sharness"
	exit 0
fi

TESTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
STAGE=${WORKFLOW_TOKEN_STAGE:-$(dirname "$TESTS")/target/stage}
JOBTAP=$STAGE/lib/flux/job-manager/plugins/workflow-token.so
SHELL_PLUGIN=$STAGE/lib/flux/shell/plugins/workflow-token.so

# The path of a socket is limited to 107 bytes, so the trash directory is not below the checkout, which may be anywhere.
base=$(mktemp -d "${TMPDIR:-/tmp}/workflow-token.XXXXXX") || exit 1
export SHARNESS_TEST_SRCDIR=$TESTS SHARNESS_TEST_DIRECTORY=$base SHARNESS_BUILD_DIRECTORY=$STAGE/libexec/flux/cmd
# Ignore an instance that the caller is in.
for name in $(compgen -e FLUX_); do
	case $name in FLUX_PREFIX | FLUX_CORAL2_*) ;; *) unset "$name" ;; esac
done
# shellcheck source=/dev/null
. "$sharness"
export LC_ALL=C.UTF-8
# shellcheck source=common.sh
. "$TESTS/common.sh"
# The product rejects programs and directories that a group can write to.
umask 022

trap 'ended=$?; tidy; test -z "$(ls -A "$base/test-results" 2>/dev/null)" || rm -rf "$base/test-results"
	rmdir "$base" 2>/dev/null || echo "# what is left to look at: $base" >&5; (exit $ended); die' EXIT
cleanup tidy

# tidy: ends the processes that still run.
tidy() {
	test -z "$INSTANCE" || flux cancel --all --user=all >/dev/null 2>&1
	stand_in_down
	instance_down || instance_kill
	dws_kill
	server_kill
	kube_kill
	oidc_kill
	munge_kill
	rm -rf "$base/canaries" "$OIDC"
}

# skip REASON: skips the whole test.
skip() {
	skip_all=$1
	test_done
}

# need_flux: skips the test if Flux or the product is missing.
need_flux() {
	if test -n "$FLUX_PREFIX"; then
		PATH=$FLUX_PREFIX/bin:$PATH
	fi
	FLUX=$(type -P flux) || skip "no Flux found: install it or set FLUX_PREFIX"
	command -v python3 >/dev/null || skip "no python3 found: install it"
	command -v munged >/dev/null || PATH=$PATH:/usr/sbin
	command -v munged >/dev/null || skip "no munged found: install the package munge"
	for file in "$JOBTAP" "$SHELL_PLUGIN" "$STAGE/libexec/flux/cmd/flux-workflow-token"; do
		test -e "$file" || error "$file is missing: run make stage"
	done
}

# flux …: runs the command, for at most a minute (or LIMIT seconds).
flux() {
	timeout -k 5 "${LIMIT:-60}" "$FLUX" "$@"
}

# ready FD PID LOG: reads the line that a program prints when it is ready. If the program exits earlier, or prints no
# line within a minute, prints its log and fails.
ready() {
	local line tries
	for ((tries = 0; tries < 60; tries++)); do
		if read -r -t 1 line <&"$1"; then
			printf '%s\n' "$line"
			return
		fi
		! is_gone "$2" || break
	done
	echo "process $2 is not ready; $3:" >&2
	cat "$3" >&2
	return 1
}

#
# The instance.
#

# The instance owner, if it is another user.
OWNER=

RUN=$SHARNESS_TRASH_DIRECTORY/run
CONFIG=$SHARNESS_TRASH_DIRECTORY/config

# initrc FILE [NAME=VALUE…]: writes an initrc of the job shell that loads the plugin, but no other installed plugin.
initrc() {
	local file=$1 pair conf=
	shift
	for pair; do
		conf+="[\"${pair%%=*}\"] = \"${pair#*=}\", "
	done
	printf 'plugin.load { file = "%s", conf = { %s} }\n' "$SHELL_PLUGIN" "$conf" >"$file"
}

# The hosts of the brokers, by default one node for each, and the number of cores of each broker. Held jobs must leave
# room for others, however few cores this machine has.
HOSTS=
CORES=0-15

# instance_up SIZE [OPTION…]: starts the instance, and returns when it accepts jobs. flux start receives each OPTION.
instance_up() {
	local size=$1
	local hosts=${HOSTS:-node[0-$((size - 1))]}
	shift
	# An instance that did not end in an earlier test.
	instance_kill
	mkdir -p "$CONFIG" "$SHARNESS_TRASH_DIRECTORY/state"
	rm -rf "$RUN" up stop
	mkdir -p "$RUN"
	mkfifo -m 0666 up stop
	test -z "$OWNER" || chown "$OWNER" "$RUN" state up stop
	exec 8<>up 9<>stop
	# Not as an array in the configuration, where a host may appear only once.
	# (For one broker, 0-0 is not an idset.)
	"$FLUX" R encode --ranks="$(seq -s, 0 $((size - 1)))" --cores="$CORES" --hosts="$hosts" >"$CONFIG/R" || return
	cat >"$CONFIG/resource.toml" <<-EOF
		[resource]
		noverify = true
		norestrict = true
		path = "$CONFIG/R"
	EOF
	test -e initrc.lua || initrc initrc.lua "munge-socket=$MUNGE_SOCKET"
	# Its initial program reports that the instance is up, and ends on request.
	${OWNER:+setpriv --reuid="$OWNER" --regid="$(id -g "$OWNER")" --init-groups env HOME=/} \
		"$FLUX" start --test-size="$size" --test-hosts="$hosts" \
		--test-rundir="$RUN" --test-exit-timeout=30s --config-path="$CONFIG" \
		-Sstatedir="$SHARNESS_TRASH_DIRECTORY/state" -Sbroker.cleanup-timeout=10s \
		-Sconf.shell_pluginpath="$STAGE/lib/flux/shell/plugins" \
		-Sconf.shell_initrc="$SHARNESS_TRASH_DIRECTORY/initrc.lua" "$@" \
		sh -c 'echo up >"$1"; read line <"$2"' - "$PWD/up" "$PWD/stop" </dev/null >>instance.log 2>&1 8>&- 9>&- &
	INSTANCE=$!
	export FLUX_URI=local://$RUN/local-0
	test "$(ready 8 "$INSTANCE" instance.log)" = up || return
	local rank
	BROKERS=
	for ((rank = 0; rank < size; rank++)); do
		BROKERS+="$(FLUX_URI=local://$RUN/local-$rank flux getattr broker.pid) " || return
	done
}

# instance_down: ends the instance as its operator would. Fails if it does not end normally.
instance_down() {
	test -n "$INSTANCE" || return 0
	local pid=$INSTANCE
	echo stop >&9
	await_exit "$pid" || return
	INSTANCE=
	exec 8>&- 9>&-
	wait "$pid"
}

# instance_kill: kills all brokers at once, as a power failure would.
instance_kill() {
	test -n "$INSTANCE" || return 0
	# shellcheck disable=SC2086
	kill -KILL "$INSTANCE" $BROKERS 2>/dev/null
	wait "$INSTANCE" 2>/dev/null
	INSTANCE=
	exec 8>&- 9>&-
}

# table: replaces the configuration of the plugin with standard input, and adds the settings for MUNGE.
table() {
	mkdir -p "$CONFIG" || return
	{
		printf '[workflow-token]\nmunge-socket = "%s"\n' "$MUNGE_SOCKET"
		cat
	} >"$CONFIG/new" || return
	mv "$CONFIG/new" "$CONFIG/workflow-token.toml" || return
	test -z "$INSTANCE" || flux config reload
}

# load [KEY=VALUE…]: loads the plugin into the job manager.
load() {
	flux jobtap load "$JOBTAP" "$@"
}

unload() {
	flux jobtap remove workflow-token.so
}

# counter NAME: prints a counter of the plugin.
counter() {
	flux jobtap query workflow-token.so | python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"
}

#
# A stand-in for a Kubernetes API server, and the service of flux-coral2.
#

# Not below the trash directory, which is searched for secrets.
KUBE=$base/kube
WORKFLOWS=/apis/dataworkflowservices.github.io/v1alpha7/namespaces/default/workflows

need_kube() {
	command -v openssl >/dev/null || skip "no openssl found: install it"
}

# kube_up [RABBIT=HOST,…]…: starts the API server, and returns when it serves.
kube_up() {
	rm -f kube.ready
	mkfifo kube.ready
	exec 7<>kube.ready
	python3 "$TESTS/kube-apiserver.py" serve "$KUBE" "${@:-rabbit0=node0}" >&7 2>>kube.log 7>&- 8>&- 9>&- &
	KUBE_PID=$!
	test "$(ready 7 "$KUBE_PID" kube.log)" = ready || return
	exec 7>&-
}

kube_kill() {
	test -n "$KUBE_PID" || return 0
	kill -KILL "$KUBE_PID" 2>/dev/null
	wait "$KUBE_PID" 2>/dev/null
	KUBE_PID=
	rm -rf "$KUBE"
}

# kube METHOD PATH: prints the response to a request with all permissions. The body comes from standard input.
kube() {
	timeout 60 python3 "$TESTS/kube-apiserver.py" ask "$KUBE" "$@"
}

# kube_set JSON: changes settings of kube-apiserver.py.
kube_set() {
	kube PATCH /control <<<"$1" >/dev/null
}

# member PATH: prints a member of the JSON on standard input, selected by a jq path. Strings are printed without quotes.
member() {
	python3 -c '
import json, sys
value = json.load(sys.stdin)
for name in sys.argv[1].split("."):
    value = value[name]
print(value if isinstance(value, str) else json.dumps(value))' "$1"
}

# workflow ID: prints the Workflow of a job.
workflow() {
	kube GET "$WORKFLOWS/fluxjob-$(flux job id --to=dec "$1")"
}

# workflow_is_gone ID
workflow_is_gone() {
	! workflow "$1" >gone && grep NotFound gone
}

# workflow_token ID: prints the token in the Secret of a job's Workflow.
workflow_token() {
	local secret
	secret=$(workflow "$1" | member status.workflowToken.secretName) &&
		kube GET "/api/v1/namespaces/default/secrets/$secret" | member data.token | base64 -d
}

# kube_key FILE: sets the key that signs tokens from now on.
kube_key() {
	python3 -c 'import json, sys; print(json.dumps({"key": sys.stdin.read()}))' <"$1" | kube PATCH /control >/dev/null
}

# make_workflow ID STATE [UID]: brings the Workflow of a job to a state, as its service would, optionally for another
# user.
make_workflow() {
	timeout 60 python3 "$TESTS/kube-apiserver.py" workflow "$KUBE" "fluxjob-$(flux job id --to=dec "$1")" \
		"${3:-$(id -u)}" "$2" "$DW requires=copy-offload"
}

# workflow_is_in ID STATE: succeeds if STATE is the current and the desired state of the Workflow.
workflow_is_in() {
	test "$(workflow "$1" | python3 -c '
import json, sys
workflow = json.load(sys.stdin)
print(workflow["spec"]["desiredState"], workflow["status"]["state"])')" = "$2 $2" 2>/dev/null
}

#
# An authorization server.
#

# Not below the trash directory, which is searched for secrets.
OIDC=$base/oidc
OIDC_MODULES=$(dirname "$STAGE")/npm

# need_oidc: skips the test if oidc-provider cannot run. Installs it if necessary.
need_oidc() {
	command -v node >/dev/null || skip "no node found: install it"
	node -e 'process.exit(process.versions.node.split(".")[0] < 20 ? 1 : 0)' || skip "oidc-provider needs Node.js 20 or newer"
	test -e "$OIDC_MODULES/node_modules/oidc-provider/package.json" ||
		timeout -k 5 120 npm install --fetch-retries=1 --no-audit --no-fund --ignore-scripts --prefix "$OIDC_MODULES" oidc-provider@9 >/dev/null 2>&1 ||
		skip "npm could not install oidc-provider: is there a registry?"
	mkdir -m 0700 "$OIDC"
}

# oidc_key: makes a key, which signs from the next start or oidc_again on. Earlier keys remain.
oidc_key() {
	node -e '
const fs = require("fs");
const [file] = process.argv.slice(1);
const { generateKeyPairSync, randomUUID } = require("crypto");
const jwk = generateKeyPairSync("ed25519").privateKey.export({ format: "jwk" });
const { keys } = fs.existsSync(file) ? JSON.parse(fs.readFileSync(file)) : { keys: [] };
keys.unshift({ ...jwk, kid: randomUUID(), alg: "EdDSA", use: "sig" });
fs.writeFileSync(file, JSON.stringify({ keys }), { mode: 0o600 });' "$OIDC/keys.json"
}

# oidc_up: starts the server with its earlier state, and returns when it serves. Sets ISSUER.
oidc_up() {
	rm -f oidc.ready
	mkfifo oidc.ready
	exec 6<>oidc.ready
	node "$TESTS/oidc-provider.mjs" "$OIDC_MODULES" "$OIDC" "${ISSUER##*:}" >&6 2>>oidc.log 6>&- 7>&- 8>&- 9>&- &
	OIDC_PID=$!
	ISSUER=$(ready 6 "$OIDC_PID" oidc.log)
	test "${ISSUER%:*}" = http://127.0.0.1
}
ISSUER=:0

# oidc_again: makes the server read its files again.
oidc_again() {
	local line
	kill -HUP "$OIDC_PID" && read -r -t 60 line <&6 && test "$line" = again
}

oidc_kill() {
	test -n "$OIDC_PID" || return 0
	kill -KILL "$OIDC_PID" 2>/dev/null
	wait "$OIDC_PID" 2>/dev/null
	OIDC_PID=
	exec 6>&-
}

# The plugins for rabbit jobs, and directives for them.
DWS_JOBTAP=$STAGE/lib/flux/job-manager/plugins/dws-jobtap.so
DW='#DW jobdw type=xfs capacity=10GiB name=project1'

# dws_initrc [NAME=VALUE…]: makes job shells load the plugin for rabbit jobs.
dws_initrc() {
	SHELL_PLUGIN=${SHELL_PLUGIN%/*}/dws_environment.so initrc initrc.lua "munge-socket=$MUNGE_SOCKET" "$@"
}

# rabbit …: submits a job with the directives $DW. Prints its id.
rabbit() {
	flux submit --setattr=system.dw="$DW" "$@"
}

# need_dws_service: skips the test if the service of flux-coral2 is missing.
need_dws_service() {
	local why
	why=$(why_no_dws_service)
	test -z "$why" || skip "$why"
}

# why_no_dws_service: prints the reason why the service cannot run here, if any.
why_no_dws_service() {
	if test -z "$FLUX_CORAL2_SERVICE"; then
		echo "FLUX_CORAL2_SERVICE is not set: set it to the path of coral2_dws.py of flux-coral2, and PYTHONPATH to where its flux_k8s is"
	elif ! test -r "$FLUX_CORAL2_SERVICE"; then
		echo "$FLUX_CORAL2_SERVICE (FLUX_CORAL2_SERVICE) cannot be read"
	elif ! flux python -c 'import kubernetes, flux_k8s' 2>/dev/null; then
		echo "flux_k8s or kubernetes cannot be imported by flux python: set PYTHONPATH"
	# Versions that check types reject the number 0 as the start version of a watch.
	elif ! flux python -c 'import sys, kubernetes.client; sys.exit("pydantic" in sys.modules)'; then
		echo "flux-coral2 does not work with this version of the Python package kubernetes, which checks types: install 33.1.0"
	fi
}

# dws_up: starts the service, and returns when it responds.
dws_up() {
	# Like its systemd unit, but without Fluxion, and with more frequent checks.
	"$FLUX" python "$FLUX_CORAL2_SERVICE" --disable-fluxion -vvv --watch-interval=1 </dev/null >>dws.log 2>&1 8>&- 9>&- &
	DWS=$!
	eventually dws_answers_or_is_gone && ! is_gone "$DWS" || {
		cat dws.log
		return 1
	}
}

dws_answers_or_is_gone() {
	is_gone "$DWS" || flux python -c 'import flux; flux.Flux().rpc("dws.status").get()' 2>/dev/null
}

# service_up FILE: starts a service that responds immediately with the variables in FILE, and does not use Kubernetes.
service_up() {
	rm -f service.ready
	mkfifo service.ready
	exec 7<>service.ready
	"$FLUX" python "$TESTS/../bench/service.py" "$1" </dev/null >&7 2>>dws.log 7>&- 8>&- 9>&- &
	DWS=$!
	test "$(ready 7 "$DWS" dws.log)" = ready || return
	exec 7>&-
}

# server_kill: kills the additional server SERVER_PID of a test.
server_kill() {
	test -n "$SERVER_PID" || return 0
	kill -KILL "$SERVER_PID" 2>/dev/null
	wait "$SERVER_PID" 2>/dev/null
	SERVER_PID=
}

# dws_kill: kills the service as a crash would.
dws_kill() {
	test -n "$DWS" || return 0
	kill -KILL "$DWS" 2>/dev/null
	wait "$DWS" 2>/dev/null
	DWS=
}

#
# Other users, if root runs the test.
#

# need_users: finds three existing users, the instance owner OWNER, the job owner GUEST and another one, OTHER, and an
# IMP and a munged for them. Copies the product to a directory that they can read.
need_users() {
	test "$(id -u)" = 0 || skip "not root: a multi-user instance cannot be started"
	OWNER=$(first_user "$WORKFLOW_TOKEN_TEST_OWNER" flux) || skip "no user for the instance owner: set WORKFLOW_TOKEN_TEST_OWNER"
	GUEST=$(first_user "$WORKFLOW_TOKEN_TEST_GUEST" alice nobody) || skip "no user for a guest: set WORKFLOW_TOKEN_TEST_GUEST"
	OTHER=$(first_user "$WORKFLOW_TOKEN_TEST_OTHER" mallory daemon) || skip "no other user: set WORKFLOW_TOKEN_TEST_OTHER"
	munge -n 2>/dev/null | unmunge >/dev/null 2>&1 || skip "the munged of the system, with which guests sign jobs, does not run"
	IMP=${WORKFLOW_TOKEN_TEST_IMP:-$(dirname "$("$FLUX" config builtin shell_path)")/flux-imp}
	test -u "$IMP" || skip "no IMP that is setuid at $IMP: set WORKFLOW_TOKEN_TEST_IMP"
	chmod 0755 "$base"
	cp -R "$STAGE" "$SHARNESS_TRASH_DIRECTORY/stage" || return
	STAGE=$SHARNESS_TRASH_DIRECTORY/stage
	JOBTAP=$STAGE/lib/flux/job-manager/plugins/workflow-token.so
	SHELL_PLUGIN=$STAGE/lib/flux/shell/plugins/workflow-token.so
	DWS_JOBTAP=$STAGE/lib/flux/job-manager/plugins/dws-jobtap.so
	mkdir -p "$CONFIG"
	cat >"$CONFIG/users.toml" <<-EOF
		[access]
		allow-guest-user = true
		allow-root-owner = true
		[exec]
		imp = "$IMP"
	EOF
}

first_user() {
	local user
	for user; do
		id "$user" >/dev/null 2>&1 && echo "$user" && return
	done
	return 1
}

# as USER COMMAND…: runs a command with an environment as after a login, and with access to the instance (the broker of
# RANK).
as() {
	local user=$1
	shift
	(
		cd / && exec setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups --inh-caps=-all \
			env -i HOME="$(getent passwd "$user" | cut -d: -f6)" USER="$user" LOGNAME="$user" SHELL=/bin/sh \
			LC_ALL=C.UTF-8 PATH="$PATH" FLUX_URI="local://$RUN/local-${RANK:-0}" \
			FLUX_EXEC_PATH="$STAGE/libexec/flux/cmd" timeout -k 5 60 "$@"
	)
}

#
# Secrets, and the places that are searched for them.
#

# need_canaries: makes the directory $canaries, which is not searched.
need_canaries() {
	canaries=$base/canaries
	mkdir -m 0700 "$canaries"
}

# holder NAME: submits a job that stores its token in the canary NAME and runs until it is canceled. Prints its id.
holder() {
	test -x holder || program holder <<-EOF
		#!/bin/sh
		umask 077
		printf %s "\$DW_WORKFLOW_TOKEN" >"$canaries/\$1.new" && mv "$canaries/\$1.new" "$canaries/\$1"
		exec sleep 600
	EOF
	flux submit ./holder "$1" && eventually test -s "$canaries/$1"
}

# gather NAME PLUGIN: writes everything that Flux reports, including the jobs in $ids, to files below NAME.
gather() {
	local id dir=gathered/$1
	mkdir -p "$dir" &&
		flux dmesg >"$dir/dmesg" &&
		flux jobtap query "$2" >"$dir/query" &&
		flux job list --all >"$dir/job-list" &&
		flux jobs -a --json >"$dir/jobs" &&
		flux config get >"$dir/config" &&
		flux module stats job-manager >"$dir/stats" &&
		kvs primary "$dir" || return
	for id in $ids; do
		flux job eventlog "$id" >"$dir/eventlog.$id" || return
		if test "$(flux jobs -no '{state}' "$id")" = INACTIVE; then
			# Fails if the job failed.
			flux job attach --show-events --show-exec "$id" >"$dir/attach.$id" 2>&1
			continue
		fi
		# A job that has not started has entries only in the primary namespace.
		grep -q " start\( \|$\)" "$dir/eventlog.$id" || continue
		flux job eventlog -p guest.exec.eventlog "$id" >"$dir/guest-eventlog.$id" &&
			flux job info "$id" guest.output >"$dir/output.$id" &&
			kvs "job-$(flux job id --to=dec "$id")" "$dir" || return
	done
}

# kvs NAMESPACE DIR: writes every key with its value, and the tree objects that contain them. A record may be removed
# meanwhile.
kvs() {
	eventually kvs_at_once "$@"
}

kvs_at_once() {
	# The link to the namespace of a running job is followed under its own name.
	flux kvs dir -R -d -N "$1" | sed "/ -> /d" >"$2/keys.$1" &&
		tr '\n' '\0' <"$2/keys.$1" | xargs -0 timeout 60 "$FLUX" kvs get -N "$1" -l --raw >"$2/values.$1" &&
		tr '\n' '\0' <"$2/keys.$1" | xargs -0 timeout 60 "$FLUX" kvs get -N "$1" --treeobj >"$2/trees.$1"
}

# everywhere CANARY…: prints all places that contain one of the canaries, except the processes in $tasks. Stores the
# output in `found`, and the status of search.py in `status`.
everywhere() {
	local name
	for name; do cat "$canaries/$name" || return; done >"$canaries/secrets"
	"$TESTS/search.py" "$canaries/secrets" "$PWD" "proc:$tasks" >found
	echo $? >status
	cat found
}

#
# Tokens and jobs.
#

# quiet_program: makes the program `quiet`, which writes its process id to the FIFO `pids`, and waits until it is
# killed. It executes no other program, because a process has no readable environment during execve(2).
quiet_program() {
	mkfifo pids never
	program quiet <<-EOF
		#!/bin/bash
		echo \$\$ >"$PWD/pids"
		read -r <>"$PWD/never"
	EOF
}

# submit …: submits a job that the rules of most tests match. Prints its id.
submit() {
	flux submit --setattr=system.workflow=1 "$@"
}

# release FIFO: writes a line to the FIFO, and waits for the reader.
release() {
	# shellcheck disable=SC2016
	timeout 60 sh -c 'echo >"$1"' - "$1"
}

# await EVENT ID: waits for an event of the job.
await() {
	flux job wait-event -q -t 60 "$2" "$1"
}

# record ID: prints the sealed record of a job.
record() {
	flux job info "$1" workflow-token
}

# has_no_record ID: succeeds only if the record does not exist, not on other errors.
has_no_record() {
	! record "$1" 2>record.err && grep -i "key not found\|No such file" record.err
}

# events NAME ID: prints the events of that name in the job's eventlog, one per line.
events() {
	flux job eventlog "$2" | grep " $1\( \|\$\)"
}

# has_no_event NAME ID: succeeds only if the eventlog exists.
has_no_event() {
	flux job eventlog "$2" >eventlog && grep -q " submit " eventlog && ! grep " $1\( \|\$\)" eventlog
}

# is_refused ID TYPE TEXT: succeeds if the job ended without having started, with one exception of this type, whose note
# contains TEXT.
is_refused() {
	await clean "$1" &&
		events exception "$1" >exceptions &&
		cat exceptions &&
		test "$(wc -l <exceptions)" = 1 &&
		grep "type=\"$2\" severity=0 " exceptions &&
		grep -F -e "$3" exceptions &&
		test "$(flux jobs -no '{state}' "$1")" = INACTIVE
}

# is_failed_delivery ID TEXT: is_refused, and neither did the prolog succeed nor a shell start.
is_failed_delivery() {
	is_refused "$1" workflow-token "$2" &&
		events prolog-finish "$1" | grep 'description="workflow-token" status=1' &&
		has_no_event start "$1"
}

#
# Rabbits.
#

# pals_initrc PLUGIN…: writes an initrc with these job shell plugins, and one that reads the shell option of Cray PMI
# like cray_pals.so, and exports it.
pals_initrc() {
	"${CC:-cc}" -shared -fPIC -o pals.so "$TESTS/../tests/support/pals.c" || error "pals.c does not compile"
	local name
	{
		for name; do
			echo "plugin.load { file = \"${SHELL_PLUGIN%/*}/$name.so\", conf = { [\"munge-socket\"] = \"$MUNGE_SOCKET\" } }"
		done
		echo "plugin.load { file = \"$PWD/pals.so\" }"
	} >initrc.lua
}

# need_rabbits: skips the test if the stand-in for the service cannot run.
need_rabbits() {
	DWS_SHELL=$STAGE/lib/flux/shell/plugins/dws_environment.so
	"$FLUX" python -c 'import flux' 2>/dev/null || skip "the Python bindings of Flux cannot be used: see flux python"
}

# stand_in_up: starts the service, and returns when it accepts requests. The file VARIABLES contains the variables of
# jobs.
stand_in_up() {
	local ready
	mkdir -p dws/workflows || return
	test -p dws/ready || mkfifo dws/ready || return
	exec 7<>dws/ready
	"$FLUX" python "$TESTS/dws-service.py" serve "$PWD/dws" "$VARIABLES" >>dws/output 2>&1 7>&- 8>&- 9>&- &
	STAND_IN=$!
	test "$(ready 7 "$DWS" dws.log)" = ready || return
	exec 7>&-
}

stand_in_down() {
	test -n "$STAND_IN" || return 0
	kill "$STAND_IN" 2>/dev/null
	wait "$STAND_IN" 2>/dev/null
	STAND_IN=
}

# rabbit_job HOW OPTION…: submits a rabbit job. HOW tells dws-service.py how to treat it. Prints its id.
rabbit_job() {
	local how=$1
	shift
	flux submit --setattr=system.dw="$how" "$@"
}

# asked TOPIC ID [PAYLOAD]: waits until the service receives a request for the job. dws/log contains the requests.
asked() {
	eventually grep -q "^$1 $(flux job id --to=dec "$2") .*$3" dws/log
}

# tell METHOD ID [MEMBERS]: sends a message of the service.
tell() {
	flux python "$TESTS/dws-service.py" rpc "job-manager.dws.$1" "{\"id\":$(flux job id --to=dec "$2")${3:+,$3}}"
}

# at_all_points: submits rabbit jobs and brings them to all states. Those that run end when the file `go` exists. Their
# ids are in the variables named below.
at_all_points() {
	rm -f go
	in_epilog=$(rabbit_job post_run=held "$PWD/keep") && asked post_run "$in_epilog" &&
		running=$(rabbit_job ok "$PWD/wait") && await start "$running" &&
		in_prolog=$(rabbit_job setup=held "$PWD/keep") && asked setup "$in_prolog" &&
		created=$(rabbit_job create=held "$PWD/keep") && asked create "$created" &&
		first=$(flux submit --urgency=hold true) &&
		waiting=$(rabbit_job ok --dependency=afterok:"$first" "$PWD/keep") &&
		asked resource-update "$waiting" ok &&
		scheduled=$(rabbit_job ok --urgency=hold "$PWD/keep") && await priority "$scheduled"
}

# of_plugins: prints the findings of doctor about plugins.
of_plugins() {
	flux workflow-token doctor >doctor || :
	grep "  \(plugin\|shell\)  " doctor
}

#
# Randomized fault injection.
#

# soak_of DAY: makes the directory $day for soak.py, with the program of its tasks, and prints the duration.
soak_of() {
	soak_day=$1 day=$base/canaries/day
	seconds=${WORKFLOW_TOKEN_SOAK:-30}
	seed=${WORKFLOW_TOKEN_SEED:-$RANDOM$RANDOM}
	echo "# soak: $seconds s, WORKFLOW_TOKEN_SEED=$seed"
	mkdir -m 0700 "$day"
	program "$day/keep" <<-EOF
		#!/bin/sh
		out="$day/out/\$(flux job id --to=dec "\$FLUX_JOB_ID").\$FLUX_TASK_RANK"
		digest() { sha256sum | cut -d" " -f1; }
		{
			printf %s "\$DW_WORKFLOW_TOKEN" | digest
			printf %s "\$PMI_SHARED_SECRET" | digest
		} >"\$out"
	EOF
}

# soak_expects NAME: declares that $canaries/NAME contains the token of jobs of that kind.
soak_expects() {
	printf '%s %s\n' "$1" "$(printf %s "$(cat "$canaries/$1")" | sha256sum | cut -d' ' -f1)" >>"$day/expected"
}

# soak: runs the fault injection with the content of $day. Sets `report` and `wrong`.
soak() {
	local dir=$SHARNESS_TRASH_DIRECTORY result
	# shellcheck disable=SC2097,SC2098 # Each program gets the values that are set here already.
	MUNGED="munged --foreground --force --key-file='$dir/munge.key' --socket='$MUNGE_SOCKET' --pid-file='$dir/munged.pid' \
			--log-file='$dir/munged.log' --seed-file='$dir/munged.seed'" \
		SERVICE="'$FLUX' python '$TESTS/dws-service.py' serve '$day/dws' '$day/variables' again" \
		MUNGE_SOCKET=$MUNGE_SOCKET KUBE=$KUBE PLUGINS=${JOBTAP%/*} CONFIG=$CONFIG PATH=$PATH:/usr/sbin \
		LIMIT=$((seconds + 600)) flux python "$TESTS/soak.py" "$soak_day" "$seconds" "$seed" "$day" >report 2>wrong
	result=$?
	MUNGED=$(cat munged.pid 2>/dev/null)
	cat report wrong
	return $result
}

# soak_report: prints a summary of the run, as comments.
soak_report() {
	sed -n '/^#/p' report
}
