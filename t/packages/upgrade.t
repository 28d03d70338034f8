#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
test_description='Packages: a cluster runs with what they install, and jobs keep their tokens through an upgrade and back

scripts/packages runs this in a chroot of its own: it writes to /etc and starts the daemons of the system. The directories
/packages/1 and /packages/2 hold two versions; the first one is installed.'

. "$(dirname "$0")/../lib.sh"
test "$(id -u)" -eq 0 && test -d /packages/1 && test -d /packages/2 ||
	skip "this is no chroot with packages: run scripts/packages chroot SUITE"
PATH=$PATH:/usr/sbin:/sbin
SITE=/srv/site
EXAMPLES=/usr/share/doc/workflow-token
cleanup 'kill $AGENT $SERVICE $SLURMD $SLURMCTLD 2>/dev/null; pkill -x munged'

# become USER COMMAND…: the command in place of this shell, as systemd starts it.
become() {
	local user=$1
	shift
	exec setpriv --reuid="$user" --regid="$(id -g "$user")" --clear-groups "$@"
}

# as USER COMMAND…
as() {
	(become "$@")
}

# These do what the units say.
agent_up() {
	install -d -o slurm -m 0755 /run/workflow-token && install -d -o slurm -m 0700 /var/lib/workflow-token || return
	(become slurm /usr/libexec/workflow-token-agent slurm) >>"$SITE/agent.log" 2>&1 &
	AGENT=$!
	eventually connects 6822 && is_current "$AGENT"
}

service_up() {
	install -d -o workflow-tokend -m 0700 /var/lib/workflow-tokend || return
	(become workflow-tokend /usr/sbin/workflow-tokend --config="$SITE/tokend.toml") >>"$SITE/tokend.log" 2>&1 &
	SERVICE=$!
	eventually is_ready && is_current "$SERVICE"
}

# is_current PID: it runs, and its program is the one that is installed now.
is_current() {
	test "$(stat -L -c %i "/proc/$1/exe")" = "$(stat -c %i "$(readlink "/proc/$1/exe")")"
}

# restarted: what the package scripts have systemd do after an upgrade.
restarted() {
	kill "$AGENT" "$SERVICE" && {
		wait "$AGENT"
		wait "$SERVICE"
	} 2>/dev/null
	agent_up && service_up
}

connects() {
	(exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

is_ready() {
	python3 -c '
import ssl, urllib.request
print(urllib.request.urlopen("https://127.0.0.1:8443/readyz", context=ssl._create_unverified_context()).status)' 2>/dev/null
}

# version_is SUFFIX: of all packages.
version_is() {
	dpkg-query --show --showformat='${Version}\n' "workflow-token-*" | grep . | sort -u >versions
	cat versions && test "$(wc -l <versions)" -eq 1 && grep -q -e "-1$1\$" versions
}

# job PARTITION ARGUMENT…: srun as a user.
job() {
	local partition=$1
	shift
	as games timeout 60 env -C / srun --partition="$partition" "$@"
}

# gets_token PARTITION: a new job has the token that its rule gives.
gets_token() {
	job "$1" sh -c 'printenv DW_WORKFLOW_TOKEN && test "$(cat "$DW_WORKFLOW_TOKEN_FILE")" = "$DW_WORKFLOW_TOKEN"' >out &&
		case $1 in
		gpu) cmp out /etc/workflow-token/token ;;
		*) tail -n 3 "$SITE/minted" >recent && grep -qxF -f recent out ;;
		esac
}

# renewed COUNT: waits for so many more tokens, which the job that runs gets.
renewed() {
	local before
	before=$(wc -l <"$SITE/minted") && eventually minted $((before + $1))
}

minted() {
	test "$(wc -l <"$SITE/minted")" -ge "$1"
}

finished() {
	test -z "$(squeue --noheader --jobs="$1" 2>/dev/null)"
}

test_expect_success 'the first version is installed, with its user and directories' '
	version_is "" &&
	id workflow-tokend && test -d /etc/workflow-token && test "$(stat -c %U /run/workflow-tokend)" = workflow-tokend &&
	test "$(stat -c %a.%U /run/workflow-token-records)" = 700.root
'

test_expect_success 'systemd accepts the units' '
	systemd-analyze verify --man=no workflow-token-agent-slurm.service workflow-tokend.service workflow-tokend.socket 2>verified || :
	cat verified && ! grep workflow-token verified
'

test_expect_success 'programs run, man pages and completions are there' '
	workflow-token --version && /usr/libexec/workflow-token-agent --version && workflow-tokend --version &&
	test -e /usr/share/man/man1/workflow-token.1.gz || test -d /usr/share/doc/workflow-token-cli &&
	bash -c ". /usr/share/bash-completion/completions/workflow-token && complete -p workflow-token" &&
	python3 -m json.tool /usr/share/flux/help.d/workflow-token.json >/dev/null
'

test_expect_success 'MUNGE runs' '
	install -d -o munge -m 0755 /run/munge && as munge munged && eventually test -S /run/munge/munge.socket.2 &&
	as games munge -n | unmunge >/dev/null
'

test_expect_success 'the example of Slurm is the configuration, with a rule whose tokens are renewed' '
	install -d -m 0755 "$SITE" && install -d -m 1777 "$SITE/shared" && install -m 0600 -o slurm /dev/null "$SITE/minted" &&
	echo "127.0.0.1 ctl1" >>/etc/hosts &&
	install -m 0644 "$EXAMPLES-slurm/examples/slurm.toml" /etc/slurm/workflow-token.toml &&
	new_token >token && install -m 0600 -o slurm token /etc/workflow-token/token &&
	install -D "$TESTS/new-token.py" /usr/local/libexec/new-token.py && install "$TESTS/read-token.py" /usr/local/libexec/ &&
	program /usr/local/libexec/mint <<-EOF &&
		#!/bin/sh
		/usr/local/libexec/new-token.py exp=\$((\$(date +%s) + 20)) | tee -a $SITE/minted
	EOF
	as slurm workflow-token keygen /var/lib/slurm/keys &&
	cat >>/etc/slurm/workflow-token.toml <<-EOF
		[[workflow-token.rule]]
		partition = "renew"
		source = "command"
		command = ["/usr/local/libexec/mint"]
		renew = 0.1
		renew-signal = "SIGUSR1"

		[workflow-token.service]
		user = "workflow-tokend"

		[workflow-token.issuer]
		keys = "/var/lib/slurm/keys"
		name = "https://tokens.example.org"
		audience = ["copy-offload"]
	EOF
'

test_expect_success 'the example of the service is accepted' '
	install -d -o workflow-tokend /etc/workflow-token/tls /etc/workflow-token/clients &&
	(umask 077 && openssl rand -hex 32 >secret && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
		-subj /CN=tokens.example.org -keyout key.pem -out cert.pem) 2>openssl.log &&
	install -m 0600 -o workflow-tokend secret /etc/workflow-token/clients/copy-offload &&
	install -m 0600 -o workflow-tokend key.pem cert.pem /etc/workflow-token/tls/ &&
	install -m 0644 "$EXAMPLES-service/examples/tokend.toml" /etc/workflow-token/tokend.toml &&
	as workflow-tokend workflow-tokend --check &&
	sed "s/0.0.0.0:443/127.0.0.1:8443/" /etc/workflow-token/tokend.toml >"$SITE/tokend.toml"
'

test_expect_success 'the agent, the service and Slurm start' '
	cat >/etc/slurm/slurm.conf <<-EOF &&
		ClusterName=hpc
		SlurmctldHost=localhost
		SlurmUser=slurm
		SlurmdUser=root
		AuthType=auth/munge
		StateSaveLocation=/var/lib/slurm/slurmctld
		SlurmdSpoolDir=/var/lib/slurm/slurmd
		SlurmctldPidFile=/run/slurmctld.pid
		ProctrackType=proctrack/linuxproc
		TaskPlugin=task/none
		SelectType=select/cons_tres
		SelectTypeParameters=CR_Core
		SlurmdParameters=config_overrides
		SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,bf_interval=1,sched_interval=1
		ReturnToService=2
		MpiDefault=none
		PrologSlurmctld=/usr/libexec/workflow-token-slurmctld
		EpilogSlurmctld=/usr/libexec/workflow-token-slurmctld
		NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 CPUs=8
		PartitionName=gpu Nodes=n1 Default=YES State=UP
		PartitionName=renew Nodes=n1 State=UP
	EOF
	case $(slurmctld -V) in *" 22."*) echo CgroupPlugin=cgroup/v1 ;; *) echo CgroupPlugin=disabled ;; esac >/etc/slurm/cgroup.conf &&
	echo "required $(dpkg -L workflow-token-slurm | grep /workflow-token-spank.so)" >/etc/slurm/plugstack.conf &&
	install -d -o slurm /var/lib/slurm/slurmctld && install -d /var/lib/slurm/slurmd &&
	agent_up && service_up && {
		(become slurm slurmctld -D -i) >"$SITE/slurmctld.log" 2>&1 &
		SLURMCTLD=$!
		slurmd -D -N n1 >"$SITE/slurmd.log" 2>&1 &
		SLURMD=$!
	} && eventually scontrol ping && eventually sh -c "sinfo --noheader --partition=gpu --format=%T | grep -x idle"
'

test_expect_success 'doctor finds nothing wrong' '
	workflow-token doctor --config /etc/slurm/workflow-token.toml >doctor || { cat doctor; false; }
'

test_expect_success 'jobs get their tokens' '
	gets_token gpu && gets_token renew
'

test_expect_success 'a job runs, and its token is renewed' '
	id=$(as games env -C / sbatch --parsable --partition=renew --output="$SITE/shared/seen" \
		--wrap "srun /usr/local/libexec/read-token.py $SITE/shared") &&
	eventually test -e "$SITE/shared/started.$id.0" && renewed 3
'

# becomes NUMBER SUFFIX: installs that version while the job runs, as apt does.
becomes() {
	dpkg --install /packages/"$1"/workflow-token-*.deb >dpkg.log 2>&1 || {
		cat dpkg.log
		return 1
	}
	version_is "$2" && test "$(squeue --noheader --format=%T)" = RUNNING
}

test_expect_success 'the upgrade does not disturb the job' '
	becomes 2 +2 && ! is_current "$AGENT" 2>/dev/null && renewed 2
'

test_expect_success 'a job between the installation and the restart gets its token' '
	gets_token gpu && gets_token renew
'

test_expect_success 'the new agent renews the token of the job, and serves new ones' '
	restarted && renewed 3 && gets_token gpu && gets_token renew
'

test_expect_success 'the rollback does not disturb the job' '
	becomes 1 "" && ! is_current "$AGENT" 2>/dev/null && gets_token gpu && renewed 2
'

test_expect_success 'the agent of the former version goes on' '
	restarted && renewed 3 && gets_token gpu && gets_token renew
'

test_expect_success 'doctor finds nothing wrong after all this' '
	workflow-token doctor --config /etc/slurm/workflow-token.toml >doctor || { cat doctor; false; }
'

test_expect_success 'every read of the job gave a complete and valid token, and each new one came with one signal' '
	touch "$SITE/shared/stop" && eventually finished "$id" && readers_saw "$SITE/shared/seen" 8
'

test_expect_success 'no node is drained, and records end with their jobs' '
	sinfo --noheader --format=%T | grep -x idle && eventually sh -c "! ls /var/lib/workflow-token | grep ^job-" &&
	eventually sh -c "! ls /run/workflow-token-records | grep ^job-"
'

test_expect_success 'purging the packages leaves what the site wrote' '
	kill "$AGENT" "$SERVICE" && dpkg --purge workflow-token-{flux,slurm,agent,service,cli} >dpkg.log 2>&1 &&
	test ! -e /usr/libexec/workflow-token-agent && test -e /etc/slurm/workflow-token.toml && test -e /etc/workflow-token/tokend.toml
'

test_done
