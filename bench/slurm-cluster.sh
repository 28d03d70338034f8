#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0

# slurm-cluster.sh DIRECTORY with|without|empty: a Slurm cluster on this machine for bench/slurm.py, with the product, without, or with
# nothing but a prolog and epilog of the controller that do nothing. Prints a line of JSON when it is ready, and ends with standard
# input.
set -u
TESTS=$(cd "$(dirname "$0")/../t" && pwd) STAGE=$WORKFLOW_TOKEN_STAGE
base=$1
mkdir -p "$base" && cd "$base" || exit
MUNGED='' AGENT='' SLURMCTLD='' SLURMD=()
# shellcheck source=../t/common.sh
. "$TESTS/common.sh"
# shellcheck source=../t/slurm/cluster.sh
. "$TESTS/slurm/cluster.sh"
trap 'cluster_down; munge_kill' EXIT
umask 022
cluster_prepare && token_file token >/dev/null && chown "$CONTROLLER" token || exit
rule "user = \"$(id -un)\"" | TIMEOUT=60s site
sed -i 's/^\(Slurmc*t*l*dDebug\)=.*/\1=error/' "$SLURM_CONF"
[ "$2" = with ] || : >plugstack.conf
case $2 in
without) sed -i '/^PrologSlurmctld\|^EpilogSlurmctld/d' "$SLURM_CONF" ;;
empty) sed -i 's,^\(PrologSlurmctld\|EpilogSlurmctld\)=.*,\1=/bin/true,' "$SLURM_CONF" ;;
esac
{ munge_up && agent_up && cluster_up; } >&2 || exit
printf '{"conf": "%s", "munge": "%s", "port": %s, "agent_uid": %s, "agent": %s, "cluster": "%s"}\n' "$SLURM_CONF" "$MUNGE_SOCKET" \
	"$AGENT_PORT" "$(id -u "$CONTROLLER")" "$AGENT" "$CLUSTER"
cat >/dev/null
