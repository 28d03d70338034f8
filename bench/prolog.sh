#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0

# A prolog that delivers by what any site has at hand, for comparison: munge(1) and flux-kvs(1), once for each job.
munge -S "$BENCH_SOCKET" -u "$FLUX_JOB_USERID" -i "$BENCH_TOKEN" |
	flux kvs put "$(flux job id --to=kvs "$FLUX_JOB_ID").workflow-token=-"
