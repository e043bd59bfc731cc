#!/usr/bin/env bash
# Many machines: run the same command on each. RDZV_ENDPOINT is a free port of one of them, where they meet.
set -eu
[ $# -gt 0 ] && [ -n "${NNODES:-}" ] && [ -n "${RDZV_ENDPOINT:-}" ] || {
    echo "usage: NNODES=N RDZV_ENDPOINT=HOST:PORT [RDZV_ID=NAME] [RANKS=N] $0 CONFIG.yaml [key=value ...]" >&2
    exit 2
}
exec torchrun --nnodes "$NNODES" --nproc-per-node "${RANKS:-auto}" --rdzv-backend c10d \
    --rdzv-endpoint "$RDZV_ENDPOINT" --rdzv-id "${RDZV_ID:-diptych}" -m diptych train "$@"
