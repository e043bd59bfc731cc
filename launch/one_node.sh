#!/usr/bin/env bash
# One machine: one rank per GPU (per core without a GPU), or RANKS ranks.
set -eu
[ $# -gt 0 ] || { echo "usage: [RANKS=N] [RESTARTS=N] $0 CONFIG.yaml [key=value ...]" >&2; exit 2; }
trap '' USR1 USR2 # which Slurm sends to every process of a job step: the ranks answer, and the launcher waits for them
exec python -m diptych.torchrun --standalone --nproc-per-node "${RANKS:-auto}" --max-restarts "${RESTARTS:-3}" \
    --shutdown-timeout 120 -m diptych train "$@"
