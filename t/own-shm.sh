# SPDX-License-Identifier: MIT OR Apache-2.0

# shellcheck shell=bash
# Sourced at the start of a test that looks for token files: runs the test again with a /dev/shm of its own, if it may mount one. Tests that
# run at the same time have files of the same users there, and remove those that are left over.
if [ -z "${OWN_SHM:-}" ] && [ "$(id -u)" -eq 0 ] && unshare --mount mount -t tmpfs tmpfs /dev/shm 2>/dev/null; then
	export OWN_SHM=1
	exec unshare --mount sh -c 'mount -t tmpfs tmpfs /dev/shm && exec "$@"' - "$0" "$@"
fi
