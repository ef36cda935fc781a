#!/usr/bin/env bash
# Convert checkpoints to Hugging Face directories on Slurm: an array over the checkpoints of a run.
#
#   sbatch --array=0-3 slurm/convert.sh runs/tiny/checkpoints/step_* [--dtype bf16] [--verify]
#
# Each becomes <output_dir>/hf_<checkpoint> beside the run's own exports; one that is there already is left alone. Every
# task of the array takes its share, however many there are. Options, before or after the checkpoints, are
# those of nemo-ibtpo convert megatron-to-hf. Python and containers are set in slurm/cluster.sh.
#
#SBATCH --job-name=ibtpo-convert
#SBATCH --output=slurm-%A_%a.out
#SBATCH --nodes=1
#SBATCH --ntasks=1

set -euo pipefail
# Slurm runs a copy of this file; what belongs to it lies beside the original, which all tasks of an array name.
here=$(dirname -- "${BASH_SOURCE[0]}")
[ -e "$here/lib/common.sh" ] ||
    here=$(scontrol show job "${SLURM_JOB_ID:-}" | sed -n 's|^ *Command=\([^ ]*\)/.*|\1|p' | uniq) || here=
[ -e "$here/lib/common.sh" ] || {
    echo "error: slurm/lib is not beside this script, and Slurm names no other place: submit slurm/convert.sh of a checkout" >&2
    exit 1
}
# shellcheck source=lib/common.sh
source "$here/lib/common.sh"
help_or_go "$here/convert.sh" "$@"

checkpoints=()
options=()
while [ $# -gt 0 ]; do
    case $1 in
        --dtype | --max-shard-size)
            [ $# -gt 1 ] || fail "$1 has no value"
            options+=("$1" "$2")
            shift
            ;;
        --*) options+=("$1") ;;
        *) checkpoints+=("$1") ;;
    esac
    shift
done
[ ${#checkpoints[@]} -gt 0 ] || fail "no checkpoint to convert; --help tells how to name them"
take_share "${checkpoints[@]}"
failed=0
for checkpoint in "${share[@]}"; do
    output=$(dirname -- "$(dirname -- "$checkpoint")")/hf_$(basename -- "$checkpoint")
    if [ -e "$output" ]; then
        say "$output is there already"
    else
        on_nodes 1 -- python nemo_ibtpo.cli convert megatron-to-hf "$checkpoint" "$output" "${options[@]}" || failed=1
    fi
done
exit "$failed"
