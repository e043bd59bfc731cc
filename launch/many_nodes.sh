#!/usr/bin/env bash
# Many machines: run the same command on each. RDZV_ENDPOINT is a free port of one of them, where they meet.
set -eu
[ $# -gt 0 ] && [ -n "${NNODES:-}" ] && [ -n "${RDZV_ENDPOINT:-}" ] || {
    echo "usage: NNODES=N RDZV_ENDPOINT=HOST:PORT [RDZV_ID=NAME] [RANKS=N] [RESTARTS=N] $0 CONFIG.yaml [key=value ...]" >&2
    exit 2
}
trap '' USR1 USR2 # which Slurm sends to every process of a job step: the ranks answer, and the launcher waits for them
exec python -m diptych.torchrun --nnodes "$NNODES" --nproc-per-node "${RANKS:-auto}" --max-restarts "${RESTARTS:-3}" \
    --rdzv-backend c10d --rdzv-endpoint "$RDZV_ENDPOINT" --rdzv-id "${RDZV_ID:-diptych}" --shutdown-timeout 120 \
    -m diptych train "$@"
