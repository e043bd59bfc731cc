#!/usr/bin/env bash
# Many machines with one command: DeepSpeed starts the ranks by pdsh over ssh. HOSTFILE has a line `HOST slots=GPUS` for
# each machine. DEEPSPEED_OPTIONS are passed to the launcher, e.g. `--launcher slurm` or `--include host1:0,1`.
set -eu
[ $# -gt 0 ] && [ -n "${HOSTFILE:-}" ] || {
    echo "usage: HOSTFILE=FILE [DEEPSPEED_OPTIONS=...] $0 CONFIG.yaml [key=value ...]" >&2
    exit 2
}
# shellcheck disable=SC2086  # the options are several words
exec deepspeed --hostfile "$HOSTFILE" ${DEEPSPEED_OPTIONS:-} --module diptych train "$@"
