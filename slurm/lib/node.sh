#!/usr/bin/env bash
# Runs on every node, in the container if there is one:
#   node.sh python <module> [argument ...]       one process
#   node.sh torchrun <module> [argument ...]     IBTPO_RANKS ranks a node that meet at IBTPO_HEAD (host:port);
#                                                IBTPO_ADDRESSES has the address of each node
# While IBTPO_STOP_FILE exists the ranks get SIGUSR1: save and leave. They get it directly, for torchrun would kill them
# before a large checkpoint is written. It comes through a file since Slurm may signal every process of a step at once.
set -euo pipefail
here=$(dirname -- "${BASH_SOURCE[0]}")/..
# shellcheck source=common.sh
source "$here/lib/common.sh"

enter_environment() {
    if [ -n "$IBTPO_MODULES" ]; then
        # /etc/profile defines `module`, and may not be written for these options.
        set +eu
        command -v module >/dev/null || source /etc/profile
        # shellcheck disable=SC2086 # a list of words
        module load $IBTPO_MODULES || fail "module load $IBTPO_MODULES failed on $(hostname); see slurm/cluster.sh"
        set -eu
    fi
    local venv=$IBTPO_VENV
    if [ -z "$venv" ] && [ -z "$IBTPO_CONTAINER" ] && [ -x "$root/.venv/bin/python" ]; then venv=$root/.venv; fi
    python=${venv:+$venv/bin/}python3
    command -v "$python" >/dev/null || fail "there is no $python on $(hostname); see slurm/cluster.sh"
    # The checkout that was submitted is what runs.
    export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
    # Megatron asks for it with sequence parallelism.
    export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
}

under_torchrun() {
    local is_host=false status=0 addresses
    # Without it the ranks would be told to meet at this machine's own full name, which others may not resolve.
    read -ra addresses <<<"$IBTPO_ADDRESSES"
    # Said outright: torchrun would compare names and addresses, of which a node has several.
    if [ "$SLURM_NODEID" -eq 0 ]; then is_host=true; fi
    # What torchrun starts ignores SIGUSR1 until it is ready for it.
    (
        trap '' USR1
        exec "$python" -m torch.distributed.run --nnodes="$SLURM_NNODES" --nproc-per-node="$IBTPO_RANKS" \
            --rdzv-backend=c10d --rdzv-endpoint="$IBTPO_HEAD" --rdzv-id="$SLURM_JOB_ID.$SLURM_STEP_ID" \
            --rdzv-conf="is_host=$is_host" \
            --local-addr="${addresses[SLURM_NODEID]}" --max-restarts=0 -m "$@"
    ) &
    local torchrun=$! stopping=
    trap 'stopping=yes' USR1 TERM
    while kill -0 "$torchrun" 2>/dev/null; do
        if [ -n "$stopping" ] || [ -e "$IBTPO_STOP_FILE" ]; then
            pkill -USR1 -P "$torchrun" || true
        fi
        sleep 1 &
        wait -n "$!" "$torchrun" || true
    done
    wait "$torchrun" || status=$?
    # Another node may be about to tell why, or to finish what a request to stop began; Slurm ends it with this one.
    if [ "$status" -ne 0 ]; then sleep 8; fi
    return "$status"
}

enter_environment
kind=$1
shift
case $kind in
    python) exec "$python" -m "$@" ;;
    torchrun) under_torchrun "$@" ;;
esac
