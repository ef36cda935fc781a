# What all scripts share. Sourced with `here` set to the directory slurm/ of the checkout.
# shellcheck shell=bash

here=$(cd -- "${here:?}" && pwd)
root=$(dirname -- "$here")
# shellcheck source=../cluster.sh
source "$here/cluster.sh"
export IBTPO_CONTAINER IBTPO_VENV IBTPO_MODULES

say() { printf '[%(%F %T)T] %s\n' -1 "$*"; }

fail() {
    say "error: $*" >&2
    exit 1
}

# help_or_go <script> [word ...]: print the comment at the top of a script, and leave, unless it is to run in a job.
help_or_go() {
    local script=$1
    shift
    if [ "${1:-}" = --help ] || [ "${1:-}" = -h ] || [ -z "$*${SLURM_JOB_ID:-}" ]; then
        sed -n '/^#SBATCH/d; 2,/^$/s/^# \{0,1\}//p' "$script"
        exit 0
    fi
    [ -n "${SLURM_JOB_ID:-}" ] || fail "this runs inside a Slurm job: sbatch ... $script $*; --help tells more"
}

# ranks_per_node: sets IBTPO_RANKS to the ranks of a node; empty where nothing says how many.
ranks_per_node() {
    IBTPO_RANKS=${IBTPO_RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-}}
    [[ $IBTPO_RANKS =~ ^([1-9][0-9]*)?$ ]] || fail "IBTPO_RANKS_PER_NODE=$IBTPO_RANKS is no number of ranks"
}

# node_addresses: the addresses of the job's nodes, in the order of their SLURM_NODEID.
node_addresses() {
    local node nodes address addresses=()
    nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST") ||
        fail "scontrol does not tell the nodes of this job ($SLURM_JOB_NODELIST)"
    for node in $nodes; do
        address=$(scontrol show node --oneliner "$node" | grep -o ' NodeAddr=[^ ]*') ||
            fail "scontrol does not tell the address of node $node"
        addresses+=("${address#*=}")
    done
    echo "${addresses[*]}"
}

# on_nodes <number of nodes> <srun option>... -- <word of node.sh>...: one task a node, in the container if there is one.
on_nodes() {
    local nodes=$1 options=()
    shift
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    if [ -n "$IBTPO_CONTAINER" ]; then
        options+=(
            --container-image="$IBTPO_CONTAINER"
            --container-mounts="$root:$root,$PWD:$PWD${IBTPO_MOUNTS:+,$IBTPO_MOUNTS}"
            --container-workdir="$PWD"
        )
    fi
    # A task has all CPUs of its node, since the ranks are its children; --kill-on-bad-exit ends the other nodes.
    srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --relative=0 --mpi=none --cpu-bind=none \
        --kill-on-bad-exit=1 "${options[@]}" bash "$here/lib/node.sh" "$@"
}

# take_share <word>...: sets `share` to those of the words that this task of an array takes; all of them without an array.
take_share() {
    local number=$((${SLURM_ARRAY_TASK_ID:-0} - ${SLURM_ARRAY_TASK_MIN:-0})) count=${SLURM_ARRAY_TASK_COUNT:-1}
    share=()
    while [ "$number" -lt $# ]; do
        share+=("${@:number+1:1}")
        number=$((number + count))
    done
}
