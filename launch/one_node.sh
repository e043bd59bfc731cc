#!/usr/bin/env bash
# One machine: one rank per GPU (per core without a GPU), or RANKS ranks.
set -eu
[ $# -gt 0 ] || { echo "usage: [RANKS=N] $0 CONFIG.yaml [key=value ...]" >&2; exit 2; }
exec torchrun --standalone --nproc-per-node "${RANKS:-auto}" -m diptych train "$@"
