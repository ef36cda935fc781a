#!/usr/bin/env bash
# Evaluate on Slurm: one process on one node, an array for several benchmarks at once.
#
#   sbatch --gpus=1 slurm/eval.sh model.path=<directory> output_dir=<directory> benchmark=math500
#   sbatch --gpus=1 --array=0-2 slurm/eval.sh model.path=... output_dir=... benchmark=math500,aime24,aime25
#
# What nemo-ibtpo eval takes, this takes. Ten minutes before its time limit it queues itself again and goes on where it
# was. In an array each task takes its share of the benchmarks. Python and containers are set in slurm/cluster.sh.
#
#SBATCH --job-name=ibtpo-eval
#SBATCH --output=slurm-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --signal=B:USR1@600

set -euo pipefail
# Slurm runs a copy of this file; what belongs to it lies beside the original, which all tasks of an array name.
here=$(dirname -- "${BASH_SOURCE[0]}")
[ -d "$here/lib" ] || here=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's|^ *Command=\(.*\)/eval\.sh.*|\1|p' | uniq)
# shellcheck source=lib/common.sh
source "$here/lib/common.sh"
help_or_go "$here/eval.sh" "$@"

words=()
for word in "$@"; do
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
on_nodes 1 -- python nemo_ibtpo.cli eval "${words[@]}" &
wait "$!"
