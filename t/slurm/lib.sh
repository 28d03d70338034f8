# SPDX-License-Identifier: MIT OR Apache-2.0
# shellcheck shell=bash
# Code shared by the tests on Slurm: a cluster of two nodes on this machine, with its own munged and agent.
#
# As root, Slurm and the agent run as the user slurm, and jobs as other users. As another user, all run as that user.

# shellcheck source=../lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

# Not in the trash directory, whose name contains a space: slurm.conf has no quotes.
mkdir -p "$base/cluster" && cd "$base/cluster" || exit 1
MUNGE_SOCKET=$PWD/munge.socket
# shellcheck source=cluster.sh
. "$TESTS/slurm/cluster.sh"
trap 'ended=$?; cluster_down; tidy; rm -rf "$base/test-results"
	test "$test_failure" -gt 0 || rm -rf "$base/cluster"; rmdir "$base" 2>/dev/null ||
	echo "# what is left to look at: $base" >&5; (exit $ended); die' EXIT
cleanup cluster_down

# need_slurm: skips the test if Slurm or the product is missing.
need_slurm() {
	for program in slurmctld slurmd srun sbatch scontrol; do
		command -v $program >/dev/null || skip "no $program found: install the packages slurmctld, slurmd, slurm-client"
	done
	command -v python3 >/dev/null || skip "no python3 found: install it"
	command -v munged >/dev/null || skip "no munged found: install the package munge"
	# A newline would end a line of slurm.conf.
	test "$CONTROLLER" != slurm || id slurm >/dev/null 2>&1 || skip "there is no user slurm"
	for file in lib/slurm/workflow-token-spank.so libexec/workflow-token-agent libexec/workflow-token-slurmctld \
		libexec/workflow-token-slurmstepd; do
		test -e "$STAGE/$file" || error "$STAGE/$file is missing: run make stage"
	done
}

# finished ID: succeeds if the job has ended.
finished() {
	local states
	states=$(squeue --noheader --states=all --jobs="$1" --format=%T) && test -n "$states" &&
		! grep -qvx "COMPLETED\|FAILED\|CANCELLED\|TIMEOUT\|NODE_FAIL" <<<"$states"
}

# is_pending ID: succeeds if the job waits to start.
is_pending() {
	test "$(squeue --noheader --jobs="$1" --format=%T)" = PENDING
}

# requeue ID: requeues a job. Slurm delays the job for two minutes. The delay is not needed, but a node rejects a job
# that starts in the same second in which it was revoked.
requeue() {
	scontrol requeue "$1" && eventually is_pending "$1" && scontrol update JobId="$1" StartTime=now+3
}

# is_empty DIRECTORY
is_empty() {
	test -z "$(ls -A "$1")"
}

# has_lines COUNT TEXT FILE: succeeds if at least COUNT lines contain TEXT.
has_lines() {
	test "$(grep -c "$2" "$3")" -ge "$1"
}

# hides HAYSTACK…: succeeds if none of them contains the token.
hides() {
	test_expect_code 1 "$TESTS/search.py" token "$@"
}

# run USER ARGUMENTS…: runs srun as that user.
run() {
	local user=$1
	shift
	as "$user" timeout -k 5 60 srun "$@"
}

# batch USER ARGUMENTS…: runs sbatch as that user, and prints the job id.
batch() {
	local user=$1
	shift
	as "$user" timeout 30 sbatch --parsable "$@"
}

# A task runs this to show its token.
PRINT='printenv DW_WORKFLOW_TOKEN || echo none'
