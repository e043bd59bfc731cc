#!/usr/bin/env bash
# Many machines from one command: DeepSpeed starts the ranks by pdsh over ssh. HOSTFILE has a line `HOST slots=GPUS` for
# each. DEEPSPEED_OPTIONS are words for the launcher itself, e.g. `--launcher slurm` or `--include host1:0,1`.
set -eu
[ $# -gt 0 ] && [ -n "${HOSTFILE:-}" ] || {
    echo "usage: HOSTFILE=FILE [DEEPSPEED_OPTIONS=...] $0 CONFIG.yaml [key=value ...]" >&2
    exit 2
}
# shellcheck disable=SC2086  # words, not one word
exec deepspeed --hostfile "$HOSTFILE" ${DEEPSPEED_OPTIONS:-} --module diptych train "$@"
