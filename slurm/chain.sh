#!/usr/bin/env bash
# Several jobs, each after the one before it, for clusters that do not let jobs queue themselves again.
#
#   bash slurm/chain.sh <number> [sbatch option ...] slurm/train_ibtpo.sh recipe=<name or path> [key=value ...]
#
# Each job goes on where the one before it ended; when the run is complete, the rest end at once.

set -euo pipefail
if ! [[ ${1:-} =~ ^[1-9][0-9]*$ ]] || [ $# -lt 2 ]; then
    sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 2
fi
number=$1
shift
export IBTPO_REQUEUE=no
after=
for ((i = 0; i < number; i++)); do
    after=$(sbatch --parsable ${after:+--dependency=afterany:"$after"} "$@")
    after=${after%%;*}
    echo "job $after"
done
