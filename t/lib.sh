# shellcheck shell=bash
# What the tests share: a Flux instance and a munged of their own, jobs, and what is looked at afterwards.
#
# A test sets test_description, sources this file, calls need_flux, and ends with test_done. What it starts is ended
# whichever way it ends. Nothing waits without a limit, and nothing is waited for by the clock.

sharness=${SHARNESS:-/usr/share/sharness/sharness.sh}
if ! test -r "$sharness"; then
	echo "1..0 # SKIP sharness is not installed: install the package sharness"
	exit 0
fi

TESTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
STAGE=${WORKFLOW_TOKEN_STAGE:-$(dirname "$TESTS")/target/stage}
JOBTAP=$STAGE/lib/flux/job-manager/plugins/workflow-token.so
SHELL_PLUGIN=$STAGE/lib/flux/shell/plugins/workflow-token.so

# The path of a socket has room for 107 bytes, so the trash directory is not below a checkout that may be anywhere.
base=$(mktemp -d "${TMPDIR:-/tmp}/workflow-token.XXXXXX") || exit 1
export SHARNESS_TEST_SRCDIR=$TESTS SHARNESS_TEST_DIRECTORY=$base SHARNESS_BUILD_DIRECTORY=$STAGE/libexec/flux/cmd
# An instance that the caller is in is no business of these tests.
for name in $(compgen -e FLUX_); do
	case $name in
	FLUX_PREFIX | FLUX_CORAL2_PLUGINS) ;;
	*) unset "$name" ;;
	esac
done
# shellcheck source=/dev/null
. "$sharness"
export LC_ALL=C.UTF-8

trap 'ended=$?; tidy; test -z "$(ls -A "$base/test-results" 2>/dev/null)" || rm -rf "$base/test-results"
	rmdir "$base" 2>/dev/null || echo "# what is left to look at: $base" >&5; (exit $ended); die' EXIT
cleanup tidy

# tidy: ends what is still running.
tidy() {
	test -z "$INSTANCE" || flux cancel --all --user=all >/dev/null 2>&1
	dws_down
	instance_down || instance_kill
	munge_kill
}

# skip REASON: skips the whole test.
skip() {
	skip_all=$1
	test_done
}

# need_flux: skips the test where there is no Flux, or nothing to be tested with it.
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

# flux …: the command, never for more than a minute (or LIMIT seconds).
flux() {
	timeout -k 5 "${LIMIT:-60}" "$FLUX" "$@"
}

#
# munged, with a key and a socket of its own.
#

MUNGE_SOCKET=$SHARNESS_TRASH_DIRECTORY/munge.socket

# munge_up: starts it; returns when it answers. --force, since its directory is not one for a daemon of root.
munge_up() {
	local key=$SHARNESS_TRASH_DIRECTORY/munge.key dir=$SHARNESS_TRASH_DIRECTORY
	test -e "$key" || (umask 077 && head -c 1024 /dev/urandom >"$key") || return
	munged --force --key-file="$key" --socket="$MUNGE_SOCKET" --pid-file="$dir/munged.pid" \
		--log-file="$dir/munged.log" --seed-file="$dir/munged.seed" 2>>"$dir/munged.err" 8>&- 9>&- || return
	MUNGED=$(cat "$dir/munged.pid")
}

# munge_signal SIGNAL
munge_signal() {
	kill -s "$1" "$MUNGED"
}

# munge_kill: as a crash would, so that its socket stays.
munge_kill() {
	test -n "$MUNGED" || return 0
	kill -KILL "$MUNGED" 2>/dev/null
	await_exit "$MUNGED"
	MUNGED=
}

# await_exit PID: of a process that need not be a child.
await_exit() {
	timeout 60 tail --pid="$1" -f /dev/null
}

#
# The instance.
#

# Who it runs as, where that is another user.
OWNER=

RUN=$SHARNESS_TRASH_DIRECTORY/run
CONFIG=$SHARNESS_TRASH_DIRECTORY/config

# initrc FILE [NAME=VALUE…]: an initrc of the job shell that loads the plugin, and no other one that is installed.
initrc() {
	local file=$1 pair conf=
	shift
	for pair; do
		conf+="[\"${pair%%=*}\"] = \"${pair#*=}\", "
	done
	printf 'plugin.load { file = "%s", conf = { %s} }\n' "$SHELL_PLUGIN" "$conf" >"$file"
}

# instance_up SIZE [OPTION…]: starts it, and returns when it takes jobs. What OPTION is goes to flux start.
instance_up() {
	local size=$1 up=
	shift
	# One that would not end in a test before.
	instance_kill
	mkdir -p "$CONFIG" "$SHARNESS_TRASH_DIRECTORY/state"
	rm -rf "$RUN" up stop
	mkdir -p "$RUN"
	mkfifo -m 0666 up stop
	test -z "$OWNER" || chown "$OWNER" "$RUN" state up stop
	exec 8<>up 9<>stop
	# Jobs that are held must leave room for others, however few cores this machine has.
	cat >"$CONFIG/resource.toml" <<-EOF
		[resource]
		noverify = true
		norestrict = true
		[[resource.config]]
		hosts = "node[0-$((size - 1))]"
		cores = "0-15"
	EOF
	test -e initrc.lua || initrc initrc.lua "munge-socket=$MUNGE_SOCKET"
	# Its initial program says that it is up, and ends when told to.
	${OWNER:+setpriv --reuid="$OWNER" --regid="$(id -g "$OWNER")" --init-groups env HOME=/} \
		"$FLUX" start --test-size="$size" --test-hosts="node[0-$((size - 1))]" \
		--test-rundir="$RUN" --test-exit-timeout=30s --config-path="$CONFIG" \
		-Sstatedir="$SHARNESS_TRASH_DIRECTORY/state" -Sbroker.cleanup-timeout=10s \
		-Sconf.shell_pluginpath="$STAGE/lib/flux/shell/plugins" \
		-Sconf.shell_initrc="$SHARNESS_TRASH_DIRECTORY/initrc.lua" "$@" \
		sh -c 'echo up >"$1"; read line <"$2"' - "$PWD/up" "$PWD/stop" </dev/null >>instance.log 2>&1 8>&- 9>&- &
	INSTANCE=$!
	export FLUX_URI=local://$RUN/local-0
	read -r -t 60 up <&8
	test "$up" = up || { cat instance.log; return 1; }
	local rank
	BROKERS=
	for ((rank = 0; rank < size; rank++)); do
		BROKERS+="$(FLUX_URI=local://$RUN/local-$rank flux getattr broker.pid) " || return
	done
}

# instance_down: ends it as its operator would. Fails where it does not end well.
instance_down() {
	test -n "$INSTANCE" || return 0
	local pid=$INSTANCE
	echo stop >&9
	await_exit "$pid" || return
	INSTANCE=
	exec 8>&- 9>&-
	wait "$pid"
}

# instance_kill: all of its brokers at once, as a power failure would.
instance_kill() {
	test -n "$INSTANCE" || return 0
	# shellcheck disable=SC2086
	kill -KILL "$INSTANCE" $BROKERS 2>/dev/null
	wait "$INSTANCE" 2>/dev/null
	INSTANCE=
	exec 8>&- 9>&-
}

# table: puts the configuration of the plugin, from standard input, in place of the former. What is about MUNGE is added.
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

# counter NAME: what the plugin counted.
counter() {
	flux jobtap query workflow-token.so | python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"
}

#
# Other users, where the test is run by root.
#

# need_users: finds three users that exist, the instance owner OWNER, the job owner GUEST and one more, OTHER; and an IMP
# and a munged for them. Copies what is tested to where they can read it.
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

# as USER COMMAND…: with an environment as after a login, and the instance at hand (the broker of RANK).
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
# Tokens and jobs.
#

# new_token [CLAIM=VALUE…]: a token that there never was before.
new_token() {
	"$TESTS/token.py" "$@"
}

# token_file FILE [CLAIM=VALUE…]: a new token in a file that its owner alone can read; and on standard output.
token_file() {
	local file=$1
	shift
	(umask 077 && rm -f "$file" && new_token "$@" >"$file") && cat "$file"
}

# eventually COMMAND…: until it succeeds, for what no event tells of.
eventually() {
	local limit=$((SECONDS + 60))
	until "$@"; do
		test $SECONDS -lt $limit || return
		sleep 0.1
	done
}

# is_gone PID: it has ended, whether or not its parent knows.
is_gone() {
	! test -e "/proc/$1/cmdline" || test -z "$(tr -d '\0' <"/proc/$1/cmdline")"
}

# program FILE: makes a program out of standard input.
program() {
	cat >"$1" && chmod 0755 "$1"
}

# submit …: a job that the rules of most tests match. Prints its id.
submit() {
	flux submit --setattr=system.workflow=1 "$@"
}

# release FIFO: lets go on what waits for a line of it, and waits for the former to come that far.
release() {
	# shellcheck disable=SC2016
	timeout 60 sh -c 'echo >"$1"' - "$1"
}

# await EVENT ID: until the job has it.
await() {
	flux job wait-event -q -t 60 "$2" "$1"
}

# record ID: the sealed record of a job.
record() {
	flux job info "$1" workflow-token
}

# has_no_record ID: not for any other reason than that there is none.
has_no_record() {
	! record "$1" 2>record.err && grep -i "key not found\|No such file" record.err
}

# events NAME ID: the events of that name in the job's eventlog, one for each line.
events() {
	flux job eventlog "$2" | grep " $1\( \|\$\)"
}

# has_no_event NAME ID: and not for want of an eventlog.
has_no_event() {
	flux job eventlog "$2" >eventlog && grep -q " submit " eventlog && ! grep " $1\( \|\$\)" eventlog
}

# is_refused ID TYPE TEXT: the job ended without having started, with one exception, of this type, whose note has TEXT.
is_refused() {
	await clean "$1" &&
		events exception "$1" >exceptions &&
		cat exceptions &&
		test "$(wc -l <exceptions)" = 1 &&
		grep "type=\"$2\" severity=0 " exceptions &&
		grep -F -e "$3" exceptions &&
		test "$(flux jobs -no '{state}' "$1")" = INACTIVE
}

# is_failed_delivery ID TEXT: is_refused, and neither the prolog succeeded nor a shell was started.
is_failed_delivery() {
	is_refused "$1" workflow-token "$2" &&
		events prolog-finish "$1" | grep 'description="workflow-token" status=1' &&
		has_no_event start "$1"
}

#
# Rabbits.
#

# need_rabbits: skips the test where the stand-in for the service cannot run.
need_rabbits() {
	DWS=$STAGE/lib/flux/job-manager/plugins/dws-jobtap.so
	DWS_SHELL=$STAGE/lib/flux/shell/plugins/dws_environment.so
	"$FLUX" python -c 'import flux' 2>/dev/null || skip "the Python bindings of Flux cannot be used: see flux python"
}

# dws_up: starts the service, and returns when it takes requests. What jobs get is in the file VARIABLES.
dws_up() {
	local ready
	mkdir -p dws/workflows || return
	test -p dws/ready || mkfifo dws/ready || return
	exec 7<>dws/ready
	"$FLUX" python "$TESTS/dws-service.py" serve "$PWD/dws" "$VARIABLES" >>dws/output 2>&1 7>&- 8>&- 9>&- &
	DWS_SERVICE=$!
	read -r -t 60 ready <&7
	exec 7>&-
	test "$ready" = ready
}

dws_down() {
	test -n "$DWS_SERVICE" || return 0
	kill "$DWS_SERVICE" 2>/dev/null
	wait "$DWS_SERVICE" 2>/dev/null
	DWS_SERVICE=
}

# rabbit HOW OPTION…: submits a rabbit job to which the service does what dws-service.py says. Prints its id.
rabbit() {
	local how=$1
	shift
	flux submit --setattr=system.dw="$how" "$@"
}

# asked TOPIC ID [PAYLOAD]: the service is asked that for the job; asks are in dws/log.
asked() {
	eventually grep -q "^$1 $(flux job id --to=dec "$2") .*$3" dws/log
}

# was_not_asked TOPIC ID
was_not_asked() {
	grep -q " $(flux job id --to=dec "$2") " dws/log && ! grep "^$1 $(flux job id --to=dec "$2") " dws/log
}

# tell METHOD ID [MEMBERS]: what the service would.
tell() {
	flux python "$TESTS/dws-service.py" rpc "job-manager.dws.$1" "{\"id\":$(flux job id --to=dec "$2")${3:+,$3}}"
}
