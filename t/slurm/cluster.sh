# SPDX-License-Identifier: MIT OR Apache-2.0
# shellcheck shell=bash
# A Slurm cluster of two nodes on this machine, in the current directory, with its own agent.
#
# As root, Slurm and the agent run as the user slurm, and jobs as other users. As another user, all run as that user.
# Needs common.sh, and STAGE: the tree that `make install` makes.

# Ignore the machine's own cluster.
for name in $(compgen -e SLURM_) $(compgen -e SBATCH_) $(compgen -e SRUN_); do unset "$name"; done

PATH=$PATH:/usr/sbin
if test "$(id -u)" -eq 0; then
	CONTROLLER=slurm ALICE=${WORKFLOW_TOKEN_TEST_OWNER:-games} BOB=${WORKFLOW_TOKEN_TEST_GUEST:-nobody}
else
	CONTROLLER=$(id -un) ALICE=$CONTROLLER BOB=
fi
CLUSTER=canary-cluster
SITE=$PWD/site.toml
STATE=$PWD/state
export SLURM_CONF=$PWD/slurm.conf
RELEASE=$(slurmctld -V 2>/dev/null | awk '{ print $2 }')

# become USER COMMAND…: replaces this shell by the command.
become() {
	local user=$1
	shift
	test "$user" != "$(id -un)" || exec "$@"
	exec setpriv --reuid="$user" --regid="$(id -g "$user")" --clear-groups "$@"
}

# as USER COMMAND…
as() {
	(become "$@")
}

# free_ports COUNT
free_ports() {
	python3 -c '
import socket, sys
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(each.getsockname()[1] for each in sockets))' "$1"
}

# site LINES…: writes the configuration of the cluster, with the rules from standard input.
site() {
	{
		cat <<-EOF
			[workflow-token]
			munge-socket = "$MUNGE_SOCKET"
			timeout = "${TIMEOUT:-20s}"

			[workflow-token.slurm]
			cluster = "$CLUSTER"
			servers = "127.0.0.1:$AGENT_PORT"
			listen = "127.0.0.1:$AGENT_PORT"
			socket = "$PWD/agent/socket"
			user = "$CONTROLLER"
			store = "$PWD/agent/store"
			cache = "$PWD/cache"
			step-program = "$PWD/bin/workflow-token-slurmstepd"
		EOF
		cat
	} >"$SITE"
}

# rule LINES…: prints a rule that delivers the file `token`.
rule() {
	printf '\n[[workflow-token.rule]]\nsource = "file"\npath = "%s/token"\n' "$PWD"
	printf '%s\n' "$@"
}

# slurm_conf [LINE…]
slurm_conf() {
	cat >"$SLURM_CONF" <<-EOF
		ClusterName=$CLUSTER
		SlurmctldHost=${PRIMARY:-localhost}
		SlurmctldPort=$CTLD_PORT
		SlurmUser=$CONTROLLER
		SlurmdUser=$(id -un)
		AuthType=auth/munge
		CredType=cred/munge
		AuthInfo=socket=$MUNGE_SOCKET
		StateSaveLocation=$STATE/save
		SlurmdSpoolDir=$PWD/spool-%n
		SlurmctldPidFile=$STATE/slurmctld.pid
		SlurmdPidFile=$PWD/slurmd-%n.pid
		SlurmctldLogFile=$STATE/slurmctld.log
		SlurmdLogFile=$PWD/slurmd-%n.log
		SlurmctldDebug=debug3
		SlurmdDebug=debug3
		ProctrackType=proctrack/linuxproc
		TaskPlugin=task/none
		JobAcctGatherType=jobacct_gather/none
		SchedulerType=sched/backfill
		SelectType=select/cons_tres
		SelectTypeParameters=CR_Core
		SlurmdParameters=config_overrides
		SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,bf_interval=1,sched_interval=1
		ReturnToService=2
		MpiDefault=none
		MinJobAge=300
		PlugStackConfig=$PWD/plugstack.conf
		PrologSlurmctld=$PWD/prolog
		EpilogSlurmctld=$PWD/prolog
		NodeName=n[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[$N1_PORT-$((N1_PORT + 1))] CPUs=16
		PartitionName=debug Nodes=n[1-2] Default=YES State=UP OverSubscribe=YES
		PartitionName=other Nodes=n[1-2] State=UP OverSubscribe=YES
		$(printf '%s\n' "$@")
	EOF
	# slurmd reads it, though nothing here uses control groups, which a container may lack.
	case $RELEASE in
	21.*) : ;;
	22.* | 23.02*) echo CgroupPlugin=cgroup/v1 ;;
	*) echo CgroupPlugin=disabled ;;
	esac >cgroup.conf
}

# Finds two adjacent ports, for the nodes.
next_ports() {
	python3 -c '
import socket
while True:
    first = socket.create_server(("127.0.0.1", 0))
    try:
        socket.create_server(("127.0.0.1", first.getsockname()[1] + 1))
    except OSError:
        continue
    print(first.getsockname()[1])
    break'
}

# cluster_prepare: prepares everything except the daemons.
cluster_prepare() {
	read -r CTLD_PORT AGENT_PORT < <(free_ports 2)
	N1_PORT=$(next_ports)
	chmod 0711 "$base" "$PWD" && mkdir -p "$STATE/save" agent bin &&
		cp "$STAGE/libexec/workflow-token-agent" "$STAGE/libexec/workflow-token-slurmctld" \
			"$STAGE/libexec/workflow-token-slurmstepd" \
			"$STAGE/lib/slurm/workflow-token-spank.so" bin/ && chmod 0755 bin bin/* &&
		{ test "$CONTROLLER" = "$(id -un)" || chown -R "$CONTROLLER" "$STATE" agent; } &&
		printf '#!/bin/sh\nexec %s --config=%s\n' "$PWD/bin/workflow-token-slurmctld" "$SITE" | program prolog &&
		echo "required $PWD/bin/workflow-token-spank.so config=$SITE" >plugstack.conf &&
		slurm_conf
}

# agent_up: starts the agent, and returns when it listens.
agent_up() {
	(become "$CONTROLLER" "$PWD/bin/workflow-token-agent" slurm --config="$SITE") >>agent.log 2>&1 8>&- 9>&- &
	AGENT=$!
	eventually agent_is_up && ! is_gone "$AGENT"
}

agent_is_up() {
	is_gone "$AGENT" || (exec 3<>"/dev/tcp/127.0.0.1/$AGENT_PORT") 2>/dev/null
}

# agent_down [SIGNAL]
agent_down() {
	test -n "$AGENT" || return 0
	kill -s "${1:-TERM}" "$AGENT" 2>/dev/null
	kill -s CONT "$AGENT" 2>/dev/null
	wait "$AGENT" 2>/dev/null
	AGENT=
	return 0
}

# slurmctld_up
slurmctld_up() {
	(become "$CONTROLLER" "$(type -P slurmctld)" -D -f "$SLURM_CONF" -i) >>slurmctld.out 2>&1 8>&- 9>&- &
	SLURMCTLD=$!
	eventually scontrol ping >/dev/null
}

slurmctld_down() {
	test -n "$SLURMCTLD" || return 0
	kill "$SLURMCTLD" 2>/dev/null
	wait "$SLURMCTLD" 2>/dev/null
	SLURMCTLD=
	return 0
}

# slurmd_up NODE
slurmd_up() {
	"$(type -P slurmd)" -D -f "$SLURM_CONF" -N "$1" >>slurmd.out 2>&1 8>&- 9>&- &
	SLURMD+=($!)
}

# cluster_up: starts the cluster, and returns when both nodes are idle.
cluster_up() {
	slurmctld_up && slurmd_up n1 && slurmd_up n2 && eventually all_idle
}

all_idle() {
	test "$(sinfo --noheader --partition=debug --format=%T%D)" = idle2
}

# cluster_down: ends everything, including jobs.
cluster_down() {
	test -z "$SLURMCTLD" || {
		squeue -h -r -o %A | xargs -r scancel
		timeout 20 bash -c 'until test -z "$(squeue -h)"; do sleep 0.1; done'
	} >/dev/null 2>&1
	for pid in "${SLURMD[@]}"; do
		kill "$pid" 2>/dev/null
		wait "$pid" 2>/dev/null
	done
	SLURMD=()
	slurmctld_down
	agent_down
	for pid in "${BESIDE[@]}"; do
		kill "$pid" 2>/dev/null
		wait "$pid" 2>/dev/null
	done
	BESIDE=()
}

# no_node_is_drained
no_node_is_drained() {
	local nodes
	nodes=$(sinfo --noheader --states=drain,down,fail --format=%N) && test -z "$nodes"
}
