#!/usr/bin/env bash
# Evaluate on Slurm: on one GPU, on whole nodes, or as an array for several benchmarks at once.
#
#   sbatch --gpus=1 slurm/eval.sh model.path=<directory> output_dir=<directory> benchmark=math500
#   sbatch --gpus=1 --array=0-2 slurm/eval.sh model.path=... output_dir=... benchmark=math500,aime24,aime25
#   sbatch --nodes=2 --gpus-per-node=8 --exclusive --mem=0 slurm/eval.sh rollout.tensor_parallel_size=4 model.path=...
#
# Several GPUs are ranks of torchrun, which share the problems; rollout.tensor_parallel_size of them hold one model.
# What nemo-ibtpo eval takes, this takes. Ten minutes before its time limit it queues itself again and goes on where it
# was. In an array each task takes its share of the benchmarks. Python and containers are set in slurm/cluster.sh.
#
#SBATCH --job-name=ibtpo-eval
#SBATCH --output=slurm-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=B:USR1@600

set -euo pipefail
# Slurm runs a copy of this file; what belongs to it lies beside the original, which all tasks of an array name.
here=$(dirname -- "${BASH_SOURCE[0]}")
[ -e "$here/lib/common.sh" ] ||
    here=$(scontrol show job "${SLURM_JOB_ID:-}" | sed -n 's|^ *Command=\([^ ]*\)/.*|\1|p' | uniq) || here=
[ -e "$here/lib/common.sh" ] || {
    echo "error: slurm/lib is not beside this script, and Slurm names no other place: submit slurm/eval.sh of a checkout" >&2
    exit 1
}
# shellcheck source=lib/common.sh
source "$here/lib/common.sh"
help_or_go "$here/eval.sh" "$@"

words=()
dry=
for word in "$@"; do
    if [ "$word" = --dry-run ]; then dry=yes; fi
    if [[ $word == benchmark=* ]]; then
        IFS=, read -ra names <<<"${word#benchmark=}"
        take_share "${names[@]}"
        [ ${#share[@]} -gt 0 ] || { say "no benchmark for this task of the array" && exit 0; }
        word=benchmark=$(IFS=, && echo "${share[*]}")
    fi
    words+=("$word")
done
# The number of one task may stand for its whole array.
task=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
trap 'say "queued again, to go on with the next sample" && scontrol requeue "${task:-$SLURM_JOB_ID}"' USR1
export IBTPO_RANKS IBTPO_HEAD IBTPO_ADDRESSES IBTPO_STOP_FILE
ranks_per_node
nodes=${SLURM_JOB_NUM_NODES:-1}
if [ -n "$dry" ] || [ $((nodes * ${IBTPO_RANKS:-1})) -eq 1 ]; then
    on_nodes 1 -- python nemo_ibtpo.cli eval "${words[@]}" &
else
    IBTPO_ADDRESSES=$(node_addresses) || exit 1
    IBTPO_HEAD=${IBTPO_ADDRESSES%% *}:$((20000 + SLURM_JOB_ID % 10000))
    IBTPO_STOP_FILE=/dev/null/none # nothing is to be saved before a kill
    on_nodes "$nodes" -- torchrun nemo_ibtpo.cli eval "${words[@]}" &
fi
wait "$!"
