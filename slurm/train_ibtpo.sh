#!/usr/bin/env bash
# Train on Slurm: a job that goes on until the run is complete.
#
#   sbatch --nodes=2 --gpus-per-node=8 --time=4:00:00 slurm/train_ibtpo.sh recipe=<name or path> [key=value ...]
#   IBTPO_ARGS="recipe=tiny seed=2" sbatch ... slurm/train_ibtpo.sh        the same overrides from the environment
#   bash slurm/chain.sh 4 --nodes=2 ... slurm/train_ibtpo.sh recipe=...    four jobs, each after the one before it
#
# What nemo-ibtpo train takes, this takes. The job checks the recipe and the nodes, trains, and ten minutes before its
# time limit saves and queues itself again, as it does when a process is killed; Slurm does it when a node dies. Logs:
# <output_dir>/slurm/latest/node-*.log, and slurm-<job>.out for what the launcher itself has to say.
# Python, containers and network of the cluster are set in slurm/cluster.sh. Everything else: docs/slurm.md.
#
#SBATCH --job-name=ibtpo
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --requeue
#SBATCH --signal=B:USR1@600

set -euo pipefail
# Slurm runs a copy of this file; what belongs to it lies beside the original.
here=$(dirname -- "${BASH_SOURCE[0]}")
[ -e "$here/lib/common.sh" ] ||
    here=$(scontrol show job "${SLURM_JOB_ID:-}" | sed -n 's|^ *Command=\([^ ]*\)/.*|\1|p' | uniq) || here=
[ -e "$here/lib/common.sh" ] || {
    echo "error: slurm/lib is not beside this script, and Slurm names no other place: submit slurm/train_ibtpo.sh of a checkout" >&2
    exit 1
}
# shellcheck source=lib/common.sh
source "$here/lib/common.sh"
# shellcheck source=lib/attempts.sh
source "$here/lib/attempts.sh"

read -r -d '' -a more <<<"${IBTPO_ARGS:-}" || true # up to its end, over lines
help_or_go "$here/train_ibtpo.sh" "$@" "${more[@]}"
overrides=()
dry=
for word in "$@" "${more[@]}"; do
    if [ "$word" = --dry-run ]; then dry=yes; else overrides+=("$word"); fi
done

export IBTPO_RANKS IBTPO_HEAD IBTPO_ADDRESSES IBTPO_STOP_FILE
ranks_per_node
[ -n "$IBTPO_RANKS" ] ||
    fail "this job has no GPUs: submit it with --gpus-per-node=<n>, or set IBTPO_RANKS_PER_NODE for a run on CPUs"

# The warning that the time is almost over.
stopping=
trap 'stopping=yes' USR1
stop() {
    say "asked to stop: the ranks save and leave"
    touch "$IBTPO_STOP_FILE"
    # If that takes too long, the run goes on from the checkpoint before.
    (sleep "$IBTPO_STOP_SECONDS" && say "not saved within $IBTPO_STOP_SECONDS s" && requeue "$output_dir") &
}

# Seconds from the end of the first node's task until srun gives up the others. It would wait for ever for a node whose
# slurmstepd was killed. In a run that ends well torchrun lets all nodes leave together.
export SLURM_WAIT=${SLURM_WAIT:-120}

# torchrun_step <module> [argument ...]: ranks on all nodes, which write to the logs of this attempt.
torchrun_step() {
    local step status=0
    on_nodes "$SLURM_JOB_NUM_NODES" --output="$attempt/node-%n.log" --open-mode=append -- torchrun "$@" &
    step=$!
    wait "$step" || status=$?
    while kill -0 "$step" 2>/dev/null; do # a signal has ended `wait`
        status=0
        wait "$step" || status=$?
    done
    return "$status"
}

# What the recipe wants.
ranks=$((SLURM_JOB_NUM_NODES * IBTPO_RANKS))
say "job $SLURM_JOB_ID: $ranks ranks on $SLURM_JOB_NUM_NODES nodes: nemo-ibtpo train ${overrides[*]}"
plan=$(on_nodes 1 -- python nemo_ibtpo.launch.job_plan --world-size "$ranks" "${overrides[@]}") || fail "this run cannot start"
head -n -3 <<<"$plan"
if [ -n "$dry" ]; then
    say "dry run: nothing was started"
    exit 0
fi
{ read -r output_dir && read -r device && read -r open; } < <(tail -n 3 <<<"$plan")
if [ "$open" = complete ]; then
    say "this run is complete: $output_dir/hf"
    exit 0
fi

begin_attempt "$output_dir"
IBTPO_STOP_FILE=$attempt/stop
trap stop USR1
[ -z "$stopping" ] || stop
# Slurm reaches the nodes by these addresses; the ranks meet at the first one, at a port of this job.
IBTPO_ADDRESSES=$(node_addresses) || exit 1
IBTPO_HEAD=${IBTPO_ADDRESSES%% *}:$((20000 + SLURM_JOB_ID % 10000))

# What the nodes can do.
status=0
torchrun_step nemo_ibtpo.launch.preflight --directory "$attempt" --device "$device" || status=$?
report=$(cat "$attempt/preflight.txt" 2>/dev/null) || report=
echo "$report"
if grep -q '^problem: ' <<<"$report"; then fail "these nodes cannot run it together"; fi
if [ "$status" -ne 0 ]; then
    say "the pre-flight ended without a verdict (status $status); the end of $attempt/node-*.log:"
    tail -n 20 "$attempt"/node-*.log
    requeue "$output_dir"
    exit 1
fi

# Training. Its status file tells what the exit status of torchrun and srun cannot.
before=$(cat "$output_dir/status.json" 2>/dev/null) || before=
[ -e "$IBTPO_STOP_FILE" ] || torchrun_step nemo_ibtpo.cli train "${overrides[@]}" || status=$?
if [ "$(cat "$output_dir/status.json" 2>/dev/null)" = "$before" ]; then
    state=lost
else
    state=$(status_of "$output_dir" state)
fi
case $state in
    complete) say "complete: the model is in $output_dir/hf" ;;
    failed) fail "$(status_of "$output_dir" reason); see $attempt/node-*.log" ;;
    requeue)
        say "stopped: $(status_of "$output_dir" reason)"
        requeue "$output_dir"
        ;;
    *)
        if [ ! -e "$IBTPO_STOP_FILE" ]; then
            say "processes were lost (status $status); the end of $attempt/node-*.log:"
            tail -n 20 "$attempt"/node-*.log
        fi
        requeue "$output_dir"
        exit 1
        ;;
esac
